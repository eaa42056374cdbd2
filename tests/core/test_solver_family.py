import dataclasses

import diffusers as d
import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp

from fewstep.errors import PlanError
from fewstep.executor import sample
from fewstep.plan import Plan
from fewstep.plan.history import History
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPContinuous, VPDiscrete
from fewstep.solvers import FACTS, SOLVERS, Grid, grids
from fewstep.solvers.integrals import weights
from fewstep.solvers.stages import Stages
from fewstep.testing.mixture import Mixture
from tests.core.test_solvers import DISCRETE, EPSILON, PROCESSES, error, grid_on
from tests.core.toys import SHAPE, STABLE_DIFFUSION, departure, golden, levels, run_diffusers, run_from, toy

FULL = {"lower_order_final": False}


def network_time(row):
    """The network time of a row, in double precision."""
    return torch.tensor(row.network_time, dtype=torch.float64)


# --- convergence: the golden errors of the literature protocol, made by an independent implementation ------------

GOLDEN = [
    ("dpm_solver", {"rule": "exact", **FULL}, 1, (0.0251, 0.00801, 0.00222, 0.000583)),
    ("dpm_solver", {"order": 3, **FULL}, 2, (0.0227, 0.00299, 3.82e-4, 4.81e-5)),
    ("deis_log_rho", {"degree": 2, **FULL}, 2, (0.0227, 0.00299, 3.82e-4, 4.81e-5)),
    ("deis_log_rho", {"degree": 3, **FULL}, 3, (0.00556, 2.99e-4, 1.62e-5, 9.2e-7)),
    ("dpm_solver_pp_2m", {"rule": "exact", **FULL}, 1, (0.0981, 0.0229, 0.00554, 0.00137)),
    ("dpm_solver_pp_3m", FULL, 2, (0.00928, 7.00e-4, 6.06e-5, 5.94e-6)),
    ("deis_tab", {"degree": 1}, 1, (0.0398, 0.0128, 0.00356, 0.000933)),
    ("deis_tab", {"degree": 2}, 2, (0.0346, 0.00497, 0.000663, 0.0000855)),
    ("deis_tab", {"degree": 3}, 3, (0.00939, 0.000655, 0.0000419, 0.00000263)),
    ("deis_rhoab", {"degree": 1}, 1, (0.0439, 0.0124, 0.0033, 0.000851)),
    ("deis_rhoab", {"degree": 2}, 2, (0.0155, 0.00262, 0.000379, 0.0000512)),
    ("deis_rhoab", {"degree": 3}, 3, (0.0170, 0.00152, 0.000115, 0.00000792)),
    ("lms", {"order": 4}, 3, (0.0170, 0.00152, 0.000115, 0.00000792)),
    ("heun", {}, 0, (0.0563, 0.0123, 0.00296, 7.28e-4)),
    ("rho_rk", {"method": "heun2"}, 0, (0.0563, 0.0123, 0.00296, 7.28e-4)),
]
GOLDEN_SINGLESTEP = [
    ("dpm_solver_pp_2s", {}, (0.0321, 0.0088, 0.0023, 6.0e-4)),
    ("dpm_solver_pp_3s", {"rule": "bh2"}, (0.0203, 0.0037, 5.5e-4, 7.5e-5)),
    ("dpm_solver_3s", {"rule": "bh2"}, (0.0021, 2.9e-4, 4.0e-5, 5.2e-6)),
]


@pytest.mark.parametrize(("name", "settings", "seeds", "expected"), GOLDEN)
def test_golden_errors(name, settings, seeds, expected):
    found = [error(name, VPContinuous(), n, seeds=seeds, settings=settings) for n in (20, 40, 80, 160)]
    assert found == pytest.approx(expected, rel=0.006)


