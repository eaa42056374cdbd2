"""The equations of the solvers' docstrings, written out once more on numbers and run beside the plans."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.interpolate import lagrange

from fewstep.executor import sample
from fewstep.prediction import Prediction
from fewstep.process import VPContinuous
from fewstep.solvers import PARAMETRIC, SOLVERS, Grid

PROCESS = VPContinuous()
TIMES = np.array([0.9, 0.75, 0.55, 0.4, 0.25, 0.12, 0.05])
START = 0.8


def network(t, x):
    """Some noise prediction, not that of any data."""
    return np.sin(1.7 * x) + 0.4 * x * np.cos(3 * t)


class Letters:
    """What the docstrings call alpha, sigma, rho, lam, x, y, x0 and eps; `made` keeps the states."""

    def __init__(self, times):
        self.t = times
        self.alpha, self.sigma = (np.array([f(float(t)) for t in times]) for f in (PROCESS.alpha, PROCESS.sigma))
        self.rho = self.sigma / self.alpha
        self.lam = -np.log(self.rho)
        self.x, self.eps, self.x0 = [START], [], []

    def h(self, k):
        return self.lam[k + 1] - self.lam[k]

    def r(self, k):
        return (self.lam[k] - self.lam[k - 1]) / self.h(k)

    def call(self, k):
        self.eps.append(network(self.t[k], self.x[k]))
        self.x0.append((self.x[k] - self.sigma[k] * self.eps[k]) / self.alpha[k])

    def moved_y(self, k, change):
        return self.alpha[k + 1] * (self.x[k] / self.alpha[k] + change)


def adams(variable, points):
    """y_{k+1} = y_k + Int P d rho."""

    def step(s, k):
        nodes = list(range(k, max(k - points, -1), -1))
        values = {"rho": s.rho, "lam": s.lam, "t": s.t}[variable]
        place = {"rho": lambda rho: rho, "lam": lambda rho: -np.log(rho), "t": lambda rho: PROCESS.time(-np.log(rho))}
        polynomial = lagrange(values[nodes], [s.eps[j] for j in nodes])
        at = place[variable]
        return s.moved_y(k, quad(lambda rho: polynomial(at(rho)), s.rho[k], s.rho[k + 1], epsabs=1e-13)[0])

    return step


def ddim(s, k):
    return s.alpha[k + 1] * s.x0[k] + s.sigma[k + 1] * s.eps[k]


def euler(s, k):
    return s.moved_y(k, (s.rho[k + 1] - s.rho[k]) * s.eps[k])


def dpm_solver(s, k):
    if k == 0:
        return ddim(s, k)
    slope = (1 + 1 / (2 * s.r(k))) * s.eps[k] - 1 / (2 * s.r(k)) * s.eps[k - 1]
    return s.alpha[k + 1] / s.alpha[k] * s.x[k] - s.sigma[k + 1] * (np.exp(s.h(k)) - 1) * slope


def dpm_solver_pp_2m(s, k):
    if k == 0:
        return ddim(s, k)
    D = (1 + 1 / (2 * s.r(k))) * s.x0[k] - 1 / (2 * s.r(k)) * s.x0[k - 1]
    return s.sigma[k + 1] / s.sigma[k] * s.x[k] - s.alpha[k + 1] * (np.exp(-s.h(k)) - 1) * D


def dpm_solver_pp_2m_exact(s, k):
    if k == 0:
        return ddim(s, k)
    h, slope = s.h(k), (s.x0[k] - s.x0[k - 1]) / s.r(k)
    change = -(np.exp(-h) - 1) * s.x0[k] + ((np.exp(-h) - 1) / h + 1) * slope
    return s.sigma[k + 1] / s.sigma[k] * s.x[k] + s.alpha[k + 1] * change


def dpm_solver_pp_3m(s, k):
    if k < 2:
        return dpm_solver_pp_2m(s, k)
    nodes, h = [k, k - 1, k - 2], s.h(k)
    parabola = lagrange(s.lam[nodes] - s.lam[k], [s.x0[j] for j in nodes])
    D1, D2 = h * parabola.deriv()(0), h**2 * parabola.deriv(2)(0)
    e = np.exp(-h) - 1
    change = e * s.x0[k] - (e / h + 1) * D1 + ((e + h) / h**2 - 1 / 2) * D2
    return s.sigma[k + 1] / s.sigma[k] * s.x[k] - s.alpha[k + 1] * change


def ipndm(s, k):
    weights = [(1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24)][min(k, 3)]
    return s.moved_y(k, (s.rho[k + 1] - s.rho[k]) * sum(w * s.eps[k - j] for j, w in enumerate(weights)))


def block(noise, size):
    """A singlestep block of the docstrings of `dpm_solver_2s` and `dpm_solver_3s`, in noise or data form."""

    def step(s, k):
        b, inner = k - k % size, k % size
        big, small, sign, q = (s.alpha, s.sigma, 1, s.eps) if noise else (s.sigma, s.alpha, -1, s.x0)
        z = sign * (s.lam[k + 1] - s.lam[b])
        base = big[k + 1] / big[b] * s.x[b] - small[k + 1] * (np.exp(z) - 1) * q[b]
        if inner == 0:
            return base
        share = (s.lam[k + 1] - s.lam[b]) / (s.lam[k] - s.lam[b])  # 1 / r, q / r, 1 / q
        if size == 2:
            return base - small[k + 1] * (np.exp(z) - 1) / 2 * share * (q[k] - q[b])
        return base - small[k + 1] * share * ((np.exp(z) - 1) / z - 1) * (q[k] - q[b])

    return step


EQUATIONS = {
    "ddim": (ddim, {}),
    "euler": (euler, {}),
    "dpm_solver": (dpm_solver, {"lower_order_final": False}),
    "dpm_solver of order 3": (adams("lam", 3), {"order": 3, "lower_order_final": False, "rule": "exact"}),
    "dpm_solver_pp_2m": (dpm_solver_pp_2m, {"lower_order_final": False}),
    "dpm_solver_pp_2m exact": (dpm_solver_pp_2m_exact, {"lower_order_final": False, "rule": "exact"}),
    "dpm_solver_pp_3m": (dpm_solver_pp_3m, {"lower_order_final": False}),
    "deis_tab": (adams("t", 4), {}),
    "deis_rhoab": (adams("rho", 4), {}),
    "deis_log_rho": (adams("lam", 3), {"lower_order_final": False}),
    "lms": (adams("rho", 4), {}),
    "ipndm": (ipndm, {}),
    "dpm_solver_2s": (block(True, 2), {}),
    "dpm_solver_3s": (block(True, 3), {}),
    "dpm_solver_pp_2s": (block(False, 2), {}),
    "dpm_solver_pp_3s": (block(False, 3), {}),
}


def end_of(name, options):
    """Where the plan ends, in the state of the process."""
    grid = Grid(torch.tensor(TIMES[:-1]), float(TIMES[-1]))
    plan = {**SOLVERS, **PARAMETRIC}[name](PROCESS, Prediction("epsilon"), grid, **options)
    unit = float(plan.rows[0].alpha) / PROCESS.alpha(float(TIMES[0]))

    def called(x, time):
        return torch.from_numpy(network(time.numpy() / PROCESS.network_scale, x.numpy()))

    start = torch.tensor([[START * unit]], dtype=torch.float64)
    end = sample(plan, called, seeds=[0], shape=(1,), state=start, dtype=torch.float64)
    return float(end) * PROCESS.alpha(float(TIMES[-1])) / float(plan.final_alpha)


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_equation_of_the_docstring_is_what_the_plan_does(name):
    step, options = EQUATIONS[name]
    s = Letters(TIMES)
    for k in range(len(TIMES) - 1):
        s.call(k)
        s.x.append(step(s, k))
    assert end_of(name.split()[0], options) == pytest.approx(s.x[-1], rel=1e-10)


def test_heun_and_runge_kutta_follow_their_equations():
    s = Letters(TIMES)
    y = START / s.alpha[0]
    for k in range(len(TIMES) - 1):

        def d(y, k):
            return network(s.t[k], s.alpha[k] * y)

        H = s.rho[k + 1] - s.rho[k]
        y = y + H * (d(y, k) + d(y + H * d(y, k), k + 1)) / 2
    assert end_of("heun", {}) == pytest.approx(s.alpha[-1] * y, rel=1e-10)
    assert end_of("rho_rk", {"method": "heun2"}) == pytest.approx(s.alpha[-1] * y, rel=1e-10)


def exact_data_step(h, polynomial):
    """Int e^{l - lam_{k+1}} P dl over a step, P in the share of the step."""
    return quad(lambda u: h * np.exp(-h * (1 - u)) * polynomial(u), 0, 1, epsabs=1e-13)[0]


@pytest.mark.parametrize("rule", ["bh1", "bh2"])
def test_unipc_follows_its_equations(rule):
    """Order 2 in the data form: the corrected state is made, and the estimates are those of the predicted states."""
    s = Letters(TIMES)
    corrected = START
    for k in range(len(TIMES) - 1):
        s.call(k)
        h = s.h(k)
        base = s.sigma[k + 1] / s.sigma[k] * corrected - s.alpha[k + 1] * (np.exp(-h) - 1) * s.x0[k]
        B = {"bh1": -h, "bh2": np.exp(-h) - 1}[rule]
        r1 = (s.lam[k - 1] - s.lam[k]) / h if k else None
        predicted = base - (s.alpha[k + 1] * B * 0.5 * (s.x0[k - 1] - s.x0[k]) / r1 if k else 0.0)
        s.x.append(predicted)
        if k + 2 == len(TIMES):
            break
        new = (predicted - s.sigma[k + 1] * network(s.t[k + 1], predicted)) / s.alpha[k + 1]
        nodes = [0.0, 1.0] if k == 0 else [0.0, 1.0, r1]
        estimates = [s.x0[k], new] if k == 0 else [s.x0[k], new, s.x0[k - 1]]
        if k == 0:
            corrected = base - s.alpha[k + 1] * B * 0.5 * (new - s.x0[k])
        else:
            whole = exact_data_step(h, lagrange(nodes, estimates))
            corrected = s.sigma[k + 1] / s.sigma[k] * corrected + s.alpha[k + 1] * whole
    options = {"rule": rule, "lower_order_final": False, "order": 2}
    assert end_of("unipc", options) == pytest.approx(s.x[-1], rel=1e-9)


def test_amed_follows_its_equations():
    count = len(TIMES) - 1
    r, c, a = np.linspace(0.3, 0.7, count), np.linspace(0.97, 1.02, count), np.linspace(0.98, 1.03, count)
    s = Letters(TIMES)
    for k in range(count):
        s.call(k)
        t = PROCESS.time(s.lam[k] + r[k] * s.h(k))
        alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
        middle = alpha / s.alpha[k] * s.x[k] - sigma * (np.exp(r[k] * s.h(k)) - 1) * s.eps[k]
        s.x.append(s.moved_y(k, c[k] * (s.rho[k + 1] - s.rho[k]) * network(a[k] * t, middle)))
    options = {"places": r.tolist(), "scales": c.tolist(), "time_scales": a.tolist()}
    assert end_of("amed", options) == pytest.approx(s.x[-1], rel=1e-10)


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_the_stochastic_step_has_the_weights_of_its_equation(tau):
    s = Letters(TIMES)
    grid = Grid(torch.tensor(TIMES[:-1]), float(TIMES[-1]))
    options = {"tau": tau, "lower_order_final": False}
    row = SOLVERS["sde_dpm_solver_pp"](PROCESS, Prediction("sample"), grid, **options).rows[3]
    h, r, g = s.h(3), s.r(3), 1 + tau**2
    size = s.alpha[4] * (1 - np.exp(-g * h))
    assert row.state == pytest.approx({3: s.sigma[4] / s.sigma[3] * np.exp(-(tau**2) * h)}, rel=1e-10)
    assert row.output == pytest.approx({3: size * (1 + 1 / (2 * r)), 2: -size / (2 * r)}, rel=1e-10)
    assert row.noise == pytest.approx(s.sigma[4] * np.sqrt(1 - np.exp(-2 * tau**2 * h)), abs=1e-12)
