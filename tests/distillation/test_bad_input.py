"""What users get wrong in a distillation is told in one sentence, before anything is lost."""

import itertools
from dataclasses import replace

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Networks
from fewstep.distillation.engine import Engine, assemble
from fewstep.distillation.method import Method
from fewstep.distillation.roles import Critic
from fewstep.errors import FewstepError
from fewstep.files import read_json
from fewstep.process import Cosine, RectifiedFlow
from fewstep.testing.toy import PointNetwork, Toy
from fewstep.train.distillation import stage_of
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import StageConfig

TOY = Toy(width=8)


def steady(networks, batch, made, generator):
    return networks.student(batch.clean, torch.ones(batch.size)).square().mean(), {}


METHOD = Method({"steady": steady}, Chain((1.0,)))


def engine(method=METHOD, batches=None):
    module = PointNetwork(2, 8, TOY.horizon)
    return assemble(method, TOY.teacher(), module, lambda m: m, batches or TOY.batches(4), (2,))


def train(made, out):
    config = StageConfig(steps=20, batch=4, device="cpu", checkpoint_every=3)
    fit(stage_of(made, config, lambda folder: None), config, out, accelerator_for(config), quiet=True)


@pytest.mark.parametrize("who", ["teacher", "critic"])
def test_networks_of_different_schedules_are_refused(who):
    made = engine(replace(METHOD, critic=Critic(steady)))
    networks = replace(made.networks, **{who: Denoiser(made.networks.teacher.network, Cosine())})
    with pytest.raises(FewstepError, match=f"RectifiedFlow.*the {who}'s is another"):
        Engine(made.method, networks, made.modules, {}, made.batches)


def test_networks_of_different_shifts_are_refused_and_different_predictions_are_not():
    made = engine()
    other = replace(made.networks.teacher, process=RectifiedFlow(shift=3.0))
    with pytest.raises(FewstepError, match="shift=3.0"):
        Engine(made.method, replace(made.networks, teacher=other), made.modules, {}, made.batches)
    noise = replace(made.networks.teacher, prediction=replace(made.networks.teacher.prediction, kind="epsilon"))
    assert isinstance(Engine(METHOD, Networks(made.networks.student, noise), made.modules, {}, made.batches), Engine)


def test_steps_outside_of_the_process_are_refused():
    with pytest.raises(FewstepError, match="outside the process.*999"):
        engine(replace(METHOD, steps=Chain((999.0, 499.0))))


def test_data_that_end_are_told_and_the_last_checkpoint_stays(tmp_path):
    batches = TOY.batches(4)
    stream = itertools.islice(iter(lambda: batches(torch.Generator().manual_seed(0)), None), 8)  # one is looked at
    made = engine(batches=lambda generator: next(stream))
    with pytest.raises(FewstepError, match="the data ended at step 7 of 20"):
        train(made, tmp_path)
    assert read_json(tmp_path / "checkpoint" / "progress.json")["step"] == 6


def test_a_loss_that_explodes_but_stays_finite_stops_the_training(tmp_path):
    def explodes(networks, batch, made, generator):
        value, told = steady(networks, batch, made, generator)
        return value * (1e33 if batch.step == 7 else 1.0), told

    with pytest.raises(FewstepError, match="loss and steady became NaN or infinite"):
        train(engine(Method({"steady": explodes}, Chain((1.0,)))), tmp_path)
    assert read_json(tmp_path / "checkpoint" / "progress.json")["step"] == 6