@pytest.mark.parametrize(("name", "settings", "expected"), GOLDEN_SINGLESTEP)
def test_golden_errors_of_singlestep_solvers(name, settings, expected):
    found = [error(name, VPContinuous(), n, settings=settings) for n in (24, 48, 96, 192)]
    assert found == pytest.approx(expected, rel=0.025)  # the digest gives two digits


@pytest.mark.parametrize(
    ("form", "order", "expected"),
    [
        ("data", 1, (0.0331, 0.00863, 0.0022, 5.53e-4)),
        ("noise", 3, (9.4e-4, 1.35e-4, 1.11e-5, 7.8e-7)),
        ("data", 3, (0.00292, 2.64e-4, 1.86e-5, 1.21e-6)),
    ],
)
def test_golden_errors_of_the_corrected_state(form, order, expected):
    """UniPC never makes the corrected state: a vanishing step after the last one shows it."""
    settings = {"form": form, "order": order, "rule": "exact", "correct_from": order, **FULL}
    found = [corrected_error(n, order - 1, settings) for n in (20, 40, 80, 160)]
    assert found == pytest.approx(expected, rel=0.008)


def corrected_error(steps, seeds, settings):
    m, process = golden(), VPContinuous()
    x = torch.linspace(-2, 2, 9).double().reshape(9, 1)
    lam = torch.cat([torch.linspace(-2, 2, steps + 1).double(), torch.tensor([2 + 1e-9], dtype=torch.float64)])
    times = process.time(lam)
    plan = SOLVERS["unipc"](process, EPSILON, Grid(times[:-1], float(times[-1])), **settings)
    scales = [levels(process, t) for t in times]
    exact = {0: x, **{k: m.flow(x, scales[0], scales[k]) for k in range(1, seeds + 1)}}
    out = run_from(plan, m.network(process, EPSILON), exact)
    return float((out - m.flow(x, scales[0], scales[-2])).abs().max())


@pytest.mark.parametrize(
    ("name", "settings", "seeds", "order"),
    [
        ("dpm_solver_2s", {}, 0, 2),
        ("dpm_solver_3s", {}, 0, 3),
        ("dpm_solver_pp_3s", {}, 0, 3),
        ("unipc", {"order": 1, **FULL}, 0, 2),
        ("unipc", {"order": 2, "rule": "bh1", "correct_from": 2, **FULL}, 1, 3),
        ("unipc", {"order": 2, "form": "noise", "correct_from": 2, **FULL}, 1, 3),
        ("unipc", {"order": 3, "correct_from": 3, **FULL}, 2, 4),
        ("unipc", {"order": 3, "corrector": False, **FULL}, 2, 3),
        ("unipc", {"order": 3, "form": "noise", "variable": "rho", "correct_from": 3, **FULL}, 2, 4),
        ("ipndm", {"order": 2}, 1, 2),
        *[("rho_rk", {"method": m}, 0, 3) for m in ("kutta3", "heun3", "ralston3", "houwen3", "ssp3")],
        ("rho_rk", {"method": "midpoint"}, 0, 2),
        ("rho_rk", {"method": "classic4"}, 0, 4),
        ("sde_dpm_solver_pp", {"tau": 0.0, **FULL}, 1, 2),
    ],
)
def test_order_of_options(name, settings, seeds, order):
    coarse, fine = (error(name, VPContinuous(), n, seeds=seeds, settings=settings) for n in (84, 168))
    assert np.log2(coarse / fine) > order - 0.15


