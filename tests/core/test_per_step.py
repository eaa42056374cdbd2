import dataclasses
import json
import math

import pytest
import torch
from scipy.integrate import quad

from fewstep.errors import PlanError
from fewstep.executor import sample
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPContinuous, VPDiscrete
from fewstep.solvers import Grid, dpm_solver_pp_2m, grids, sde_dpm_solver_pp, unipc
from fewstep.solvers.dpm_solver_v3 import dpm_solver_v3
from fewstep.solvers.per_step import Decision, per_step
from fewstep.solvers.statistics import ModelStatistics
from fewstep.solvers.taylor import phi
from fewstep.testing.mixture import Mixture
from tests.core.toys import golden, levels, run_from

EPSILON, VP = Prediction("epsilon"), VPContinuous()


def coefficients(plan):
    return [{n: v for n, v in row.coefficients() if v != 0} for row in plan.rows]


def same(ours, theirs, rel=1e-9):
    for mine, wanted in zip(coefficients(ours), coefficients(theirs), strict=True):
        assert mine == pytest.approx(wanted, rel=rel, abs=1e-12)


def grid_of(process, lam):
    times = process.time(torch.as_tensor(lam, dtype=torch.float64))
    return Grid(times[:-1], float(times[-1]))


LAM = [-2.1, -1.3, -0.9, 0.2, 1.0, 1.9, 2.05]

# --- against the other engine, and against closed forms -------------------------------------------------------------


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("process", [VP, RectifiedFlow(3.0), VE()], ids=repr)
def test_full_taylor_expansions_are_lagrange_interpolations(process, form, order, corrector):
    grid = grid_of(process, LAM)
    decisions = [Decision(order=order, form=form, corrector=corrector)] * len(grid)
    theirs = unipc(
        process, EPSILON, grid, order=order, form=form, rule="exact", corrector=corrector, lower_order_final=False
    )
    same(per_step(process, EPSILON, grid, decisions=decisions), theirs)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("order", [1, 2])
def test_stochastic_steps_are_those_of_the_sde_solver(order, tau):
    grid = grid_of(VP, LAM)
    decisions = [Decision(order=order, tau=tau)] * len(grid)
    theirs = sde_dpm_solver_pp(VP, EPSILON, grid, order=order, tau=tau, rule="exact", lower_order_final=False)
    same(per_step(VP, EPSILON, grid, decisions=decisions), theirs)


def test_relaxation_makes_the_midpoint_rule():
    """UniPC-bh2 is (h/2)(e^h - 1) / (e^h - 1 - h) times the exact first derivative (z = -h in the data form)."""
    grid = grid_of(VP, LAM)
    lam = VP.lam(torch.cat([grid.times, torch.tensor([grid.end]).double()]))
    decisions = [Decision(order=1)]
    for k in range(1, len(grid)):
        z = -float(lam[k + 1] - lam[k])
        ratio = z / 2 * math.expm1(z) / (math.expm1(z) - z)
        decisions.append(Decision(order=2, relax=(ratio - 1) / -z))
    theirs = dpm_solver_pp_2m(VP, EPSILON, grid, rule="bh2", lower_order_final=False)
    same(per_step(VP, EPSILON, grid, decisions=decisions), theirs)


