"""Output errors and the corrections that fold into a plan, against constructed errors and an independent solver."""

import math

import pytest
import torch

from fewstep.errors import FewstepError, PlanError
from fewstep.executor import sample
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import VE, Process, RectifiedFlow, VPDiscrete
from fewstep.quant.corrections import OutputError, compare, output_errors, ptqd, stepbaq
from fewstep.solvers.dpm_solver import dpm_solver_pp_2m
from fewstep.solvers.first_order import ddim, euler
from fewstep.solvers.grids import Grid, given
from fewstep.testing.mixture import Mixture

VP = VPDiscrete.from_betas()
SHAPE = (3, 4, 4)
BIAS = torch.tensor([0.3, -0.2, 0.05]).view(3, 1, 1)


def full(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) + 0.1 * torch.cos(time)


def worse(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    return 1.15 * full(x, time) + BIAS


class Noisy:
    """Full-precision output plus noise of known size, new at each call."""

    def __init__(self, spread: float) -> None:
        self.spread, self.generator = spread, torch.Generator().manual_seed(0)

    def __call__(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return worse(x, time) + self.spread * torch.randn(x.shape, generator=self.generator)


def grid(steps: int = 4) -> Grid:
    return given(torch.linspace(900, 50, steps).tolist())


def errors(plan: Plan, variance: float, mean: float = 0.0) -> list[OutputError]:
    each = torch.full((3, 1, 1), mean, dtype=torch.float64)
    return [OutputError(each, variance, 0.0, each, variance) for _ in plan.rows]


def test_measured_parts_are_those_that_were_put_in() -> None:
    plan = ddim(VP, Prediction(), grid())
    found = output_errors(plan, full, Noisy(0.1), seeds=range(512), shape=SHAPE)
    assert len(found) == 4
    for error in found:
        assert error.slope == pytest.approx(0.15, abs=0.01)
        assert torch.allclose(error.bias.float(), BIAS, atol=0.02)
        assert error.residual == pytest.approx(0.01, rel=0.05)


def test_channels_of_packed_tokens_are_last() -> None:
    plan = ddim(VP, Prediction(), grid())
    bias = BIAS.view(1, 3)
    found = output_errors(plan, full, lambda x, t: full(x, t) + bias, seeds=range(4), shape=(16, 3), channels=-1)
    assert torch.allclose(found[0].mean.float(), bias, atol=1e-5)


def test_recorded_outputs_give_the_same_errors_as_running() -> None:
    plan = ddim(VP, Prediction(), grid())
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []

    def both(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        rows.append((full(x, time), worse(x, time)))
        return rows[-1][1]

    sample(plan, both, seeds=range(8), shape=SHAPE)
    truth, output = (torch.stack(parts) for parts in zip(*rows, strict=True))
    wanted = output_errors(plan, full, worse, seeds=range(8), shape=SHAPE)
    for found, expected in zip(compare(truth, output), wanted, strict=True):
        assert found.slope == pytest.approx(expected.slope)
        assert torch.allclose(found.bias, expected.bias)
        assert found.residual == pytest.approx(expected.residual, abs=1e-12)
    with pytest.raises(FewstepError, match="equal shapes"):
        compare(truth, output[:, :2])


@pytest.mark.parametrize("solver", [ddim, dpm_solver_pp_2m])
def test_ptqd_undoes_a_linear_error_exactly(solver) -> None:  # type: ignore[no-untyped-def]
    plan = solver(VP, Prediction(), grid())
    corrected = ptqd(plan, output_errors(plan, full, worse, seeds=range(8), shape=SHAPE))
    wanted = sample(plan, full, seeds=[5, 6], shape=SHAPE)
    assert not torch.allclose(sample(plan, worse, seeds=[5, 6], shape=SHAPE), wanted, atol=0.05)
    assert torch.allclose(sample(corrected, worse, seeds=[5, 6], shape=SHAPE), wanted, atol=1e-4)


def test_ptqd_takes_the_residual_from_the_sampler_noise() -> None:
    plan = ddim(VP, Prediction(), grid(), eta=1.0)
    corrected = ptqd(plan, output_errors(plan, full, Noisy(0.05), seeds=range(512), shape=SHAPE))
    for k, (before, after) in enumerate(zip(plan.rows[:-1], corrected.rows[:-1], strict=True)):
        assert 0 < float(after.noise) < float(before.noise)
        own = (float(after.output[k]) * 0.05) ** 2
        assert float(after.noise) ** 2 + own == pytest.approx(float(before.noise) ** 2, rel=0.005)
    flooded = ptqd(plan, errors(plan, 1e6))
    assert all(float(row.noise) == 0 for row in flooded.rows)


def test_ptqd_takes_falling_slopes_only_on_request() -> None:
    plan = ddim(VP, Prediction(), grid())
    each = torch.zeros(3, 1, 1, dtype=torch.float64)
    falling = [OutputError(each, 0.0, -0.2, each, 0.0)] * 4
    assert ptqd(plan, falling).rows[0].output == plan.rows[0].output
    assert ptqd(plan, falling, rising_only=False).rows[0].output[0] == pytest.approx(plan.rows[0].output[0] / 0.8)
    for slope in (-1.0, -0.966):  # the second would multiply outputs by 29
        with pytest.raises(PlanError, match="more than half"):
            ptqd(plan, [OutputError(each, 0.0, slope, each, 0.0)] * 4, rising_only=False)


@pytest.mark.parametrize(
    ("process", "prediction", "times", "solver"),
    [
        (VP, "epsilon", [900.0, 500.0, 0.0], ddim),
        (VP, "v_prediction", [900.0, 300.0, 0.0], ddim),
        (VP, "epsilon", [900.0, 500.0, 0.0], euler),
        (RectifiedFlow(), "velocity", [0.9, 0.5, 0.0], ddim),
        (VE(), "edm", [20.0, 2.0, 0.1], ddim),
    ],
)
def test_stepbaq_row_is_that_of_the_solver_from_the_noisier_time(
    process: Process,
    prediction: str,
    times: list[float],
    solver,  # type: ignore[no-untyped-def]
) -> None:
    kind = Prediction(prediction)
    plan = solver(process, kind, given(times[:2], times[2]))
    corrected = stepbaq(plan, errors(plan, 0.05, mean=0.3), process)
    extra = float(plan.rows[0].output[0]) ** 2 * 0.05
    assert float(corrected.rows[0].offset.mean()) == pytest.approx(-0.3 * float(plan.rows[0].output[0]))
    row = corrected.rows[1]
    before = plan.rows[1]
    level = math.sqrt(float(before.sigma) ** 2 + extra) / float(before.alpha)
    later = process.time(-math.log(level))
    assert later > times[1]
    assert float(row.network_time) == pytest.approx(process.network_time(later))
    reference = solver(process, kind, given([times[0], later], times[2])).rows[1]
    # the state of the reference is larger by the ratio of signal scales
    ratio = float(reference.alpha) / float(row.alpha)
    assert float(row.input_scale) == pytest.approx(float(reference.input_scale) * ratio)
    assert float(row.state[1]) == pytest.approx(float(reference.state[1]) * ratio, abs=1e-9)
    assert float(row.output[1]) == pytest.approx(float(reference.output[1]), abs=1e-9)


def test_stepbaq_without_error_changes_nothing() -> None:
    plan = ddim(VP, Prediction(), grid())
    same = stepbaq(plan, errors(plan, 0.0), VP)
    for before, after in zip(plan.rows, same.rows, strict=True):
        assert after.state == before.state
        assert after.output == before.output
        assert after.network_time == before.network_time


def test_stepbaq_repairs_independent_noise_when_steps_are_short() -> None:
    mixture = Mixture.line([0.5, 0.5], [-1.0, 1.0], [0.1, 0.1])
    exact = mixture.network(VP, Prediction())
    generator = torch.Generator().manual_seed(1)

    def low(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return exact(x, time) + 0.5 * torch.randn(x.shape, generator=generator)

    def spread(one: Plan, network) -> float:  # type: ignore[no-untyped-def]
        return float((sample(one, network, seeds=range(4000), shape=(1,)).abs() - 1).square().mean().sqrt())

    plan = ddim(VP, Prediction(), grid(20))
    corrected = stepbaq(plan, output_errors(plan, exact, low, seeds=range(512), shape=(1,), batch=512), VP)
    clean = spread(plan, exact)
    assert spread(corrected, low) - clean < 0.75 * (spread(plan, low) - clean)


def test_mistakes_are_named() -> None:
    plan = ddim(VP, Prediction(), grid())
    with pytest.raises(FewstepError):
        output_errors(plan, full, worse, seeds=[], shape=SHAPE)
    with pytest.raises(PlanError):
        ptqd(plan, errors(plan, 0.1)[:2])
    with pytest.raises(PlanError):
        stepbaq(dpm_solver_pp_2m(VP, Prediction(), grid()), errors(plan, 0.1), VP)
    with pytest.raises(PlanError):
        stepbaq(euler(VP, Prediction(), grid()), errors(plan, 0.1), RectifiedFlow())
