"""Guidances against Gaussians, for which the posterior and every recursion are linear algebra."""

from dataclasses import replace

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError, PlanError
from fewstep.executor import sample
from fewstep.prediction import Prediction
from fewstep.process import VE, Cosine, RectifiedFlow, VPContinuous
from fewstep.solvers import SOLVERS, grids
from fewstep.tasks.restoration import (
    Measurement,
    blur,
    box_downsampling,
    ddnm,
    ddrm,
    dps,
    inpainting,
    pigdm,
    posterior,
    with_jumps,
)
from fewstep.testing.mixture import Mixture

SHAPE, SIZE = (1, 4, 4), 16
PLACES = torch.arange(SIZE).double()
COVARIANCE = 0.6 * torch.exp(-(PLACES[:, None] - PLACES).abs() / 4)
MEAN = torch.linspace(-0.5, 0.5, SIZE).double()
DATA = Mixture.gaussian(MEAN, COVARIANCE)
MASK = torch.ones(4, 4)
MASK[1:3] = 0
KERNEL = torch.tensor([[0.0, 0.2, 0.0], [0.1, 0.5, 0.1], [0.0, 0.1, 0.0]])
I = torch.eye(SIZE).double()  # noqa: E741
OPERATORS = {"mask": inpainting(MASK, SHAPE), "box": box_downsampling(2, SHAPE), "blur": blur(KERNEL, SHAPE)}


def matrix(operator):
    return operator.forward(I.reshape(-1, *SHAPE)).flatten(1).T


def measurement(operator, noise):
    generator = torch.Generator().manual_seed(1)
    truth = DATA.sample(1, seed=3).reshape(1, *SHAPE)
    seen = operator.forward(truth)
    return Measurement(
        operator, seen + noise * torch.randn(seen.shape, generator=generator, dtype=torch.float64), noise
    )


def exact_posterior(measured):
    a, s = matrix(measured.operator), measured.noise
    gain = COVARIANCE @ a.T @ torch.linalg.pinv(a @ COVARIANCE @ a.T + s**2 * torch.eye(len(a)).double(), rtol=1e-9)
    return MEAN + gain @ (measured.values.flatten() - a @ MEAN), COVARIANCE - gain @ a @ COVARIANCE


def denoiser(process, kind="v_prediction"):
    prediction = Prediction(kind)
    return Denoiser(DATA.network(process, prediction), process, prediction)


def affine_map(plan, known):
    """The plan as M x + b, for networks that are linear."""
    states = torch.cat([torch.zeros(1, *SHAPE).double(), I.reshape(-1, *SHAPE)])
    ends = sample(plan, known.network, seeds=range(len(states)), shape=SHAPE, state=states, dtype=torch.float64)
    ends = ends.flatten(1)
    return (ends[1:] - ends[0]).T, ends[0]


def unconditional(x, alpha, sigma):
    """E[x0 | x] = gain x + rest for the Gaussian."""
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * I)
    return gain, MEAN - alpha * gain @ MEAN


def corrected(name, alpha, sigma, measured):
    """The rule as an affine function of the state, written with matrices."""
    a, y, s = matrix(measured.operator), measured.values.flatten(), measured.noise
    gain, rest = unconditional(None, alpha, sigma)
    white = torch.eye(len(a)).double()
    if name == "ddnm":
        pull = torch.linalg.pinv(a, rtol=1e-6)
    elif name == "ddrm":
        u, values, v = torch.linalg.svd(a)
        keep = values > 1e-6
        weight = (values[keep] * sigma / (alpha * s)).clamp(max=1) / values[keep]
        pull = v[: len(values)][keep].T @ torch.diag(weight) @ u[:, : len(values)][:, keep].T
    elif name == "pigdm":
        rho = sigma**2 / (alpha**2 + sigma**2)
        pull = sigma**2 / alpha * gain.T @ a.T @ torch.linalg.inv(rho * a @ a.T + s**2 * white)
    elif name == "exact":
        doubt = sigma**2 / alpha * gain
        pull = doubt @ a.T @ torch.linalg.inv(a @ doubt @ a.T + s**2 * white)
    else:
        pull = 0.5 * sigma**2 / alpha * gain.T @ a.T / s**2
    return gain - pull @ a @ gain, rest + pull @ (y - a @ rest)


RULES = {
    "ddnm": ddnm(),
    "ddrm": ddrm(),
    "pigdm": pigdm(),
    "exact": pigdm(exact=True, iterations=100, tolerance=1e-13),
    "dps": dps(0.5, variance="noise"),
}


