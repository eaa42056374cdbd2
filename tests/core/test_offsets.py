import dataclasses

import torch

from fewstep.executor import sample
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import VPDiscrete
from fewstep.solvers import ddim, grids
from tests.core.toys import SHAPE, run_diffusers, toy

PROCESS = VPDiscrete.from_betas()
IMAGE = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(SHAPE)


def with_offsets(offset=0.25, prior=IMAGE):
    """DDIM in three rows; the second adds a constant, and the first state has a mean."""
    plan = ddim(PROCESS, Prediction(), grids.trailing(PROCESS, 3))
    rows = [dataclasses.replace(row, offset=offset if k == 1 else 0.0) for k, row in enumerate(plan.rows)]
    return plan.replace(rows=tuple(rows), prior_offset=prior)


def by_hand(plan, seeds):
    """The definition of the plan, written out."""
    x = torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in seeds]).double()
    x = x * plan.prior_scale + plan.prior_offset
    for k, row in enumerate(plan.rows):
        x = row.state[k] * x + row.output[k] * toy(x, torch.tensor(row.network_time)) + row.offset
    return x


def test_constants_are_added_to_the_state_and_to_the_prior():
    for offset in (0.25, IMAGE / 3):
        plan = with_offsets(offset)
        ours = sample(plan, toy, seeds=[0, 5], shape=SHAPE, dtype=torch.float64)
        assert torch.allclose(ours, by_hand(plan, [0, 5]), atol=1e-12)


def test_a_pipeline_starts_at_the_mean_of_the_prior_too():
    plan = with_offsets()
    theirs = run_diffusers(PlanScheduler.from_plan(plan), 3, toy, [0, 5])
    assert torch.allclose(theirs, sample(plan, toy, seeds=[0, 5], shape=SHAPE), atol=1e-5)


def test_constants_survive_the_file(tmp_path):
    plan = with_offsets(IMAGE / 7)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert torch.equal(again.rows[1].offset, IMAGE / 7)


def test_image_to_image_forgets_the_prior():
    rest = with_offsets().starting_at(1)
    assert rest.prior_offset == 0.0
    assert rest.rows[0].offset == 0.25


def test_gradients_flow_through_what_the_network_is_told():
    told = torch.tensor([900.0, 500.0, 200.0], dtype=torch.float64, requires_grad=True)

    def loss(times, run):
        plan = ddim(PROCESS, Prediction(), grids.trailing(PROCESS, 3))
        rows = [dataclasses.replace(r, network_time=t) for r, t in zip(plan.rows, times, strict=True)]
        return run(plan.replace(rows=tuple(rows))).square().mean()

    def executor(plan):
        return sample(plan, toy, seeds=[3], shape=SHAPE, dtype=torch.float64)

    def pipeline(plan):
        return run_diffusers(PlanScheduler.from_plan(plan), 3, toy, [3])

    for run in (executor, pipeline):
        (slope,) = torch.autograd.grad(loss(told, run), told)
        for k in range(3):
            h = torch.zeros(3, dtype=torch.float64)
            h[k] = 1.0
            numeric = (loss((told + h).detach(), executor) - loss((told - h).detach(), executor)) / 2
            assert abs(slope[k] - numeric) < 1e-3 * (1e-3 + numeric.abs())