def test_the_legacy_third_order_is_second_order():
    """Half the second derivative leaves order 2: the reason why the correct form is the default."""
    settings = {"legacy": True, **FULL}
    found = [error("dpm_solver_pp_3m", VPContinuous(), n, seeds=2, settings=settings) for n in (20, 40, 80, 160)]
    assert found == pytest.approx((0.0274, 0.00514, 0.00116, 0.000285), rel=0.025)
    assert np.log2(found[2] / found[3]) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("bh2", (0.0519, 0.0136, 0.00353, 9.0e-4)), ("exact", (0.0449, 0.0116, 0.00298, 7.56e-4))],
)
def test_golden_errors_of_the_mean_of_the_reverse_sde(rule, expected):
    """Without noise the rows solve d/dlam [x e^lam / sigma] = 2 e^(2 lam) x0 (here by scipy), at order 2."""
    m, process = golden(), VPContinuous()
    x = torch.linspace(-2, 2, 9).double().reshape(9, 1)

    def speed(lam, y):
        alpha, sigma = levels(process, process.time(float(lam)))
        data, _ = m.estimates(torch.from_numpy(y * sigma * np.exp(-lam)).reshape(9, 1), alpha, sigma)
        return 2 * np.exp(2 * lam) * data.reshape(-1).numpy()

    def scale(lam):
        return np.exp(float(lam)) / process.sigma(process.time(float(lam)))

    found = []
    for n in (20, 40, 80, 160):
        lam = torch.linspace(-2, 2, n + 1).double()
        exact = solve_ivp(speed, (-2, 2), x.reshape(-1).numpy() * scale(-2), "DOP853", [float(lam[1]), 2.0],
                          rtol=1e-11, atol=1e-12).y  # fmt: skip
        times = process.time(lam)
        plan = SOLVERS["sde_dpm_solver_pp"](process, EPSILON, Grid(times[:-1], float(times[-1])), rule=rule, **FULL)
        mean = plan.replace(rows=tuple(dataclasses.replace(row, noise=0.0) for row in plan.rows))
        out = run_from(mean, m.network(process, EPSILON), {0: x, 1: torch.from_numpy(exact[:, :1] / scale(lam[1]))})
        found.append(np.abs(out.numpy()[:, 0] - exact[:, 1] / scale(2)).max())
    assert found == pytest.approx(expected, rel=0.01)


# --- the weights against scipy, with Lagrange polynomials written out -------------------------------------------


@pytest.mark.parametrize("variable", ["lambda", "rho", "time"])
@pytest.mark.parametrize("form", ["noise", "data"])
@pytest.mark.parametrize("process", [VPContinuous(), RectifiedFlow(3.0), VE()], ids=repr)
def test_weights_are_the_integrals_of_the_papers(process, form, variable):
    s = Stages(process, EPSILON, grid_on(process, 5))
    tau = {"lambda": process.lam, "rho": lambda t: np.exp(-process.lam(t)), "time": lambda t: t}[variable]
    nodes = [3, 2, 1]
    places = [tau(float(s.time(j))) for j in nodes]
    sign, scale = (-1.0, float(s.alpha[4])) if form == "noise" else (1.0, float(s.sigma[4]))

    def integrand(lam, j):
        at = tau(process.time(float(lam)))
        basis = np.prod([(at - p) / (places[j] - p) for i, p in enumerate(places) if i != j])
        return sign * scale * np.exp(sign * lam) * basis

    ours = weights(s, form, 3, 4, nodes, variable=variable)
    for j, node in enumerate(nodes):
        expected, _ = quad(integrand, float(s.lam(3)), float(s.lam(4)), args=(j,), epsabs=1e-13, epsrel=1e-12)
        assert float(ours[node]) == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_sum_rules_to_the_last_digits():
    for process in PROCESSES:
        s = Stages(process, EPSILON, grid_on(process, 5))
        a, b = (float(v) for v in (s.alpha[3], s.alpha[4]))
        q, r = (float(v) for v in (s.sigma[3], s.sigma[4]))
        for options in ({"variable": "lambda"}, {"variable": "rho"}, {"variable": "time"}):
            noise, data = (sum(weights(s, form, 3, 4, [3, 2, 1], **options).values()) for form in ("noise", "data"))
            assert float(noise) == pytest.approx(r - q * b / a, rel=1e-12)
            assert float(data) == pytest.approx(b - a * r / q, rel=1e-12)


