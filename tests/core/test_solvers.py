import importlib
import inspect
import pkgutil
import re

import diffusers as d
import numpy as np
import pytest
import torch

from fewstep import solvers
from fewstep.errors import PlanError
from fewstep.executor import sample
from fewstep.plan.history import History
from fewstep.prediction import Prediction
from fewstep.process import VE, Cosine, General, RectifiedFlow, VPContinuous, VPDiscrete
from fewstep.solvers import FACTS, PARAMETRIC, SOLVERS, Grid, SolverFacts, grids, registry, solver
from fewstep.testing.mixture import Mixture
from tests.core.toys import SHAPE, STABLE_DIFFUSION, departure, golden, levels, run_diffusers, run_from, toy

EPSILON = Prediction("epsilon")
FULL_ORDER = {
    name: {"lower_order_final": False}
    for name in ("dpm_solver", "dpm_solver_pp_2m", "dpm_solver_pp_3m", "unipc", "deis_log_rho")
}
FULL_ORDER["unipc"]["correct_from"] = 2  # the state seeded exactly needs no correction
"""Options under which a solver does not lower its order at the end."""

DISCRETE = VPDiscrete.from_betas("scaled_linear", beta_start=0.00085, beta_end=0.012)


def seeded(process):
    """A grid valid for every registered solver."""
    return grids.given([900.0, 620.0, 350.0, 120.0], end=0.0)


DETERMINISTIC = [n for n, f in SOLVERS.items() if not f(DISCRETE, EPSILON, seeded(DISCRETE)).stochastic]
STOCHASTIC = [n for n in SOLVERS if n not in DETERMINISTIC]

# --- parity with diffusers: both loops run on a nonlinear network ------------------------------------------

PARITY = [
    ("ddim", d.DDIMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}, 4, grids.trailing, {}),
    ("ddim", d.DDIMScheduler, {"clip_sample": False, "timestep_spacing": "trailing"}, 8, grids.trailing, {"eta": 0.5}),
    ("euler", d.EulerDiscreteScheduler, {"timestep_spacing": "trailing"}, 5, grids.trailing, {}),
    ("euler_ancestral", d.EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"}, 4, grids.trailing, {}),
    ("dpm_solver_pp_2m", d.DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}, 8, grids.trailing, {}),
    ("dpm_solver_pp_2m", d.DPMSolverMultistepScheduler, {"timestep_spacing": "trailing"}, 20, grids.trailing, {}),
    ("lcm", d.LCMScheduler, {}, 4, grids.distilled, {}),
    ("tcd", d.TCDScheduler, {}, 4, lambda p, n: grids.distilled(p, n, end=0.0), {"eta": 0.3}),
    ("tcd", d.TCDScheduler, {}, 2, lambda p, n: grids.distilled(p, n, end=0.0), {"eta": 0.0}),
]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("name", "theirs", "config", "steps", "grid", "settings"), PARITY)
def test_same_images_as_the_diffusers_scheduler(name, theirs, config, steps, grid, settings, kind):
    if kind == "sample" and name.startswith("euler"):
        pytest.skip("diffusers' Euler refuses data predictions")
    scheduler = theirs(prediction_type=kind, **STABLE_DIFFUSION, **config)
    process = VPDiscrete.from_scheduler(scheduler)
    plan = SOLVERS[name](process, Prediction(kind), grid(process, steps), **settings)
    expected = run_diffusers(scheduler, steps, toy, [1, 2], step=settings)
    assert departure(sample(plan, toy, seeds=[1, 2], shape=SHAPE), expected) < 1e-5


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler_is_ddim_in_a_rectified_flow(shift):
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(5)
    process = RectifiedFlow(shift)
    sigmas = scheduler.sigmas[:-1].double()
    times = process.from_network_time(1000 * sigmas)
    plan = SOLVERS["ddim"](process, Prediction("velocity"), Grid(times))
    ours = sample(plan, toy, seeds=[3], shape=SHAPE)
    assert departure(ours, run_diffusers(scheduler, 5, toy, [3])) < 1e-5
    assert [row.output[k] for k, row in enumerate(plan.rows)] == pytest.approx(
        scheduler.sigmas.diff().double().tolist(), abs=1e-7
    )


