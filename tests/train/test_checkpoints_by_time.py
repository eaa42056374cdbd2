"""Checkpoints that are due by the clock, what a training says off a terminal, and whose its folder is."""

import pytest
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.files import read_json
from fewstep.jobs.zoo.run import _begin, _check_place, _move_up
from fewstep.ownership import read_marker, write_marker
from fewstep.train import loop
from fewstep.train.checkpoint import Pace
from fewstep.train.display import display
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import Stage, StageConfig


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def stage(weight, stop_at=None, clock=None):
    calls = []

    def loss(given, generator):
        calls.append(1)
        if clock is not None:
            clock.now += 40
        if len(calls) - 1 == stop_at:
            raise KeyboardInterrupt
        return (weight(given["x"]) - 1).square().mean(), {"half": 0.5}

    def batch(generator):
        return {"x": torch.randn(4, 2, generator=generator)}

    return Stage({"weight": weight}, batch, loss, lambda folder: None)


def test_a_checkpoint_is_due_by_the_clock_and_takes_a_twentieth_of_the_time():
    clock = Clock()
    pace = Pace(5, clock)
    clock.now = 299
    assert not pace.due()
    clock.now = 300
    assert pace.due()
    with pace.writing():
        clock.now += 60  # a large model
    clock.now += 1199
    assert not pace.due()
    clock.now += 1
    assert pace.due()


def test_a_training_with_one_checkpoint_at_its_end_keeps_one_by_time_and_ends_alike(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop, "Pace", lambda minutes: Pace(minutes, clock))
    config = StageConfig(steps=30, checkpoint_every=30, batch=4, device="cpu", learning_rate=1e-2)
    accelerator, weights = accelerator_for(config), []
    for stop in (None, 20):
        out = tmp_path / str(stop)
        torch.manual_seed(0)
        weight = nn.Linear(2, 1)
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                fit(stage(weight, stop, clock), config, out, accelerator, quiet=True)
            assert read_json(out / "checkpoint" / "progress.json")["step"] >= 10
        progress = fit(stage(weight), config, out, accelerator, quiet=True)
        weights.append((weight.weight.detach().clone(), [r["loss"] for r in progress.history]))
    assert torch.equal(weights[0][0], weights[1][0])
    assert weights[0][1] == weights[1][1]


def test_what_outlives_the_checkpoint_is_kept_elsewhere(tmp_path):
    config = StageConfig(steps=4, checkpoint_every=2, batch=4, device="cpu", ema_widths=(0.1,))
    fit(stage(nn.Linear(2, 1)), config, tmp_path / "a", accelerator_for(config), quiet=True, keep=tmp_path / "b")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["checkpoint"]
    assert len(list((tmp_path / "b" / "averages").iterdir())) == 2


def test_a_training_says_loss_speed_and_time_left_off_a_terminal():
    clock, said = Clock(), []
    config = StageConfig(steps=100, device="cpu")
    with display(accelerator_for(config), 100, say=said.append, clock=clock) as show:
        for step in range(1, 41):
            clock.now += 1
            show(step, clock.now, {"loss": 0.5}, 8)
    assert len(said) == 1
    assert "0.5000" in said[0]
    assert "img/s" in said[0]
    assert "left" in said[0]


def test_a_training_folder_is_ours_or_new(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    assert not _check_place(mine)
    (mine / "checkpoint").mkdir()
    (mine / "checkpoint" / "weights").write_text("of another program")
    with pytest.raises(FewstepError, match="checkpoint"):
        _check_place(mine)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "training.json").write_text('{"stage": "vae"}')
    assert _check_place(tmp_path / "old")  # of a version without markers


def test_a_new_result_takes_the_place_of_the_old_one_only(tmp_path):
    out = tmp_path / "out"
    _begin(out)

    def result(text):
        (out / "result" / "vae").mkdir(parents=True)
        (out / "result" / "vae" / "config.json").write_text(text)
        (out / "result" / "training.json").write_text(text)
        write_marker(out / "result", {"files": {"vae/config.json": len(text), "training.json": len(text)}})
        _move_up(out, older=False)

    result("first")
    assert read_marker(out)["kind"] == "training"
    result("second one")
    assert (out / "vae" / "config.json").read_text() == "second one"
    (out / "vae" / "notes.txt").write_text("mine")
    with pytest.raises(FewstepError, match="notes"):
        result("third")
    assert (out / "vae" / "notes.txt").read_text() == "mine"