def test_a_clean_end_in_rho_keeps_its_order():
    """The noise form down to rho = 0: exact for a noise estimate that is a parabola in rho."""
    process = VE()
    s = Stages(process, EPSILON, Grid(torch.tensor([3.0, 2.0, 1.0]).double()))
    weight = weights(s, "noise", 2, 3, [2, 1, 0], variable="rho")
    value = sum(float(w) * (1 + 2 * rho - rho**2) for w, rho in zip(weight.values(), (1.0, 2.0, 3.0), strict=True))
    assert value == pytest.approx(-(1 + 1 - 1 / 3), rel=1e-13)  # the integral from rho 1 to rho 0


# --- parity with diffusers --------------------------------------------------------------------------------------

TRAILING = {"timestep_spacing": "trailing"}
DPM, SINGLE = d.DPMSolverMultistepScheduler, d.DPMSolverSinglestepScheduler
HEUN_TYPE = {"solver_type": "heun"}
NOISE_FORM = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}


def to_first(process, steps):
    return grids.trailing(process, steps, end=0.0)


PARITY = [
    ("dpm_solver_pp_2m", {"rule": "exact"}, DPM, HEUN_TYPE, grids.trailing),
    ("dpm_solver_pp_3m", {"legacy": True}, DPM, {"solver_order": 3}, grids.trailing),
    ("dpm_solver", {"order": 1}, DPM, {"solver_order": 1, **NOISE_FORM}, to_first),
    ("dpm_solver", {}, DPM, NOISE_FORM, to_first),
    ("dpm_solver", {"rule": "exact"}, DPM, {**HEUN_TYPE, **NOISE_FORM}, to_first),
    ("dpm_solver", {"order": 3, "legacy": True}, DPM, {"solver_order": 3, **NOISE_FORM}, to_first),
    ("sde_dpm_solver_pp", {}, DPM, {"algorithm_type": "sde-dpmsolver++"}, grids.trailing),
    ("sde_dpm_solver_pp", {"rule": "exact"}, DPM, {"algorithm_type": "sde-dpmsolver++", **HEUN_TYPE}, grids.trailing),
    ("sde_dpm_solver_pp", {"order": 1}, DPM, {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, grids.trailing),
    ("deis_log_rho", {"degree": 1}, d.DEISMultistepScheduler, {"solver_order": 2}, to_first),
    ("deis_log_rho", {"degree": 2}, d.DEISMultistepScheduler, {"solver_order": 3}, to_first),
    *[
        ("unipc", {"order": p}, d.UniPCMultistepScheduler, {"solver_order": p}, grids.trailing)
        for p in (1, 2, 3)
    ],
    *[  # their bh1 is NaN at a clean end
        ("unipc", {"order": p, "rule": "bh1"}, d.UniPCMultistepScheduler,
         {"solver_order": p, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}, to_first)
        for p in (1, 2, 3)
    ],
    ("unipc", {"form": "noise"}, d.UniPCMultistepScheduler,
     {"predict_x0": False, "final_sigmas_type": "sigma_min"}, to_first),
    ("heun", {}, d.HeunDiscreteScheduler, {}, grids.trailing),
    ("lms", {}, d.LMSDiscreteScheduler, {}, grids.trailing),
    ("dpm_solver_pp_2s", {}, SINGLE, {"solver_order": 2}, grids.trailing),
    ("dpm_solver_pp_3s", {"rule": "bh2"}, SINGLE, {"solver_order": 3}, grids.trailing),
    ("dpm_solver_2s", {}, SINGLE, {"solver_order": 2, "lower_order_final": False, **NOISE_FORM}, to_first),
    ("dpm_solver_3s", {"rule": "bh2"}, SINGLE, {"solver_order": 3, "lower_order_final": False, **NOISE_FORM}, to_first),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [6, 12])
@pytest.mark.parametrize(("name", "settings", "theirs", "config", "grid"), PARITY)
def test_same_images_as_diffusers(name, settings, theirs, config, grid, steps, kind):
    spacing = {} if theirs is SINGLE else TRAILING
    scheduler = theirs(prediction_type=kind, **STABLE_DIFFUSION, **spacing, **config)
    scheduler.set_timesteps(steps)
    process = VPDiscrete.from_scheduler(scheduler)
    # their own times, so that only the solver is compared; Heun asks twice at each
    times = torch.as_tensor(scheduler.timesteps).double().unique().flip(0)
    end = grid(process, steps).end
    plan = SOLVERS[name](process, Prediction(kind), Grid(times, end), **settings)
    expected = run_diffusers(scheduler, steps, toy, [1, 2])
    assert departure(sample(plan, toy, seeds=[1, 2], shape=SHAPE), expected) < 1e-5


# --- identities -------------------------------------------------------------------------------------------------


def same_rows(left, right, tolerance=1e-12):
    for a, b in zip(left.rows, right.rows, strict=True):
        for kind in ("state", "output"):
            ours, theirs = getattr(a, kind), getattr(b, kind)
            for j in {*ours, *theirs}:
                assert ours.get(j, 0.0) == pytest.approx(theirs.get(j, 0.0), abs=tolerance)
        assert a.noise == pytest.approx(b.noise, abs=tolerance)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("unipc", {"order": 3, "form": "noise", "rule": "exact", "corrector": False, **FULL}),
         ("deis_log_rho", {"degree": 2, **FULL})),
        (("dpm_solver", {"order": 3, "rule": "exact", **FULL}), ("deis_log_rho", {"degree": 2, **FULL})),
        (("unipc", {"order": 2, "corrector": False}), ("dpm_solver_pp_2m", {})),
        (("sde_dpm_solver_pp", {"tau": 0.0}), ("dpm_solver_pp_2m", {})),
        (("sde_dpm_solver_pp", {"order": 1, "tau": 1.0}), ("ddim", {"eta": 1.0})),
        (("rho_rk", {"method": "heun2"}), ("heun", {})),
    ],
)  # fmt: skip
def test_identities_of_the_family(one, other):
    for process in PROCESSES:
        grid = grid_on(process, 6)
        same_rows(*(SOLVERS[name](process, EPSILON, grid, **settings) for name, settings in (one, other)))