def test_leading_grid_and_final_alpha_of_old_models():
    scheduler = d.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **STABLE_DIFFUSION)
    process = VPDiscrete.from_scheduler(scheduler)
    plan = SOLVERS["ddim"](process, EPSILON, grids.leading(process, 5, 1, end=0.0))
    assert departure(sample(plan, toy, seeds=[0], shape=SHAPE), run_diffusers(scheduler, 5, toy, [0])) < 1e-5


# --- every registered solver ------------------------------------------------------------------------------

PROCESSES = [DISCRETE, VPContinuous(), Cosine(), RectifiedFlow(3.0), VE()]
CONTINUOUS_KINDS = ["epsilon", "sample", "v_prediction", "velocity", "score", "edm"]


def grid_on(process, steps, end=True):
    """Falling times well inside the process, and an end that is not clean."""
    times = torch.linspace(0.9, 0.1, steps + 1).double() * process.noisiest
    return Grid(times[:-1], float(times[-1]))


def usable(name, process):
    return isinstance(process, VPDiscrete) or not FACTS[name].discrete


def test_every_solver_states_its_facts():
    assert set(FACTS) == {*SOLVERS, *PARAMETRIC}
    assert {name for name in SOLVERS if FACTS[name].stochastic} == set(STOCHASTIC)
    for name, solve in SOLVERS.items():
        steps, times, calls = solve(DISCRETE, EPSILON, seeded(DISCRETE)).steps, len(seeded(DISCRETE)), FACTS[name].calls
        assert calls * (times - 1) < steps <= calls * times, name


def functions_that_build_plans():
    """Every public function (process, prediction, grid, ...) -> Plan of the package, by name."""
    modules = [importlib.import_module(m.name) for m in pkgutil.iter_modules(solvers.__path__, "fewstep.solvers.")]
    found = {f for module in modules for f in vars(module).values() if inspect.isfunction(f) and f.__name__[0] != "_"}
    starts = {f: list(inspect.signature(f).parameters)[:3] for f in found if f.__module__.startswith("fewstep.solvers")}
    return {f.__name__: f for f, names in starts.items() if names == ["process", "prediction", "grid"]}


def test_every_solver_of_the_package_is_registered_and_shows_its_equation_and_source():
    found = functions_that_build_plans()
    assert found == {**SOLVERS, **PARAMETRIC}
    for name, solve in found.items():
        assert re.search(r"^ +[xy]_\{?[ks]\S* += ", solve.__doc__, re.M), name
        assert FACTS[name].source.removeprefix("arXiv ") in solve.__doc__, name


def test_one_decorator_is_all_that_a_new_solver_needs(monkeypatch):
    monkeypatch.setattr(registry.KNOWN, "own", dict(registry.KNOWN.own))

    @solver(order=1, source="a test", calls=2)
    def leap(process, prediction, grid):
        raise NotImplementedError

    assert registry.SOLVERS["leap"] is leap
    assert registry.FACTS["leap"] == SolverFacts(1, "a test", calls=2)

    def another(process, prediction, grid):
        raise NotImplementedError

    another.__name__ = "ddim"
    with pytest.raises(ValueError, match="ddim"):
        solver(order=1, source="a test")(another)


def combinations():
    """Every solver, process and kind of prediction; each solver on each process with two kinds, all six over the five
    processes, are what `make test` runs."""
    for i, name in enumerate(DETERMINISTIC):
        for j, process in enumerate(PROCESSES):
            for k, kind in enumerate(CONTINUOUS_KINDS):
                marks = () if (i + j + k) % 3 == 0 else pytest.mark.thorough
                yield pytest.param(name, process, kind, marks=marks, id=f"{name}-{process!r}-{kind}")


