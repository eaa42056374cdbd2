"""Runs that begin in the middle of a plan, from states that were noted, are known exactly, or come from elsewhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fewstep.errors import FewstepError, NonFiniteError, PlanError
from fewstep.executor import sample
from fewstep.plan import RunState
from fewstep.prediction import Prediction
from fewstep.process import VPContinuous, VPDiscrete
from fewstep.solvers import SOLVERS, Grid, dpm_solver_pp_2m, grids
from tests.core.toys import SHAPE, golden, levels, toy

EPSILON = Prediction("epsilon")
PROCESS = VPDiscrete.from_betas("scaled_linear", beta_start=0.00085, beta_end=0.012)
SEEDS = [3, 1, 4]


def plan_of(name):
    return SOLVERS[name](PROCESS, EPSILON, grids.given([900.0, 620.0, 350.0, 120.0], end=0.0))


class Counted:
    def __init__(self, network=toy):
        self.network, self.calls = network, 0

    def __call__(self, x, time):
        self.calls += 1
        return self.network(x, time)


def noted(plan, **options):
    """The run states after every row, and the end."""
    kept = []
    final = sample(plan, toy, seeds=SEEDS, shape=SHAPE, callback=lambda p: kept.append(p.run_state), **options)
    return kept, final


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_rows_to_k_and_the_rest_are_the_whole_run_bit_for_bit(name):
    """Multistep, multi-stage and stochastic solvers: history and noise go on where they were."""
    plan = plan_of(name)
    whole, final = noted(plan)
    for k in range(1, plan.steps):
        first = []
        reached = sample(
            plan, toy, seeds=SEEDS, shape=SHAPE, until=k, callback=lambda p, at=first: at.append(p.run_state)
        )
        start = first[-1]
        assert (start.row, len(first)) == (k, k)
        assert torch.equal(reached, whole[k - 1].states[k])
        network = Counted()
        assert torch.equal(sample(plan, network, seeds=SEEDS, shape=SHAPE, start=start), final)
        assert network.calls == plan.steps - k  # nothing is asked again


@pytest.mark.parametrize("name", ["lcm", "euler_ancestral", "ddim"])
def test_a_run_from_given_first_states_continues_with_its_own_noise(name):
    """Such a run has drawn no first state, so its noise is another than that of a run which has."""
    plan, state = plan_of(name), torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    kept, final = noted(plan, state=state)
    for start in kept[:-1]:
        assert torch.equal(sample(plan, toy, seeds=SEEDS, shape=SHAPE, start=start), final)


def test_a_continued_run_may_be_continued():
    plan = plan_of("sde_dpm_solver_pp")
    kept, final = noted(plan)
    second = []
    options = {"seeds": SEEDS, "shape": SHAPE}
    sample(plan, toy, start=kept[0], until=2, callback=lambda p: second.append(p.run_state), **options)
    assert second[0].row == 2
    assert torch.equal(sample(plan, toy, start=second[0], **options), final)


def test_rows_with_a_hook_keep_their_treated_outputs():
    plan = plan_of("dpm_solver_pp_2m")
    plan = plan.replace(rows=tuple(dataclasses.replace(row, hook="clip_sample:0.1") for row in plan.rows))
    kept, final = noted(plan)
    plain = sample(plan_of("dpm_solver_pp_2m"), toy, seeds=SEEDS, shape=SHAPE)
    assert not torch.allclose(final, plain)
    assert torch.equal(sample(plan, toy, seeds=SEEDS, shape=SHAPE, start=kept[1]), final)
    states = {1: kept[0].states[1], 2: kept[1].states[2]}  # the output of row 1 is asked again, and treated again
    assert torch.equal(sample(plan, toy, seeds=SEEDS, shape=SHAPE, start=RunState(states)), final)


@pytest.mark.parametrize("solver", ["dpm_solver_pp_3m", "unipc", "ipndm"])
def test_exact_early_states_show_the_order_that_a_low_order_start_hides(solver):
    """The exact flow of a mixture gives the first states; without them the start dominates the error."""
    mixture, process, x = golden(), VPContinuous(), torch.linspace(-2, 2, 9).double().reshape(9, 1)
    options = {"order": 3} if solver == "unipc" else {}

    def error(count, exact):
        lam = torch.linspace(-2, 2, count + 1).double()
        times = process.time(lam)
        plan = SOLVERS[solver](process, EPSILON, Grid(times[:-1], float(times[-1])), **options)
        scales = [levels(process, t) for t in times]
        states = {k: mixture.flow(x, scales[0], scales[k]) if k else x for k in range(exact + 1)}
        network = Counted(mixture.network(process, EPSILON))
        start, dtype = RunState(states), torch.float64
        out = sample(plan, network, seeds=range(9), shape=(1,), start=start, dtype=dtype)
        assert network.calls <= count  # early outputs that nobody reads are not asked
        return float((out - mixture.flow(x, scales[0], scales[-1])).abs().max())

    assert error(40, 3) < error(40, 0)


def test_a_single_state_in_the_middle_of_a_first_order_plan_is_the_rest_of_the_plan():
    plan, x = plan_of("ddim"), torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    rest = sample(plan.starting_at(2), toy, seeds=SEEDS, shape=SHAPE, state=x)
    assert torch.equal(sample(plan, toy, seeds=SEEDS, shape=SHAPE, start=RunState({2: x})), rest)


def test_gradients_reach_early_states():
    x = torch.zeros(3, *SHAPE, requires_grad=True)
    out = sample(plan_of("ddim"), toy, seeds=SEEDS, shape=SHAPE, start=RunState({1: x}))
    assert torch.autograd.grad(out.sum(), x)[0].abs().sum() > 0


# --- mistakes ---------------------------------------------------------------------------------------------------

X = torch.zeros(3, *SHAPE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": RunState({2: X})}, "rows from 2 on read the output of row 1, which is not given"),
        ({"start": RunState({4: X})}, "rows 0 to 3 to start at"),
        ({"start": RunState({-1: X, 1: X})}, "rows 0 to 3 to start at"),
        ({"start": RunState({1: X[:2]})}, "the state of row 1 has another shape"),
        ({"start": RunState({1: X}, {0: X[:, :1]})}, "the output of row 0 has another shape"),
        ({"start": RunState({2: X}, {1: X}), "until": 2}, "no row is left to run"),
        ({"until": 0}, "no row is left to run"),
        ({"until": 5}, "no row is left to run"),
        ({"start": RunState({0: X}), "state": X}, "not with both"),
    ],
)
def test_mistakes(options, message):
    plan = dpm_solver_pp_2m(PROCESS, EPSILON, grids.given([900.0, 620.0, 350.0, 120.0], end=0.0))
    with pytest.raises(FewstepError, match=message):
        sample(plan, toy, seeds=SEEDS, shape=SHAPE, **options)


def test_a_start_without_a_state_is_refused():
    with pytest.raises(PlanError, match="needs the state"):
        RunState({}, {0: X})


def test_nan_of_a_network_that_is_asked_early_is_named():
    plan = plan_of("dpm_solver_pp_2m")
    early = float(plan.rows[1].network_time)

    def network(x, time):
        return x * float("nan") if float(time) == early else toy(x, time)

    with pytest.raises(NonFiniteError, match="in row 1"):
        sample(plan, network, seeds=SEEDS, shape=SHAPE, start=RunState({1: X, 2: X}))