def test_every_first_order_form_is_ddim():
    forms = [
        ("dpm_solver", {"order": 1}), ("unipc", {"order": 1, "corrector": False}), ("deis_tab", {"degree": 0}),
        ("deis_rhoab", {"degree": 0}), ("deis_log_rho", {"degree": 0}), ("ipndm", {"order": 1}),
        ("sde_dpm_solver_pp", {"order": 1, "tau": 0.0}),
    ]  # fmt: skip
    for process in PROCESSES:
        grid = grid_on(process, 5)
        for name, settings in forms:
            plan = SOLVERS[name](process, EPSILON, grid, **settings)
            same_rows(plan, SOLVERS["ddim"](process, EPSILON, grid), 1e-10)


def test_heun_is_the_corrector_evaluated_again():
    """UniC-1 in rho from a DDIM prediction, then a call at the corrected state, is one Heun step of EDM."""
    process, grid = VE(), grids.given([5.0, 3.0], end=1.0)
    heun = SOLVERS["heun"](process, EPSILON, grid)
    unic = SOLVERS["unipc"](process, EPSILON, grid, order=1, form="noise", rule="exact", variable="rho")
    start, network = torch.tensor([[2.5]]).double(), golden().network(process, EPSILON)
    outputs = History(heun.rows, EPSILON)
    x = start
    for k in range(2):
        x = outputs.advance(k, x, network(x, network_time(heun.rows[k])))
    corrector = History(unic.rows, EPSILON)
    predicted = corrector.advance(0, start, network(start, network_time(unic.rows[0])))
    raw = network(predicted, network_time(unic.rows[1]))
    # one step further, undone: the corrected state is what the first-order row to rho 1 started from
    corrected = corrector.advance(1, predicted, raw) - (1.0 - 3.0) * raw
    torch.testing.assert_close(corrected, x, rtol=1e-12, atol=1e-12)


