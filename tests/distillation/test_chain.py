"""A student's chain as a plan, as a roll-out and as a continuation: the same samples from the same noise."""

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.distillation import chain as module
from fewstep.distillation.chain import evenly
from fewstep.distillation.core import Batch
from fewstep.executor import sample
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPDiscrete

CASES = [(VPDiscrete.from_betas(), "epsilon"), (RectifiedFlow(3.0), "velocity"), (VE(), "edm")]
SHAPE, STEPS = (3,), 4

pytestmark = [
    pytest.mark.parametrize("fresh", [0.0, 0.3, 1.0]),
    pytest.mark.parametrize(("process", "kind"), CASES, ids=[kind for _, kind in CASES]),
]


def student_of(process, kind):
    """A network that is linear in nothing, so that a wrong state or time anywhere shows in the samples."""
    return Denoiser(lambda x, time: torch.sin(1.3 * x + 0.01 * time.reshape(-1, 1).to(x)), process, Prediction(kind))


def normal(generator):
    return torch.randn(1, *SHAPE, generator=generator).double()


@pytest.mark.parametrize("seed", range(3))
def test_the_plan_makes_the_samples_of_the_roll_out(process, kind, fresh, seed):
    student, steps = student_of(process, kind), evenly(process, STEPS, fresh)
    plan = steps.plan(process, student.prediction)
    saved = sample(plan, student.network, seeds=[seed], shape=SHAPE, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    trained = steps.sample(student, normal(generator), None, generator)
    assert torch.allclose(saved, trained, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("call", range(STEPS))
def test_finishing_after_a_call_makes_the_samples_of_the_whole_chain(process, kind, fresh, call, monkeypatch):
    student, steps = student_of(process, kind), evenly(process, STEPS, fresh)
    generator, batch = torch.Generator().manual_seed(5), Batch(1, SHAPE)
    first, between, other = normal(generator), [normal(generator) for _ in range(STEPS - 1)], normal(generator)

    def draws(noises):
        left = iter(noises)
        monkeypatch.setattr(module, "noise_like", lambda shape, generator, like: next(left))

    draws(between)
    whole = steps.sample(student, first, None, generator)
    draws(between)
    stopped = steps.roll_out(student, batch, first, torch.tensor([call]), generator)
    # the step out of the call has its own draw; the walk from there draws for the steps before it too, unused
    draws([*between[call : call + 1], *[other] * (call + 1), *between[call + 1 :]])
    finished = steps.finish(student, batch, stopped, generator)
    assert torch.allclose(finished, whole, atol=1e-12)
    assert torch.equal(finished, stopped.clean) == (call == STEPS - 1)