@pytest.mark.parametrize("process", [VPContinuous(), VE(3.0)], ids=["vp", "ve"])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", RULES)
def test_a_plan_with_a_guidance_follows_its_own_linear_recursion(name, operator, process):
    measured = measurement(OPERATORS[operator], 0.3)
    times = [0.8 * process.noisiest, 0.5 * process.noisiest, 0.2 * process.noisiest]
    plan = SOLVERS["ddim"](process, Prediction("epsilon"), grids.given(times))
    found = affine_map(plan, posterior(denoiser(process, "epsilon"), measured, RULES[name]))
    m, b = I, torch.zeros(SIZE).double()
    for t, s in zip(times, [*times[1:], None], strict=True):
        alpha, sigma = process.alpha(t), process.sigma(t)
        alpha_s, sigma_s = (1.0, 0.0) if s is None else (process.alpha(s), process.sigma(s))
        gain, rest = corrected(name, alpha, sigma, measured)
        kept = sigma_s / sigma
        step = kept * I + (alpha_s - alpha * kept) * gain
        m, b = step @ m, step @ b + (alpha_s - alpha * kept) * rest
    torch.testing.assert_close(found[0], m, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found[1], b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("operator", OPERATORS)
def test_exact_covariance_converges_to_the_posterior_of_gaussians(operator):
    process, measured = Cosine(), measurement(OPERATORS[operator], 0.1)
    mean, covariance = exact_posterior(measured)
    known = posterior(denoiser(process), measured, RULES["exact"])
    errors = []
    for steps in (8, 32, 90):
        plan = SOLVERS["ddim"](process, known.prediction, grids.uniform_lambda(process, steps, 0.005, first=0.99))
        m, b = affine_map(plan, known)
        errors.append(
            (
                float((b - mean).norm() / covariance.trace().sqrt()),
                float((m @ m.T - covariance).norm() / covariance.norm()),
            )
        )
    assert max(mean for mean, _ in errors) < 0.01  # at any count: what is left is the signal in the first state
    # the covariance to the first order of ddim, that is to nothing: error times steps is the same for both
    assert 90 * errors[2][1] == pytest.approx(32 * errors[1][1], rel=0.25)
    assert errors[2][1] < 0.1


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm_solver_pp_2m", "unipc"])
def test_every_solver_runs_a_guidance_to_the_same_end(solver):
    process, measured = Cosine(), measurement(OPERATORS["box"], 0.3)
    known = posterior(denoiser(process), measured, pigdm())

    def end(name, steps):
        grid = grids.uniform_lambda(process, steps, 0.01, first=0.95, end=0.005)
        plan = SOLVERS[name](process, known.prediction, grid)
        state = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        state = state * plan.prior_scale
        return sample(plan, known.network, seeds=[0, 1], shape=SHAPE, state=state, dtype=torch.float64)

    # at the end alpha is 0.9999, and in sigma space 1
    torch.testing.assert_close(end(solver, 40), end("ddim", 300), rtol=0.03, atol=0.03)


class _Counted(torch.autograd.Function):
    backwards = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        _Counted.backwards += 1
        return grad


@pytest.mark.parametrize(("rule", "products"), [(dps(), 1), (pigdm(), 1), (ddnm(), 0), (ddrm(), 0)])
def test_a_step_costs_one_call_and_at_most_one_transposed_product(rule, products):
    process, calls = Cosine(), []
    plain = denoiser(process)

    def counted(x, time):
        calls.append(time)
        return _Counted.apply(plain.network(x, time))

    known = posterior(Denoiser(counted, process, plain.prediction), measurement(OPERATORS["box"], 0.1), rule)
    plan = SOLVERS["ddim"](process, plain.prediction, grids.uniform_lambda(process, 5, 0.05, first=0.9))
    _Counted.backwards = 0
    sample(plan, known.network, seeds=[0], shape=SHAPE)
    assert len(calls) == 5
    assert _Counted.backwards == 5 * products


def test_dps_is_the_gradient_of_the_residual_that_autograd_finds():
    process, measured, t = Cosine(), measurement(OPERATORS["blur"], 0.0), 0.6
    plain = denoiser(process)
    x = torch.randn(2, *SHAPE, dtype=torch.float64, requires_grad=True)
    data = plain(x, t)
    squares = measured.residual(data).square().flatten(1)
    (gradient,) = torch.autograd.grad(-0.5 * squares.sum(), x)
    spread = squares.detach().mean(1).reshape(-1, 1, 1, 1)
    expected = data + 2 * process.sigma(t) ** 2 / process.alpha(t) * gradient / spread
    torch.testing.assert_close(posterior(plain, measured, dps(2.0))(x.detach(), t), expected.detach())


def test_where_a_flow_has_no_signal_the_first_step_is_finite_and_knows_the_measurement():
    process, operator = RectifiedFlow(), OPERATORS["box"]
    measured = measurement(operator, 0.0)
    plain, state = denoiser(process, "velocity"), torch.randn(2, *SHAPE, dtype=torch.float64)
    for rule in (pigdm(exact=True), ddnm(), ddrm()):
        found = posterior(plain, measured, rule)(state, 1.0)
        torch.testing.assert_close(operator.forward(found), measured.values.expand(2, -1, -1, -1), rtol=1e-4, atol=1e-4)
    for rule in (dps(), pigdm()):  # without the covariance of the data these are not exact
        assert bool(posterior(plain, measured, rule)(state, 1.0).isfinite().all())


def test_jumps_follow_the_algorithm_written_out():
    """Mean and covariance of RePaint's loop, step by step with fresh noise each time, and of the rows."""
    process, measured = Cosine(), measurement(OPERATORS["mask"], 0.0)
    times = [0.9, 0.6, 0.3, 0.1]
    ancestral = SOLVERS["ddim"](process, Prediction("epsilon"), grids.given(times), eta=1.0)
    plan = with_jumps(ancestral, 2, 3)
    assert plan.steps == 12
    level = [(process.alpha(t), process.sigma(t)) for t in times] + [(1.0, 0.0)]
    mean, spread = torch.zeros(SIZE).double(), I
    for first in (0, 2):
        for again in (3, 2, 1):
            for k in (first, first + 1):
                (alpha, sigma), (alpha_s, sigma_s) = level[k], level[k + 1]
                gain, rest = corrected("ddnm", alpha, sigma, measured)
                fresh = sigma_s * (1 - (sigma_s * alpha / (alpha_s * sigma)) ** 2) ** 0.5
                kept = (sigma_s**2 - fresh**2) ** 0.5 / sigma
                step = kept * I + (alpha_s - alpha * kept) * gain
                mean = step @ mean + (alpha_s - alpha * kept) * rest
                spread = step @ spread @ step.T + fresh**2 * I
            if again > 1:
                (alpha, sigma), (alpha_s, sigma_s) = level[first], level[first + 2]
                c = alpha / alpha_s
                mean, spread = c * mean, c**2 * spread + (sigma**2 - (c * sigma_s) ** 2) * I
    known = posterior(denoiser(process, "epsilon"), measured, ddnm())
    b, cov = torch.zeros(SIZE).double(), I
    for k, row in enumerate(plan.rows):
        tables = {name: {j - k: c for j, c in getattr(row, name).items()} for name in ("state", "output")}
        m, shift = affine_map(plan.replace(rows=(replace(row, **tables, noise=0.0),)), known)
        b, cov = m @ b + shift, m @ cov @ m.T + row.noise**2 * I
    torch.testing.assert_close(b, mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(cov, spread, rtol=1e-8, atol=1e-8)


def test_jumps_bring_the_unknown_pixels_nearer_to_the_posterior():
    process, measured = Cosine(), measurement(OPERATORS["mask"], 0.0)
    mean, _ = exact_posterior(measured)
    known = posterior(denoiser(process, "epsilon"), measured, ddnm())
    grid = grids.uniform_lambda(process, 12, 0.02, first=0.97)
    ancestral = SOLVERS["ddim"](process, known.prediction, grid, eta=1.0)
    errors = []
    for repeats in (1, 8):
        plan = with_jumps(ancestral, 3, repeats)
        found = sample(plan, known.network, seeds=range(600), shape=SHAPE, dtype=torch.float64)
        errors.append(float((found.flatten(1).mean(0) - mean).norm()))
    assert errors[1] < 0.6 * errors[0]


def test_what_does_not_fit_is_refused():
    box = OPERATORS["box"]
    with pytest.raises(FewstepError, match="not one of box"):
        Measurement(box, torch.zeros(1, 1, 4, 4))
    with pytest.raises(FewstepError, match="NaN"):
        Measurement(box, torch.full((1, 1, 2, 2), float("nan")))
    with pytest.raises(FewstepError, match="standard deviation"):
        Measurement(box, torch.zeros(1, 2, 2), noise=-1)
    with pytest.raises(FewstepError, match="no variance"):
        posterior(denoiser(Cosine()), Measurement(box, torch.zeros(1, 2, 2)), dps(variance="noise"))(
            torch.zeros(1, *SHAPE), 0.5
        )
    multistep = SOLVERS["dpm_solver_pp_2m"](Cosine(), Prediction(), grids.given([0.9, 0.5, 0.1]))
    with pytest.raises(PlanError, match="reads earlier ones"):
        with_jumps(multistep, 2, 2)
    with pytest.raises(PlanError, match="at least 1"):
        with_jumps(multistep, 0, 2)
