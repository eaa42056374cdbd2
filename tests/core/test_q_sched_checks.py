"""The two smallest honest checks of Q-Sched (arXiv 2509.01624): a linear model in closed form, and real digits."""

import itertools

import pytest
import torch
from scipy.optimize import minimize

from fewstep.executor import sample
from fewstep.plan.history import History
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.solvers import ddim, grids
from fewstep.testing.kernel_digits import KernelDenoiser, load_digits

VELOCITY, FLOW = Prediction("velocity"), RectifiedFlow()


def root(c):
    values, axes = torch.linalg.eigh(c)
    return axes @ torch.diag(values.clamp(min=0).sqrt()) @ axes.mT


def frechet(mean, covariance, other_mean, other_covariance):
    """Squared Frechet distance of two Gaussians."""
    half = root(other_covariance)
    cross = torch.linalg.eigvalsh(half @ covariance @ half).clamp(min=0).sqrt().sum()
    return (mean - other_mean).square().sum() + covariance.trace() + other_covariance.trace() - 2 * cross


class Linear:
    """Check A: N(0, Q diag(lam) Q^T) in 64 dimensions, and the exact few-step network, one matrix per step."""

    def __init__(self, steps, bits=None, seed=0):
        g = torch.Generator().manual_seed(seed)
        axes = torch.linalg.qr(torch.randn(64, 64, generator=g, dtype=torch.float64)).Q
        lam = torch.logspace(0.6, -1.2, 64, dtype=torch.float64)
        self.steps, self.zero, self.goal = steps, torch.zeros(64).double(), axes @ torch.diag(lam) @ axes.mT
        self.plan = ddim(FLOW, VELOCITY, grids.uniform(FLOW, steps))
        times = [row.sigma for row in self.plan.rows] + [0.0]
        self.weights = []
        for a, b in itertools.pairwise(times):
            va, vb = ((1 - t) ** 2 * lam + t**2 for t in (a, b))
            self.weights.append(rounded(axes @ torch.diag((1 - (vb / va).sqrt()) / (a - b)) @ axes.mT, bits))

    def distance(self, sample_scale, output_scale):
        """Frechet distance of the output, whose covariance follows from the plan's own rows run on unit vectors."""
        plan = self.plan.scaled(sample_scale.unbind(), output_scale.unbind())
        history, x = History(plan.rows, VELOCITY), torch.eye(64, dtype=torch.float64)
        for k, weight in enumerate(self.weights):
            x = history.advance(k, x, x @ weight.mT)
        return frechet(self.zero, x.mT @ x, self.zero, self.goal)

    def ramps(self, ends):
        """Scalars for (first s, first m) ramping to 1, or (first s, last s, first m, last m)."""
        s, m = ((ends[0], 1.0), (ends[1], 1.0)) if len(ends) == 2 else (ends[:2], ends[2:])
        return (torch.linspace(float(a), float(b), self.steps).double() for a, b in (s, m))

    def at(self, ends):
        return float(self.distance(*self.ramps(ends))) ** 0.5


def rounded(weight, bits):
    """Symmetric per-row rounding."""
    if bits is None:
        return weight
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(1, keepdim=True) / top
    return (weight / scale).round().clamp(-top - 1, top) * scale


def tuned(model, points=21):
    """(untuned, best of a square grid of ramps to 1, best of a local search over four ends from there)."""
    grid = torch.linspace(0.8, 1.2, points).tolist()
    best = min(((model.at((s, m)), s, m) for s in grid for m in grid), key=lambda found: found[0])
    start = [best[1], 1.0, best[2], 1.0]
    four = minimize(model.at, start, method="Nelder-Mead", options={"maxfev": 250, "xatol": 1e-3, "fatol": 1e-4}).fun
    return model.at((1.0, 1.0)), best[0], four


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_full_precision_needs_no_tuning(steps):
    model = Linear(steps)
    one = torch.ones(steps).double()
    assert float(model.distance(one, one)) == pytest.approx(0, abs=1e-9)
    for s, m in ((0.95, 1.0), (1.0, 0.95), (1.05, 1.05)):
        assert float(model.distance(s * one, m * one)) > 1e-3


@pytest.mark.parametrize(
    ("steps", "bits", "expected"),
    [(4, 4, (0.66, 0.50, 0.46)), pytest.param(8, 3, (1.12, 0.88, 0.75), marks=pytest.mark.slow)],
)
def test_tuning_repairs_a_part_of_the_rounding(steps, bits, expected):
    found = tuned(Linear(steps, bits))
    assert found[2] <= found[1] <= found[0]
    assert found == pytest.approx(expected, rel=0.05)


def test_eight_bits_leave_nothing_to_repair():
    before, two, _ = tuned(Linear(4, 8), points=9)
    assert 0.02 < before < 0.05
    assert two == pytest.approx(before, rel=0.1)


def test_gradients_of_the_scalars():
    model = Linear(4, 4)
    inputs = [torch.linspace(0.95, 1.05, 4).double().requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(model.distance, inputs, eps=1e-6, atol=1e-5)


# --- check B: digits ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def statistics(x):
    return x.double().mean(0), torch.cov(x.double().mT)


def test_the_kernel_denoiser_is_exact(digits):
    """Against the mixture with one Gaussian of the bandwidth on every image."""
    from fewstep.testing.mixture import Mixture

    images = digits.train[:100]
    mixture = Mixture(torch.ones(100).double() / 100, images, torch.full_like(images, 0.35**2))
    network, exact = KernelDenoiser(images), mixture.network(FLOW, VELOCITY)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    for time in (1000.0, 600.0, 150.0):
        with torch.no_grad():
            ours = network(x, torch.tensor(time))
        torch.testing.assert_close(ours.double(), exact(x.double(), torch.tensor(time).double()), rtol=1e-3, atol=1e-3)


def test_the_split_is_that_of_the_reference(digits):
    assert (digits.train.shape, digits.test.shape) == ((1472, 64), (325, 64))
    assert float(frechet(*statistics(digits.train), *statistics(digits.test))) == pytest.approx(1.42, rel=0.03)
    assert sorted(digits.train_labels.unique().tolist()) == list(range(10))


def digit_distances(digits, scheme, steps=4):
    """Test Frechet distance of 1,024 fresh samples, (untuned, tuned on 256 others against the training images)."""
    from fewstep.quant import quantize

    network = KernelDenoiser(digits.train)
    if scheme:
        quantize(network, scheme)
    base, goals = ddim(FLOW, VELOCITY, grids.uniform(FLOW, steps)), (statistics(digits.train), statistics(digits.test))

    @torch.no_grad()
    def distance(s, m, seeds, goal):
        ramps = (torch.linspace(first, 1.0, steps).double().unbind() for first in (s, m))
        return float(frechet(*statistics(sample(base.scaled(*ramps), network, seeds=seeds, shape=(64,))), *goal))

    grid = torch.linspace(0.8, 1.2, 9).tolist()
    best = min((distance(s, m, range(256), goals[0]), s, m) for s in grid for m in grid)
    fresh = range(10_000, 11_024)
    return distance(1.0, 1.0, fresh, goals[1]), distance(best[1], best[2], fresh, goals[1])


@pytest.mark.slow
def test_q_sched_on_digits(digits):
    """Four bits with tuned scalars beat untuned full precision; tuned full precision is better still."""
    full, full_tuned = digit_distances(digits, None)
    four, four_tuned = digit_distances(digits, "w4")
    assert full == pytest.approx(4.53, rel=0.05)
    assert four == pytest.approx(4.73, rel=0.05)
    assert full < four
    assert four_tuned < 0.81 * full
    assert full_tuned < four_tuned