def test_the_noise_level_runs_from_the_ode_to_renoising():
    """Variance sigma'^2 (1 - e^(-2 tau^2 h)), eta^2 (1 - e^(-2 h)) for DDIM's eta; infinity forgets the state."""
    grid = grids.given([700.0, 400.0], end=100.0)
    h = DISCRETE.lam(400.0) - DISCRETE.lam(700.0)
    for tau in (0.3, 1.0, 2.5):
        row = SOLVERS["sde_dpm_solver_pp"](DISCRETE, EPSILON, grid, tau=tau).rows[0]
        assert row.noise**2 == pytest.approx(DISCRETE.sigma(400.0) ** 2 * (1 - np.exp(-2 * tau**2 * h)), rel=1e-12)
    ours = SOLVERS["sde_dpm_solver_pp"](DISCRETE, EPSILON, grid, tau=float("inf"), order=1)
    same_rows(ours, SOLVERS["consistency"](DISCRETE, EPSILON, grid))
    consistency = SOLVERS["lcm"](DISCRETE, EPSILON, grids.given([700.0, 400.0]), sigma_data=0.0)
    same_rows(*(plan.replace(rows=plan.rows[:1]) for plan in (ours, consistency)))


@pytest.mark.parametrize(
    ("name", "settings"),
    [*(("sde_dpm_solver_pp", {"tau": tau}) for tau in (0.5, 1.0, 3.0, float("inf"))), ("heun", {"churn": 1.2})],
)
def test_stochastic_rows_keep_the_law_of_one_point(name, settings):
    """All data in one point: every state must have mean alpha c and variance sigma^2, noise included."""
    point, grid = Mixture.gaussian([0.6], [0.0]), grids.given([900.0, 620.0, 350.0], end=50.0)
    plan = SOLVERS[name](DISCRETE, EPSILON, grid, **settings)
    assert plan.stochastic
    network = point.network(DISCRETE, EPSILON)
    # the last state as an affine map of the first state and each noise, found by running
    sources = len(plan.rows) + 1

    def run(first, fresh):
        x, history = torch.tensor([[first]]).double(), History(plan.rows, EPSILON)
        for k, row in enumerate(plan.rows):
            raw = network(x * row.input_scale, network_time(row))
            x = history.advance(k, x, raw, torch.tensor([[fresh[k]]]).double() if row.noise else None)
        return float(x)

    offset = run(0.0, [0.0] * sources)
    slope = run(1.0, [0.0] * sources) - offset
    variance = (slope * plan.rows[0].sigma) ** 2
    for k in range(len(plan.rows)):
        variance += (run(0.0, [float(j == k) for j in range(sources)]) - offset) ** 2
    # for one point the state is alpha c + sigma e exactly, and order 1 and 2 steps are exact
    assert variance == pytest.approx(plan.final_sigma**2, rel=1e-9)
    assert offset + slope * plan.rows[0].alpha * 0.6 == pytest.approx(plan.final_alpha * 0.6, rel=1e-9)


# --- gradients with respect to the grid -------------------------------------------------------------------------

DIFFERENTIABLE = [
    ("ddim", {}), ("dpm_solver", {"order": 3}), ("dpm_solver_pp_3m", {}), ("dpm_solver_pp_3m", {"legacy": True}),
    ("unipc", {"order": 3}), ("unipc", {"form": "noise", "rule": "bh1"}), ("deis_tab", {}), ("deis_rhoab", {}),
    ("lms", {}), ("ipndm", {}), ("dpm_solver_3s", {}), ("dpm_solver_pp_2s", {}), ("heun", {}),
    ("rho_rk", {"method": "classic4"}), ("sde_dpm_solver_pp", {"tau": 0.7}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), DIFFERENTIABLE)
