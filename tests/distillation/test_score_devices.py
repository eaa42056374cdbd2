"""Times stay on the CPU and states on the device: every part runs with states on another device than the CPU.

The device is torch's `meta`, which computes shapes alone and refuses to mix with the CPU as CUDA does.
"""

import pytest
import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.adversary import DiscriminatorLoss, GeneratorLoss
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.discriminator import Discriminator, NetworkFeatures, PointHead
from fewstep.distillation.moments import gaussian_kernel, maximum_mean_discrepancy
from fewstep.distillation.parts import (
    DenoisingLoss,
    DensityRatioWeight,
    DistributionMatching,
    ErrorNormalizer,
    GuidanceDifference,
    MeanVariancePenalty,
    PairedRegression,
    RewardWeight,
    ScaleWeight,
    ScoreDistillation,
    ScoreIdentity,
    huber_gradient,
    onward,
)
from fewstep.distillation.rollout import BackwardSimulation, NoisedData, RandomSchedule, between
from fewstep.distillation.score.relay import LaterCall
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
    made = (rollout or BackwardSimulation(CHAIN, each=True))(cast, batch, generator())
    assert made.clean.device.type == "meta"
    assert made.time.device.type == "cpu"
    loss, numbers = term(cast, batch, made, generator())
    assert loss.device.type == "meta"
    assert all(value.device.type == "meta" for value in numbers.values())
    loss.backward()


ROLLOUTS = [
    BackwardSimulation(CHAIN, each=True),
    BackwardSimulation(FRESH, each=True),
    BackwardSimulation(FRESH, fixed=True),
    BackwardSimulation(Chain(FRESH.times, 0.4), each=True),
    BackwardSimulation(CHAIN, last=True, through=True),
    NoisedData(FRESH),
    RandomSchedule(2, 5),
]


@pytest.mark.parametrize("rollout", ROLLOUTS, ids=range(len(ROLLOUTS)))
def test_rollouts(rollout, cast, batch):
    runs(maximum_mean_discrepancy(kernel=gaussian_kernel(), unit=True), cast, batch, rollout)
    without_data = Batch(SIZE, (3,), condition=batch.condition)
    if not isinstance(rollout, NoisedData):
        assert rollout(cast, without_data, generator()).clean.device.type == "meta"


TAPS = NetworkFeatures("critic", ("inner",))
TERMS = [
    ScoreDistillation(
        DistributionMatching(3.0),
        uniform_times(),
        (ErrorNormalizer(3.0), ScaleWeight(2, -2), RewardWeight(lambda x, batch: x.sum(1))),
    ),
    ScoreDistillation(DistributionMatching(3.0), last_interval(), noising=onward),
    ScoreDistillation(GuidanceDifference(), below_last_call(), (ErrorNormalizer(),), active=between(0.4, 0.8)),
    ScoreDistillation(ScoreIdentity(1.2, 2.0, -1.0), uniform_times(), (ErrorNormalizer(),), slope=huber_gradient()),
    ScoreDistillation(DistributionMatching(2.0), uniform_times(), (DensityRatioWeight("forward_kl"),), taps=TAPS),
    GeneratorLoss(TAPS, uniform_times(), active=between(0.4, 0.8)),
    PairedRegression(),
    MeanVariancePenalty(),
    LaterCall(FRESH, (0.5, 0.25), GeneratorLoss(TAPS, uniform_times())),
]


@pytest.mark.parametrize("term", TERMS, ids=range(len(TERMS)))
def test_terms_of_the_student(term, cast, batch):
    runs(term, cast, batch)


OTHERS = [
    DenoisingLoss(uniform_times()),
    DenoisingLoss(
        last_interval(), own=False, weights=(ScaleWeight(2, -2, 5.0),), noising=onward, importance="full", drop=0.5
    ),
    DenoisingLoss(uniform_times(), guidance=-1.0),
    DiscriminatorLoss(TAPS, uniform_times(), penalty=1.0),
    DiscriminatorLoss(TAPS, uniform_times(), train_source=True, active=between(0.4, 0.8)),
    LaterCall(FRESH, (0.25,), DiscriminatorLoss(TAPS, uniform_times()), learn=False),
]


@pytest.mark.parametrize("term", OTHERS, ids=range(len(OTHERS)))
def test_terms_of_the_others(term, cast, batch):
    runs(term, cast, batch)