def test_a_low_order_difference_takes_the_first_derivative_from_one_point():
    """Order 3 in the data form by hand: D_1 from the newest pair, D_2 from all three points."""
    grid = grid_of(VP, [-1.5, -0.8, 0.1, 0.9])
    plan = per_step(VP, Prediction("sample"), grid, decisions=[Decision(order=3, points=1)] * 3)
    lam = [-1.5, -0.8, 0.1, 0.9]
    h, near, far = lam[3] - lam[2], lam[2] - lam[1], lam[2] - lam[0]
    sigma, alpha = (float(f(grid.end)) for f in (VP.sigma, VP.alpha))
    first = alpha * (h - 1 + math.exp(-h))  # h^2 phi_2(-h)
    second = alpha * (h**2 / 2 - h + 1 - math.exp(-h))  # h^3 phi_3(-h)
    # D_2 = 2 [(q0 - q1) / near - (q1 - q2) / (far - near)] / far
    at_one = -first / near - second * 2 / far * (1 / near + 1 / (far - near))
    at_two = second * 2 / far / (far - near)
    row = plan.rows[2]
    assert row.output[1] == pytest.approx(at_one, rel=1e-10)
    assert row.output[0] == pytest.approx(at_two, rel=1e-10)
    assert sum(row.output.values()) == pytest.approx(alpha * -math.expm1(-h), rel=1e-12)
    assert row.state == pytest.approx({2: sigma / float(VP.sigma(float(grid.times[2])))}, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_phi_functions(k):
    """phi_k(z) = Int_0^1 e^{(1-u) z} u^{k-1} / (k-1)! du."""
    for z in (-30.0, -1.001, -0.999, -1e-9, 1e-9, 0.3, 0.999, 1.001, 5.0):
        wanted, _ = quad(lambda u, z=z: math.exp((1 - u) * z) * u ** (k - 1), 0, 1, epsabs=1e-14, epsrel=1e-13)
        found = float(phi(k, torch.tensor(z, dtype=torch.float64)))
        assert found == pytest.approx(wanted / math.factorial(k - 1), rel=1e-11)


# --- order, mixtures of choices ------------------------------------------------------------------------------------


def wavy():
    lam = torch.linspace(-3, 3, 20001).double()
    return ModelStatistics(lam, 0.5 + 0.4 * torch.sin(lam), 0.6 * torch.cos(2 * lam), 0.5 * torch.sin(lam + 1))


def error(steps, decide, seeds):
    """Largest error on the golden mixture, lambda -2 to 2, with `seeds` exact first states."""
    m, x = golden(), torch.linspace(-2, 2, 9).double().reshape(9, 1)
    lam = torch.linspace(-2, 2, steps + 1).double()
    decisions = [decide(k) for k in range(steps)]
    plan = per_step(VP, EPSILON, grid_of(VP, lam), decisions=decisions, statistics=wavy())
    scales = [levels(VP, VP.time(float(at))) for at in lam]
    exact = {0: x, **{k: m.flow(x, scales[0], scales[k]) for k in range(1, seeds + 1)}}
    out = run_from(plan, m.network(VP, EPSILON), exact)
    return float((out - m.flow(x, scales[0], scales[-1])).abs().max())


FORMS = ("noise", "data", "fitted")


@pytest.mark.parametrize("order", [2, 3, 4])
def test_forms_may_change_at_every_step_without_losing_the_order(order):
    coarse, fine = (error(n, lambda k: Decision(order=order, form=FORMS[k % 3]), order - 1) for n in (84, 168))
    assert math.log2(coarse / fine) > order - 0.2


def test_correctors_raise_the_order_from_any_start():
    def decide(k):
        return Decision(order=2, form=FORMS[k % 3], corrector=True)

    # the last state is not corrected: its error is one step of order 2, O(h^3)
    coarse, fine = (error(n, decide, 0) for n in (84, 168))
    assert math.log2(coarse / fine) > 3 - 0.25


def test_a_plan_of_mixed_choices_solves_one_point_of_data_exactly(tmp_path):
    choices = [
        Decision(1, "noise", corrector=True), Decision(2, "fitted", relax=0.0225), Decision(3, "data", points=1),
        Decision(4, "fitted", corrector=True), Decision(4, "noise", points=2, relax=-0.1), Decision(1, "data"),
    ]  # fmt: skip
    neutral = ModelStatistics(torch.linspace(-20, 20, 81), *(torch.full((81,), v) for v in (1.0, 0.0, 0.0)))
    point = Mixture.gaussian([0.7, -1.3], [0.0, 0.0])
    for process, prediction in ((VP, EPSILON), (RectifiedFlow(2.0), Prediction("velocity"))):
        plan = per_step(process, prediction, grids.uniform(process, 6), decisions=choices, statistics=neutral)
        start = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).double()
        if process == VP:
            start = float(plan.rows[0].alpha) * point.means + float(plan.rows[0].sigma) * start
        network = point.network(process, prediction)
        end = sample(plan, network, seeds=range(4), shape=(2,), state=start, dtype=torch.float64)
        torch.testing.assert_close(end, point.means.expand(4, 2), rtol=1e-9, atol=1e-9)
        file = tmp_path / f"{type(process).__name__}.json"
        plan.save(file)
        assert Plan.load(file) == plan
        again = [Decision(**d) for d in json.loads(json.dumps(plan.origin["decisions"]))]
        assert again == choices