@pytest.mark.parametrize(("name", "process", "kind"), combinations())
def test_sum_rule_one_point_of_data_is_solved_exactly(name, process, kind):
    """If all data is one point c, every consistent solver moves alpha c + sigma e to alpha' c + sigma' e exactly."""
    if not usable(name, process):
        pytest.skip("a solver of discrete processes")
    grid, prediction = grid_on(process, 4), Prediction(kind)
    plan = SOLVERS[name](process, prediction, grid)
    point = Mixture.gaussian([0.7, -1.3], [0.0, 0.0])
    unit = plan.rows[0].alpha / process.alpha(float(grid.times[0]))  # sigma-space plans rescale the state
    noise = torch.tensor([[0.4, -0.9]]).double()
    alpha, sigma = levels(process, grid.times[0])
    start = unit * (alpha * point.means + sigma * noise)
    end = sample(plan, point.network(process, prediction), seeds=[0], shape=(2,), state=start, dtype=torch.float64)
    expected = plan.final_alpha * point.means + plan.final_sigma * noise
    torch.testing.assert_close(end, expected, rtol=1e-9, atol=1e-9)
    ratio = process.sigma(grid.end) / process.alpha(grid.end)
    assert plan.final_sigma / plan.final_alpha == pytest.approx(ratio, rel=1e-9)


def error(name, process, steps, prediction=EPSILON, seeds=0, settings=None):
    """Largest error on the golden mixture, lambda from -2 to 2 uniformly (solver protocol of the papers' digests).

    The first `seeds` new states are replaced by exact ones: a low-order start would hide any order above 2.
    """
    m, x = golden(), torch.linspace(-2, 2, 9).double().reshape(9, 1)
    lam = torch.linspace(-2, 2, steps + 1).double()
    times = process.time(lam)
    plan = SOLVERS[name](process, prediction, Grid(times[:-1], float(times[-1])), **(settings or {}))
    unit = plan.rows[0].alpha / process.alpha(float(times[0]))
    scales = {k: levels(process, times[k]) for k in (*range(seeds + 1), -1)}
    # the noise levels are those of VP at -2..2: the state at the start must mean the same in every process
    vp = VPContinuous()
    start = x * (scales[0][0] / vp.alpha(vp.time(-2.0)))
    exact = {0: unit * start}
    for k in range(1, seeds + 1):
        exact[k] = plan.rows[k].alpha / scales[k][0] * m.flow(start, scales[0], scales[k])
    out = run_from(plan, m.network(process, prediction), exact)
    ending = plan.final_alpha / scales[-1][0]
    in_vp = vp.alpha(vp.time(2.0)) / scales[-1][0]
    return float((out / ending - m.flow(start, scales[0], scales[-1])).abs().max()) * in_vp


GOLDEN = {
    ("ddim", False): (0.194, 0.0970, 0.0522, 0.0301),
    ("dpm_solver_pp_2m", True): (0.0805, 0.0198, 0.00486, 0.00121),
}


@pytest.mark.parametrize(("name", "exact_start"), GOLDEN)
def test_golden_errors_of_the_literature_protocol(name, exact_start):
    settings = {"lower_order_final": False} if exact_start else {}
    found = [error(name, VPContinuous(), n, seeds=int(exact_start), settings=settings) for n in (20, 40, 80, 160)]
    assert found == pytest.approx(GOLDEN[name, exact_start], rel=0.006)


CASES = [(name, *pair) for name in DETERMINISTIC for pair in ((VPContinuous(), "epsilon"), (DISCRETE, "v_prediction"))]
CASES += [("deis_tab", RectifiedFlow(), "velocity"), ("deis_tab", VE(), "sample")]
"""The other pairs are the same trajectories: `test_prediction_and_process_do_not_change_the_trajectory`."""


@pytest.mark.parametrize(("name", "process", "kind"), CASES, ids=lambda c: repr(c) if not isinstance(c, str) else c)
def test_order_of_convergence(name, process, kind):
    if not usable(name, process):
        pytest.skip("a solver of discrete processes")
    if name == "deis_tab" and isinstance(process, VPDiscrete):
        pytest.skip("polynomials in time see the kinks of log alpha at every step of the table")
    facts = FACTS[name]
    options = {"seeds": facts.history - 1, "settings": FULL_ORDER.get(name)}
    # whole numbers of singlestep blocks; a polynomial in the time of a flow reaches its order late
    refinements = (168, 336) if name == "deis_tab" else (84, 168)
    coarse, fine = (error(name, process, n, Prediction(kind), **options) for n in refinements)
    # the first-order golden errors themselves shrink by 0.80 and 0.79 (largest of nine errors, one late to converge)
    assert np.log2(coarse / fine) > (facts.order - 0.15 if facts.order > 1 else 0.75)
    assert fine < 0.12


