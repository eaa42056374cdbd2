"""Times stay on the CPU and states on the device: every part runs with states on another device than the CPU.

The device is torch's `meta`, which computes shapes alone and refuses to mix with the CPU as CUDA does.
"""

import pytest
import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.adversary import discriminator_loss, generator_loss
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.discriminator import Discriminator, NetworkFeatures, PointHead
from fewstep.distillation.moments import gaussian_kernel, maximum_mean_discrepancy
from fewstep.distillation.part import made_by
from fewstep.distillation.parts import (
    denoising_loss,
    density_ratio_weight,
    distribution_matching,
    error_normalizer,
    guidance_difference,
    huber_gradient,
    mean_variance_penalty,
    onward,
    paired_regression,
    reward_weight,
    scale_weight,
    score_distillation,
    score_identity,
)
from fewstep.distillation.rollout import backward_simulation, between, noised_data_rollout, random_schedule
from fewstep.distillation.score.relay import later_call
from fewstep.distillation.times import below_last_call, last_interval, uniform_times
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow

SIZE = 8
FLOW = RectifiedFlow()
CHAIN, FRESH = Chain((1.0, 0.75, 0.5, 0.25), 0.0), Chain((1.0, 0.75, 0.5, 0.25))


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.outer = nn.Linear(4, 3)

    def forward(self, x, time, label):
        return self.outer(self.inner(x) + time[:, None] + label[:, None])


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def cast():
    networks = [Tiny().to("meta") for _ in range(3)]
    student, teacher, critic = (Denoiser(n, FLOW, Prediction("velocity")) for n in networks)
    return Networks(student, teacher, critic, adversary=Discriminator({"inner": PointHead(4)}).to("meta"))


@pytest.fixture
def batch():
    def there(*shape):
        return torch.zeros(*shape, device="meta")

    return Batch(
        SIZE,
        (3,),
        there(SIZE, 3),
        {"label": there(SIZE)},
        {"label": there(SIZE)},
        path=there(SIZE, 2, 3),
        times=torch.tensor([1.0, 0.0], dtype=torch.float64),
    )


def runs(term, cast, batch, rollout=None):
    made = (rollout or backward_simulation(CHAIN, each=True))(cast, batch, generator())
    assert made.clean.device.type == "meta"
    assert made.time.device.type == "cpu"
    loss, numbers = term(cast, batch, made, generator())
    assert loss.device.type == "meta"
    assert all(value.device.type == "meta" for value in numbers.values())
    loss.backward()


ROLLOUTS = [
    backward_simulation(CHAIN, each=True),
    backward_simulation(FRESH, each=True),
    backward_simulation(FRESH, fixed=True),
    backward_simulation(Chain(FRESH.times, 0.4), each=True),
    backward_simulation(CHAIN, last=True, through=True),
    noised_data_rollout(FRESH),
    random_schedule(2, 5),
]


@pytest.mark.parametrize("rollout", ROLLOUTS, ids=range(len(ROLLOUTS)))
def test_rollouts(rollout, cast, batch):
    runs(maximum_mean_discrepancy(kernel=gaussian_kernel(), unit=True), cast, batch, rollout)
    without_data = Batch(SIZE, (3,), condition=batch.condition)
    if not made_by(rollout, noised_data_rollout):
        assert rollout(cast, without_data, generator()).clean.device.type == "meta"


TAPS = NetworkFeatures("critic", ("inner",))
TERMS = [
    score_distillation(
        distribution_matching(3.0),
        uniform_times(),
        (error_normalizer(3.0), scale_weight(2, -2), reward_weight(lambda x, batch: x.sum(1))),
    ),
    score_distillation(distribution_matching(3.0), last_interval(), noising=onward),
    score_distillation(guidance_difference(), below_last_call(), (error_normalizer(),), active=between(0.4, 0.8)),
    score_distillation(score_identity(1.2, 2.0, -1.0), uniform_times(), (error_normalizer(),), slope=huber_gradient()),
    score_distillation(distribution_matching(2.0), uniform_times(), (density_ratio_weight("forward_kl"),), taps=TAPS),
    generator_loss(TAPS, uniform_times(), active=between(0.4, 0.8)),
    paired_regression(),
    mean_variance_penalty(),
    later_call(FRESH, (0.5, 0.25), generator_loss(TAPS, uniform_times())),
]


@pytest.mark.parametrize("term", TERMS, ids=range(len(TERMS)))
def test_terms_of_the_student(term, cast, batch):
    runs(term, cast, batch)


OTHERS = [
    denoising_loss(uniform_times()),
    denoising_loss(
        last_interval(), own=False, weights=(scale_weight(2, -2, 5.0),), noising=onward, importance="full", drop=0.5
    ),
    denoising_loss(uniform_times(), guidance=-1.0),
    discriminator_loss(TAPS, uniform_times(), penalty=1.0),
    discriminator_loss(TAPS, uniform_times(), train_source=True, active=between(0.4, 0.8)),
    later_call(FRESH, (0.25,), discriminator_loss(TAPS, uniform_times()), learn=False),
]


@pytest.mark.parametrize("term", OTHERS, ids=range(len(OTHERS)))
def test_terms_of_the_others(term, cast, batch):
    runs(term, cast, batch)