def test_fitted_steps_are_those_of_dpm_solver_v3():
    grid = grid_of(VP, LAM)
    ours = per_step(VP, EPSILON, grid, statistics=wavy(), decisions=[Decision(3, "fitted", corrector=True)] * len(grid))
    theirs = dpm_solver_v3(
        VP, EPSILON, grid, statistics=wavy(), order=3, corrector="full", corrector_pseudo=False,
        lower_order_final=False,
    )  # fmt: skip
    same(ours, theirs)


def test_noise_and_correctors_keep_the_marginals_of_one_point():
    """Mean and variance carried through all rows: at every level those of the process."""
    choices = [
        Decision(2, tau=1.0), Decision(2, tau=0.7, corrector=True), Decision(2), Decision(3, tau=3.0, corrector=True),
        Decision(1, "noise"), Decision(2, tau=0.3),
    ]  # fmt: skip
    grid = grid_of(VP, LAM)
    plan = per_step(VP, Prediction("sample"), grid, decisions=choices)
    # data at the point c: the output is c everywhere, so every state is a multiple of c plus a Gaussian
    deviations = {0: {"z": float(plan.rows[0].sigma)}}
    means = {0: float(plan.rows[0].alpha)}
    for k, row in enumerate(plan.rows):
        mixed = {}
        for j, c in row.state.items():
            for name, value in deviations[j].items():
                mixed[name] = mixed.get(name, 0.0) + c * value
        mixed[f"z{k}"] = row.noise
        deviations[k + 1] = mixed
        means[k + 1] = sum(c * means[j] for j, c in row.state.items()) + sum(row.output.values())
        last = k + 1 == plan.steps
        alpha = plan.final_alpha if last else plan.rows[k + 1].alpha
        sigma = plan.final_sigma if last else plan.rows[k + 1].sigma
        assert means[k + 1] == pytest.approx(alpha, rel=1e-10)
        assert math.sqrt(sum(v**2 for v in mixed.values())) == pytest.approx(sigma, rel=1e-10)


# --- published schedules -----------------------------------------------------------------------------------------

SD = VPDiscrete.from_betas("scaled_linear", beta_start=0.00085, beta_end=0.012)
SCHEDULES = {
    3: ((1, 0.5984, 0.4132, 0.0011), [Decision(1), Decision(2, "fitted", relax=0.0225), Decision(1, "fitted")]),
    5: (
        (1, 0.735, 0.5234, 0.3162, 0.2044, 0.0014),
        [
            Decision(1, "noise"), Decision(2, "fitted", corrector=True), Decision(3),
            Decision(4, "fitted", corrector=True), Decision(1, "fitted"),
        ],
    ),
    8: (
        (1, 0.8719, 0.7738, 0.7273, 0.556, 0.4246, 0.1925, 0.0155, 0.0011),
        [Decision(p) for p in (1, 2, 3, 1, 2, 2, 1, 2)],
    ),
}  # fmt: skip
"""Solver schedules found for Stable Diffusion (arXiv 2312.07243, its repository); the forms at 8 were not given."""