def test_all_first_order_forms_are_one_method():
    """In y = x / alpha over sigma / alpha, DDIM of any prediction in any process is the same trajectory."""
    results = []
    for process in (VPContinuous(), VE(), RectifiedFlow()):
        for kind in ("epsilon", "sample", "v_prediction", "velocity", "score"):
            results.append(error("ddim", process, 10, Prediction(kind)))
        results.append(error("euler", process, 10))
    np.testing.assert_allclose(results, results[0], rtol=1e-9)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_prediction_and_process_do_not_change_the_trajectory(name):
    """Noise form = data form, and VP, VE and flow rescalings of one problem agree to rounding."""
    if name == "deis_tab":
        pytest.skip("a polynomial in time is another one in every process")
    results = [
        error(name, process, 8, Prediction(kind))
        for process in (VPContinuous(), VE(), RectifiedFlow(shift=2.0))
        for kind in ("epsilon", "sample", "velocity")
    ]
    np.testing.assert_allclose(results, results[0], rtol=1e-8)


# --- stochastic solvers: the exact law of one step --------------------------------------------------------


def one_step(name, process, times, end, gaussian, settings):
    """(slope, offset, noise scale) of the first step as an affine map of a scalar state, by running it."""
    plan = SOLVERS[name](process, EPSILON, Grid(torch.tensor(times).double(), end), **settings)
    row, network = plan.rows[0], gaussian.network(process, EPSILON)

    def step(x):
        x = torch.tensor([[x]]).double()
        raw = network(x * row.input_scale, torch.tensor(row.network_time, dtype=torch.float64))
        return float(History(plan.rows, EPSILON).advance(0, x, raw))

    offset = step(0.0)
    return plan, step(1.0) - offset, offset, float(row.noise)


def posterior_means(gaussian, alpha, sigma):
    """E[x0 | x] and E[eps | x] of N(mu, s^2) data as (slope, offset), from Bayes' rule."""
    mu, s2 = float(gaussian.means), float(gaussian.covariances)
    gain = alpha * s2 / (alpha**2 * s2 + sigma**2)
    return (gain, mu * (1 - gain * alpha)), ((1 - alpha * gain) / sigma, -alpha * mu * (1 - gain * alpha) / sigma)


GAUSSIAN = Mixture.gaussian([0.6], [0.49])


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_law_of_a_ddim_step(eta):
    """arXiv 2010.02502, eq. 12 and 16 on Gaussian data."""
    (a, s), (b, r) = levels(DISCRETE, 700), levels(DISCRETE, 400)
    _, slope, offset, noise = one_step("ddim", DISCRETE, [700.0, 400.0], 0.0, GAUSSIAN, {"eta": eta})
    variance = eta**2 * (r**2 / s**2) * (1 - a**2 / b**2)
    data, eps = posterior_means(GAUSSIAN, a, s)
    direction = np.sqrt(r**2 - variance)
    assert noise**2 == pytest.approx(variance, abs=1e-13)
    assert slope == pytest.approx(b * data[0] + direction * eps[0], abs=1e-12)
    assert offset == pytest.approx(b * data[1] + direction * eps[1], abs=1e-12)


def test_ancestral_steps_sample_the_exact_posterior_of_one_point():
    """With all data in one point, q(x' | x, x0) is Gaussian (arXiv 2006.11239, eq. 6-7): eta 1 must draw from it."""
    point = Mixture.gaussian([0.6], [0.0])
    (a, _), (b, r) = levels(DISCRETE, 700), levels(DISCRETE, 400)
    kept = a / b  # x = kept x' + fresh noise of variance 1 - kept^2
    precision = 1 / r**2 + kept**2 / (1 - kept**2)
    slope, offset = kept / (1 - kept**2) / precision, b * 0.6 / r**2 / precision
    _, ours, start, noise = one_step("ddim", DISCRETE, [700.0, 400.0], 0.0, point, {"eta": 1.0})
    assert (ours, start, noise) == pytest.approx((slope, offset, precision**-0.5), abs=1e-12)
    # Euler ancestral is the same law for the state x / alpha
    _, ours, start, noise = one_step("euler_ancestral", DISCRETE, [700.0, 400.0], 0.0, point, {})
    assert (ours * b / a, start * b, noise * b) == pytest.approx((slope, offset, precision**-0.5), abs=1e-12)