@pytest.mark.parametrize("process", [DISCRETE, RectifiedFlow(2.0)], ids=repr)
def test_gradients_of_the_grid_are_those_of_finite_differences(process, name, settings):
    last = 0.08 * process.noisiest
    first = 0.97 * process.noisiest

    def end(logits):
        grid = grids.learnable(process, logits, last, first=first, end=last / 2)
        plan = SOLVERS[name](process, EPSILON, grid, **settings)
        start = torch.linspace(-2, 2, 5).double().reshape(5, 1)
        # a network without time: the executor tells it plain numbers, through which no gradient flows
        network = lambda x, time: torch.tanh(1.3 * x + 0.2)  # noqa: E731
        return sample(plan, network, seeds=range(5), shape=(1,), state=start, dtype=torch.float64).square().sum()

    logits = torch.tensor([0.2, -0.1, 0.4, -0.3, 0.1], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(end(logits), logits)
    step = 1e-5 * torch.eye(5, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([(end(logits + d) - end(logits - d)) / 2e-5 for d in step])
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


# --- ends, and mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_pure_noise_and_clean_ends_give_finite_plans(name):
    """A flow starts without signal and ends without noise: every solver that can run there must."""
    process = RectifiedFlow(3.0)
    if FACTS[name].discrete:
        pytest.skip("a solver of discrete processes")
    grid = grids.uniform(process, 6)
    if name in ("euler", "euler_ancestral", "churned_euler", "lms", "heun", "rho_rk"):
        with pytest.raises(PlanError):  # sigma / alpha is infinite there
            SOLVERS[name](process, Prediction("velocity"), grid)
        return
    plan = SOLVERS[name](process, Prediction("velocity"), grid)
    point = Mixture.gaussian([0.7, -1.3], [0.0, 0.0])
    network = point.network(process, Prediction("velocity"))
    end = sample(plan, network, seeds=[0, 1], shape=(2,), dtype=torch.float64)
    torch.testing.assert_close(end, point.means.expand(2, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dpm_solver", {"order": 4}), ("dpm_solver", {"rule": "midpont"}), ("unipc", {"form": "dat"}),
        ("unipc", {"variable": "sigma"}), ("deis_tab", {"degree": 4}), ("lms", {"order": 0}),
        ("rho_rk", {"method": "rk4"}), ("heun", {"churn": -1.0}), ("sde_dpm_solver_pp", {"tau": -0.1}),
        ("sde_dpm_solver_pp", {"tau": float("nan")}), ("heun", {"churn": float("nan")}),
    ],
)  # fmt: skip
def test_wrong_options_are_named(name, settings):
    (option,) = settings
    with pytest.raises(PlanError, match=option):
        SOLVERS[name](DISCRETE, EPSILON, grids.trailing(DISCRETE, 6), **settings)


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_one_step_is_a_plan(name):
    plan = SOLVERS[name](DISCRETE, EPSILON, grids.given([900.0]))
    assert plan.steps == 1
    assert plan.final_sigma == 0


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_a_plan_can_be_saved_and_started_anywhere(name, tmp_path):
    """From any row on, a deterministic plan still solves one point of data exactly (image-to-image)."""
    plan = SOLVERS[name](DISCRETE, EPSILON, grids.given([900.0, 620.0, 350.0, 120.0], end=20.0))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    if plan.stochastic:
        return
    point = Mixture.gaussian([0.6, -0.2], [0.0, 0.0])
    noise = torch.tensor([[0.4, -0.9]]).double()
    for first in range(plan.steps):
        late = plan.starting_at(first)
        start = late.rows[0].alpha * point.means + late.rows[0].sigma * noise
        network = point.network(DISCRETE, EPSILON)
        end = sample(late, network, seeds=[0], shape=(2,), state=start, dtype=torch.float64)
        torch.testing.assert_close(end, late.final_alpha * point.means + late.final_sigma * noise, rtol=1e-9, atol=1e-9)


def test_an_infinite_noise_level_can_be_saved(tmp_path):
    plan = SOLVERS["sde_dpm_solver_pp"](DISCRETE, EPSILON, grids.trailing(DISCRETE, 4), tau=float("inf"))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


# --- grids -------------------------------------------------------------------------------------------------------


def test_karras_and_lambda_grids_are_those_of_diffusers():
    """Their sigmas on the continuous ratio: our times map back to them."""
    for option, make in (("use_karras_sigmas", grids.karras), ("use_exponential_sigmas", grids.uniform_lambda)):
        scheduler = DPM(**STABLE_DIFFUSION, **{option: True})
        scheduler.set_timesteps(7)
        process = VPDiscrete.from_scheduler(scheduler)
        ratio = torch.exp(-process.lam(make(process, 7, 0.0).times))
        torch.testing.assert_close(ratio, scheduler.sigmas[:-1].double(), rtol=2e-5, atol=1e-6)


def test_a_learnable_grid_of_equal_logits_is_uniform():
    for process in (DISCRETE, VE(), VPContinuous()):
        last = 0.1 * process.noisiest
        uniform = grids.uniform_lambda(process, 6, last)
        learned = grids.learnable(process, torch.zeros(5), last)
        torch.testing.assert_close(learned.times, uniform.times, rtol=1e-9, atol=1e-9)
        in_time = grids.learnable(process, torch.zeros(5), last, variable="time")
        torch.testing.assert_close(in_time.times, grids.uniform(process, 6, last=last).times)


def test_published_grids_come_from_diffusers():
    tables = d.schedulers.scheduling_utils.AysSchedules
    grid = grids.align_your_steps(DISCRETE, "StableDiffusionXL")
    assert grid.times.tolist() == tables["StableDiffusionXLTimesteps"]
    video = grids.align_your_steps(VE(700.0), "StableDiffusionVideo")
    assert video.times.tolist() == pytest.approx(tables["StableDiffusionVideoSigmas"][:-1], rel=1e-12)
    # 19 steps: every other one is in the table, those between are geometric means
    fine = grids.align_your_steps(VE(700.0), "StableDiffusionVideo", 19).times
    torch.testing.assert_close(fine[::2], video.times)
    torch.testing.assert_close(fine[1::2], (video.times[1:] * video.times[:-1]).sqrt())
    with pytest.raises(PlanError, match="Did you mean 'StableDiffusion"):
        grids.align_your_steps(DISCRETE, "StableDifusion")
    with pytest.raises(PlanError, match="discrete"):
        grids.align_your_steps(VE(), "StableDiffusion")


def test_a_shifted_grid_is_the_shifted_flow():
    """Shifting the times of an unshifted flow is stepping uniformly through the shifted one."""
    ours = grids.shifted(RectifiedFlow(), 5, 3.0).times
    process = RectifiedFlow(3.0)
    torch.testing.assert_close(RectifiedFlow().sigma(ours), process.sigma(grids.uniform(process, 5).times))


def test_a_polynomial_grid_steps_equally_in_its_root():
    grid = grids.polynomial(VPContinuous(), 9, last=1e-3, power=2.0)
    roots = grid.times.sqrt().diff()
    torch.testing.assert_close(roots, roots[:1].expand(8))
    assert (float(grid.times[0]), float(grid.times[-1])) == (1.0, pytest.approx(1e-3, rel=1e-12))


@pytest.mark.parametrize("make", [grids.uniform_lambda, grids.karras])
def test_grids_in_log_snr_refuse_an_infinite_end(make):
    with pytest.raises(PlanError, match="infinite"):
        make(RectifiedFlow(), 4, 0.1)
    assert make(RectifiedFlow(), 4, 0.1, first=0.99).times[0] == 0.99