@pytest.mark.parametrize("calls", [3, 5, 8])
def test_published_schedules_are_plans(calls):
    times, decisions = SCHEDULES[calls]
    labels = torch.tensor(times, dtype=torch.float64) * 1000 - 1
    lam = torch.linspace(-3, 4, 141)
    fitted = ModelStatistics(lam, torch.sigmoid(-2 * lam), 0.2 * torch.tanh(-lam), 0 * lam)
    grid = Grid(labels[:-1], float(labels[-1]))
    plan = per_step(SD, EPSILON, grid, decisions=decisions, statistics=fitted)
    assert plan.steps == calls
    for k, (row, decision) in enumerate(zip(plan.rows, decisions, strict=True)):
        corrected = k > 0 and decisions[k - 1].corrector
        reach = decisions[k - 1].order + 1 if corrected else 0  # a corrector reads its own base and history
        assert set(row.output) == set(range(k, k - max(decision.order, reach), -1))
    # and they integrate: nearer to the flow of the mixture than one large step
    m = golden()
    scales = [levels(SD, t) for t in (labels[0], labels[-1])]
    x = scales[0][1] * torch.linspace(-1.5, 1.5, 21).double().reshape(-1, 1)
    wanted = m.flow(x, scales[0], scales[1])
    network = m.network(SD, EPSILON)
    found = sample(plan, network, seeds=range(21), shape=(1,), state=x, dtype=torch.float64)
    leap = per_step(SD, EPSILON, Grid(labels[:1], float(labels[-1])), decisions=[Decision(1)])
    worse = sample(leap, network, seeds=range(21), shape=(1,), state=x, dtype=torch.float64)
    assert (found - wanted).square().mean() < 0.7 * (worse - wanted).square().mean()


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"order": 5}, "order"), ({"form": "dat"}, "Did you mean 'data'"), ({"points": 3}, "points"),
        ({"points": 0}, "points"), ({"relax": math.nan}, "relax"), ({"tau": -1.0}, "tau"), ({"tau": math.inf}, "tau"),
        ({"tau": 1.0, "form": "noise"}, "noise"),
    ],
)  # fmt: skip
def test_impossible_decisions_are_named(change, named):
    with pytest.raises(PlanError, match=named):
        Decision(**change)


def test_mistakes_of_the_plan_are_named():
    grid = grid_of(VP, LAM)
    with pytest.raises(PlanError, match="6 steps"):
        per_step(VP, EPSILON, grid, decisions=[Decision()] * 5)
    with pytest.raises(PlanError, match="need statistics"):
        per_step(VP, EPSILON, grid, decisions=[Decision(form="fitted")] * 6)
    assert dataclasses.asdict(Decision()) == {
        "order": 2, "form": "data", "points": None, "relax": 0.0, "corrector": False, "tau": 0.0,
    }  # fmt: skip


# --- noise levels per row of the SDE solver ---------------------------------------------------------------------------


def test_one_noise_level_per_row(tmp_path):
    grid, levels_ = grid_of(VP, LAM), [0.0, 0.5, 1.0, 0.0, 2.0, 0.3]
    plan = sde_dpm_solver_pp(VP, EPSILON, grid, tau=levels_, rule="exact", lower_order_final=False)
    same(plan, per_step(VP, EPSILON, grid, decisions=[Decision(2, tau=t) for t in levels_]))
    assert [row.noise == 0 for row in plan.rows] == [t == 0 for t in levels_]
    assert plan.origin["tau"] == levels_
    # one number for all rows is that number in every row, infinity included
    for tau in (0.7, math.inf):
        same(
            sde_dpm_solver_pp(VP, EPSILON, grid, tau=[tau] * 6),
            sde_dpm_solver_pp(VP, EPSILON, grid, tau=tau),
        )
    mixed = sde_dpm_solver_pp(VP, EPSILON, grid, tau=[math.inf, *levels_[1:]])
    mixed.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == mixed
    with pytest.raises(PlanError, match="each of 6 rows"):
        sde_dpm_solver_pp(VP, EPSILON, grid, tau=[0.5] * 5)
    with pytest.raises(PlanError, match="negative"):
        sde_dpm_solver_pp(VP, EPSILON, grid, tau=[0.5] * 5 + [-0.1])


@pytest.mark.parametrize("end", [None, 0.05])
def test_noise_levels_can_be_learned(end):
    grid = grids.given([0.9, 0.6, 0.35, 0.1], end=end)
    network = lambda x, time: torch.tanh(1.3 * x + 0.2)  # noqa: E731

    def loss(tau):
        plan = sde_dpm_solver_pp(VP, EPSILON, grid, tau=tau)
        start = torch.linspace(-2, 2, 5).double().reshape(5, 1)
        return sample(plan, network, seeds=range(5), shape=(1,), state=start, dtype=torch.float64).square().sum()

    tau = torch.tensor([0.4, 1.0, 0.7, 0.2], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(tau), tau)
    with torch.no_grad():
        steps = 1e-6 * torch.eye(4).double()
        expected = torch.stack([(loss(tau + d) - loss(tau - d)) / 2e-6 for d in steps])
    assert bool((gradient[:3].abs() > 1e-4).all())
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
    at_zero = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(at_zero), at_zero)
    assert bool(gradient.isfinite().all())