def test_law_of_a_consistency_step():
    """arXiv 2310.04378: jump to the data, then noise it afresh to the next level."""
    (a, s), (b, r) = levels(DISCRETE, 700), levels(DISCRETE, 400)
    _, slope, offset, noise = one_step("lcm", DISCRETE, [700.0, 400.0], None, GAUSSIAN, {})
    data, _ = posterior_means(GAUSSIAN, a, s)
    skip, out = 0.25 / (7000.0**2 + 0.25), 7000.0 / np.sqrt(7000.0**2 + 0.25)
    assert noise == pytest.approx(r, abs=1e-13)
    assert slope == pytest.approx(b * (out * data[0] + skip), abs=1e-12)
    assert offset == pytest.approx(b * out * data[1], abs=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_law_of_a_trajectory_consistency_step(eta):
    """arXiv 2402.19159, algorithm 4: DDIM to floor((1 - eta) t'), then the process's own noising up to t'."""
    jump = np.floor((1 - eta) * 400)
    (a, s), (b, _), (c, q) = levels(DISCRETE, 700), levels(DISCRETE, 400), levels(DISCRETE, jump)
    _, slope, offset, noise = one_step("tcd", DISCRETE, [700.0, 400.0], 0.0, GAUSSIAN, {"eta": eta})
    data, eps = posterior_means(GAUSSIAN, a, s)
    assert noise**2 == pytest.approx(1 - (b / c) ** 2, abs=1e-12)
    assert slope == pytest.approx(b / c * (c * data[0] + q * eps[0]), abs=1e-12)
    assert offset == pytest.approx(b / c * (c * data[1] + q * eps[1]), abs=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_steps_keep_the_marginals_of_one_point(name, process):
    """On one point of data each step ends with exactly the variance of the next noise level."""
    if not usable(name, process):
        pytest.skip("a solver of discrete processes")
    point = Mixture.gaussian([0.6], [0.0])
    settings = {"sigma_data": 0.0} if name == "lcm" else {}
    times = [share * process.noisiest for share in (0.7, 0.4)]
    plan, slope, offset, noise = one_step(name, process, times, None, point, settings)
    first, second = plan.rows[0], plan.rows[1]
    assert slope**2 * first.sigma**2 + noise**2 == pytest.approx(second.sigma**2, rel=1e-10)
    assert slope * first.alpha * 0.6 + offset == pytest.approx(second.alpha * 0.6, rel=1e-10)


SPREAD = General(lambda t: torch.exp(-t), lambda t: 0.3 * t, noisiest=2.0)


@pytest.mark.parametrize("kind", CONTINUOUS_KINDS)
@pytest.mark.parametrize("process", [*PROCESSES, SPREAD], ids=lambda p: type(p).__name__)
def test_consistency_sampling_of_an_exact_student_keeps_the_law_of_the_data(process, kind):
    """arXiv 2303.01469: for N(m, s^2) the function is m + s (x - alpha m) / sqrt(alpha^2 s^2 + sigma^2).

    With it every row maps N(alpha m, alpha^2 s^2 + sigma^2) onto that law of the next row, and the end is the data.
    """
    m, s, prediction = 0.6, 0.7, Prediction(kind)
    times = torch.tensor([0.95, 0.6, 0.2]).double() * process.noisiest
    plan = SOLVERS["consistency"](process, prediction, Grid(times))
    alphas, sigmas = [*process.alpha(times).tolist(), 1.0], [*process.sigma(times).tolist(), 0.0]
    mean, variance = alphas[0] * m, alphas[0] ** 2 * s**2 + sigmas[0] ** 2
    for k, row in enumerate(plan.rows):
        alpha, sigma = alphas[k], sigmas[k]

        def output(x, alpha=alpha, sigma=sigma):
            data = m + s * (x - alpha * m) / np.hypot(alpha * s, sigma)
            a, b = prediction.weights(alpha, sigma)
            return a * data + b * (x - alpha * data) / sigma

        assert row.input_scale == pytest.approx(prediction.input_scale(alpha, sigma))
        offset = row.output[k] * output(0.0)
        slope = row.state.get(k, 0.0) + row.output[k] * (output(1.0) - output(0.0))
        mean, variance = slope * mean + offset, slope**2 * variance + row.noise**2
        assert mean == pytest.approx(alphas[k + 1] * m, rel=1e-9)
        assert variance == pytest.approx(alphas[k + 1] ** 2 * s**2 + sigmas[k + 1] ** 2, rel=1e-9)
    assert (plan.final_alpha, plan.final_sigma, plan.rows[-1].noise) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("process", [*PROCESSES, SPREAD], ids=lambda p: type(p).__name__)
def test_trajectory_sampling_runs_from_ddim_to_consistency_on_every_process(process):
    grid = grid_on(process, 3)
    plans = {eta: SOLVERS["tcd"](process, EPSILON, grid, eta=eta) for eta in (0.0, 0.5, 1.0)}
    ends = {0.0: SOLVERS["ddim"](process, EPSILON, grid), 1.0: SOLVERS["consistency"](process, EPSILON, grid)}
    for eta, wanted in ends.items() if process is not DISCRETE else ():  # a table's first entry is not clean
        for ours, theirs in zip(plans[eta].rows, wanted.rows, strict=True):
            left, right = dict(ours.coefficients()), dict(theirs.coefficients())
            assert left == pytest.approx({name: right.get(name, 0.0) for name in left}, rel=1e-9, abs=1e-9)
    # by hand at eta 1/2: DDIM to half the time, then noise of variance sigma'^2 - (alpha' / alpha)^2 sigma^2
    for k, row in enumerate(plans[0.5].rows):
        after = float(grid.times[k + 1]) if k < 2 else grid.end
        half = np.floor(after / 2) if process is DISCRETE else after / 2
        (a, s), (b, r), (c, q) = (levels(process, t) for t in (float(grid.times[k]), after, half))
        kept = b / c
        assert row.noise**2 == pytest.approx(r**2 - (kept * q) ** 2, rel=1e-9)
        assert row.noise > 0
        assert row.output[k] == pytest.approx(kept * (q - c * s / a), rel=1e-9)


@pytest.mark.parametrize("process", [VE(), VPContinuous(), RectifiedFlow()], ids=repr)
def test_boundary_scalings_of_lcm_are_for_step_indices_alone(process):
    """At sigma 0.05 of VE its last row was half the noisy state: refused, and the way out is named."""
    with pytest.raises(PlanError, match="consistency"):
        SOLVERS["lcm"](process, EPSILON, grid_on(process, 2))


def test_consistency_sampling_of_flows_is_that_of_diffusers():
    scheduler = d.FlowMatchLCMScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    times = RectifiedFlow(3.0).from_network_time(1000 * scheduler.sigmas[:-1].double())
    plan = SOLVERS["consistency"](RectifiedFlow(3.0), Prediction("velocity"), Grid(times))
    ours = sample(plan, toy, seeds=[3], shape=SHAPE)
    assert departure(ours, run_diffusers(scheduler, 4, toy, [3])) < 1e-5


def test_rescaled_zero_terminal_signal_starts_with_a_v_prediction():
    scheduler = d.DDIMScheduler(
        clip_sample=False, timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction",
        **STABLE_DIFFUSION,
    )  # fmt: skip
    process = VPDiscrete.from_scheduler(scheduler)
    plan = SOLVERS["ddim"](process, Prediction("v_prediction"), grids.trailing(process, 4))
    assert departure(sample(plan, toy, seeds=[5], shape=SHAPE), run_diffusers(scheduler, 4, toy, [5])) < 1e-5
