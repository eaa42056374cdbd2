"""Distances between two sets of feature vectors (n, d), in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import FewstepError, NonFiniteError
from fewstep.images import check_range

KERNEL_FACTORS = (0.25, 1.0, 4.0)
MEDIAN_SUBSET = 1000  # the median of the pairwise distances needs no more points than this
NEIGHBOURS = 3
ROUNDING = 1e-6  # of the largest norm; the square root of the rounding of a squared distance in float64, and some


@dataclass(frozen=True)
class RbfKernel:
    """k(x, y) = sum_g exp(-g |x - y|^2); fixed once per evaluation, so that all systems meet the same kernel."""

    gammas: tuple[float, ...]

    @classmethod
    def of(cls, reference: Tensor) -> RbfKernel:
        """gamma = 1 / (2 median^2) of the pairwise distances of the reference (m, d), times 1/4, 1 and 4.

        Raises:
            FewstepError: fewer than two different reference vectors.
            NonFiniteError: a feature is no number.
        """
        _need_finite(reference)
        points = reference[:: max(1, len(reference) // MEDIAN_SUBSET)].double()
        distances = torch.nn.functional.pdist(points)
        median = float(distances.median()) if len(distances) else 0.0
        if median <= 0:
            raise FewstepError(
                "the reference has no spread: most of its vectors are equal",
                value=len(reference),
                hint="Give more and different reference images.",
            )
        return cls(tuple(factor / (2 * median**2) for factor in KERNEL_FACTORS))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Kernel matrix (n, m) of x (n, d) and y (m, d)."""
        return self.of_distances(torch.cdist(x.double(), y.double()))

    def of_distances(self, between: Tensor) -> Tensor:
        """Kernel matrix for distances (n, m) that are already known."""
        squared, term, total = between.square(), torch.empty_like(between), torch.zeros_like(between)
        for gamma in self.gammas:  # in place: for thousands of images fresh memory costs more than the exponential
            total += torch.mul(squared, -gamma, out=term).exp_()
        return total


def mmd2(x: Tensor, y: Tensor, kernel: RbfKernel) -> float:
    """Unbiased squared maximum mean discrepancy (JMLR 13:723, equation 3); below zero at times if the laws agree."""
    _need(x, y, at_least=2)
    return float(_off_diagonal_mean(kernel(x, x)) + _off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean())


def kid(x: Tensor, y: Tensor) -> float:
    """Kernel distance (arXiv 1801.01401): the unbiased squared MMD with (a.b / d + 1)^3, over all rows at once.

    Packages average it over random subsets; with one subset of all rows they give this number.
    """
    _need(x, y, at_least=2)
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    return float(_off_diagonal_mean(kernel(x, x)) + _off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean())


def mean_similarity(y: Tensor, kernel: RbfKernel) -> float:
    """Mean kernel value of two different rows of y (m, d)."""
    return float(_off_diagonal_mean(kernel(y, y)))


def mmd2_draws(
    x: Tensor, y: Tensor, kernel: RbfKernel, weights: Tensor, within_y: float | None = None
) -> tuple[float, Tensor]:
    """`mmd2` and its values (B,) for resampled x; weights (B, n) count how often each row of x was drawn.

    A pair of copies of one row is left out like the diagonal: otherwise resampling itself would look like a distance.
    within_y: `mean_similarity(y, kernel)` if already known; it costs m^2 and is the same for all systems.
    """
    _need(x, y, at_least=2)
    inside, across = kernel(x, x), kernel(x, y).mean(1)
    rest = mean_similarity(y, kernel) if within_y is None else within_y
    estimate = float(_off_diagonal_mean(inside)) + rest - 2 * float(across.mean())
    inside = inside - torch.diag(inside.diagonal())
    total = weights.sum(1)
    pairs = total.square() - weights.square().sum(1)
    draws = ((weights @ inside) * weights).sum(1) / pairs.clamp(min=1) + rest - 2 * (weights @ across) / total
    return estimate, draws


def gaussian_mmd2(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor, kernel: RbfKernel) -> float:
    """Squared MMD of two normal laws in closed form: means (d,), covariances (d, d)."""

    def expected(mean: Tensor, covariance: Tensor) -> Tensor:
        # For z ~ N(m, S): E exp(-g |z|^2) = |I + 2 g S|^(-1/2) exp(-g m^T (I + 2 g S)^(-1) m), with z = x - y.
        values = []
        for gamma in kernel.gammas:
            stretch = torch.eye(len(mean), dtype=torch.float64) + 2 * gamma * covariance
            power = -gamma * mean @ torch.linalg.solve(stretch, mean)
            values.append(torch.exp(power) / torch.linalg.det(stretch).sqrt())
        return torch.stack(values).sum()

    zero = torch.zeros_like(mean_x)
    inside = expected(zero, 2 * cov_x) + expected(zero, 2 * cov_y)
    return float(inside - 2 * expected(mean_x - mean_y, cov_x + cov_y))


def gaussian_frechet(mean_x: Tensor, cov_x: Tensor, mean_y: Tensor, cov_y: Tensor) -> float:
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) (arXiv 1706.08500), by symmetric eigenvalues.

    (S_x S_y)^(1/2) has the trace of (S_x^(1/2) S_y S_x^(1/2))^(1/2), which stays real when a covariance is singular.
    """
    root = _root(cov_x)
    cross = torch.linalg.eigvalsh(root @ cov_y @ root).clamp(min=0).sqrt().sum()
    return float((mean_x - mean_y).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross)


def frechet(x: Tensor, y: Tensor) -> float:
    """Fréchet distance of normal fits to x (n, d) and y (m, d).

    Biased upwards, by about d (d + 1) / (2 n) on whitened features when both sides have n rows: compare only at
    equal n, and beside the null. With n <= d the covariance is shrunk (Ledoit and Wolf, JMVA 2004).
    """
    _need(x, y, at_least=2)
    return gaussian_frechet(*normal_fit(x), *normal_fit(y))


def frechet_draws(
    x: Tensor, y: Tensor, weights: Tensor, fit_y: tuple[Tensor, Tensor] | None = None
) -> tuple[float, Tensor]:
    """`frechet` and its values (B,) for resampled x, to first order; weights (B, n) count how often each row was drawn.

    dF = 2 (m_x - m_y) dm + tr((I - T) dS), T the optimal transport map from the fit of x to the fit of y: no
    covariance is fitted per resample, and one decomposition gives both F and T.
    fit_y: mean and root of the covariance, `root_fit(y)`, if already known; it is the same for all systems.
    """
    _need(x, y, at_least=2)
    mean_x, cov_x = normal_fit(x)
    mean_y, root = root_fit(y) if fit_y is None else fit_y
    values, vectors = torch.linalg.eigh(root @ cov_x @ root)
    traces = cov_x.trace() + root.square().sum() - 2 * values.clamp(min=0).sqrt().sum()
    inverse = torch.where(values > 1e-10 * values.max(), values.clamp(min=1e-300).rsqrt(), torch.zeros_like(values))
    transport = root @ (vectors * inverse) @ vectors.T @ root
    centred = x.double() - mean_x
    slope = torch.eye(len(mean_x), dtype=torch.float64) - transport
    influence = 2 * centred @ (mean_x - mean_y) + ((centred @ slope) * centred).sum(1)
    estimate = float((mean_x - mean_y).square().sum() + traces)
    return estimate, estimate + weights @ (influence - influence.mean()) / len(x)


def root_fit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and symmetric root (d, d) of the covariance of x (n, d), as `frechet` fits it."""
    mean, covariance = normal_fit(x)
    return mean, _root(covariance)


def precision_recall(x: Tensor, y: Tensor, k: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Improved precision and recall (arXiv 1904.06991), x generated (n, d), y real (m, d): flags (n,) and (m,).

    Precision is the mean of the first (x lies in a k-nearest-neighbour ball of a real point), recall the mean of the
    second. Both depend on n and m: compare only at equal sizes.
    """
    within, covers = ball_matrices(x, y, k)
    return within.any(1), covers.any(1)


def ball_radii(points: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Distance (n,) of each point (n, d) to its k-th nearest other point.

    Raises:
        NonFiniteError: a feature is no number.
    """
    _need_finite(points)
    return kth_distances(torch.cdist(points.double(), points.double()), k)


def kth_distances(between: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """k-th smallest entry (n,) of each row of a distance matrix (n, n), not counting the point itself."""
    return between.topk(k + 1, dim=1, largest=False).values[:, k]


def ball_matrices(x: Tensor, y: Tensor, k: int = NEIGHBOURS, radii_y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Who lies in whose ball: (n, m) bool, x_i in the ball of y_j; and (m, n) bool, y_j in the ball of x_i.

    radii_y: `ball_radii(y, k)` if already known.
    """
    _need(x, y, at_least=k + 1)
    # The slack keeps a point inside a ball of radius zero around its equal, in spite of rounding.
    between = torch.cdist(x.double(), y.double()) - ROUNDING * float(y.norm(dim=1).max())
    return between <= (ball_radii(y, k) if radii_y is None else radii_y), (ball_radii(x, k) >= between.T)


def sliced_w2(x: Tensor, y: Tensor, directions: int = 256, seed: int = 0) -> float:
    """Squared 2-Wasserstein distance of 1-D projections, mean over random directions; biased upwards by about 1 / n.

    Unequal sizes are compared at the quantiles of the larger set, by linear interpolation.
    """
    _need(x, y, at_least=2)
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(x.shape[1], directions, generator=generator, dtype=torch.float64)
    axes = axes / axes.norm(dim=0)
    count = max(len(x), len(y))
    return float((_quantiles(x.double() @ axes, count) - _quantiles(y.double() @ axes, count)).square().mean())


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased 2 E|x - y| - E|x - x'| - E|y - y'| of x (n, d) and y (m, d): zero for equal laws, needs no bandwidth."""
    _need(x, y, at_least=2)
    between, within = torch.cdist(x.double(), y.double()), (torch.cdist(p.double(), p.double()) for p in (x, y))
    return float(2 * between.mean() - sum(_off_diagonal_mean(square) for square in within))


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of images (B, ...) in [0, 1] to their twins; 100 dB at most.

    Raises:
        FewstepError: images of another range.
    """
    images, reference = check_range(images), check_range(reference)
    error = (images.double() - reference.double()).square().flatten(1).mean(1)
    return -10 * error.clamp(min=1e-10).log10()


def diversity(features: Tensor) -> Tensor:
    """Mean distance between the images of one prompt: features (S, P, d), S seeds of P prompts -> (P,).

    Raises:
        FewstepError: one seed only.
        NonFiniteError: a feature is no number.
    """
    _need_finite(features)
    seeds = len(features)
    if seeds < 2:
        raise FewstepError("diversity compares seeds", value=seeds, hint="Generate at least two seeds per prompt.")
    by_prompt = features.double().transpose(0, 1)
    return torch.cdist(by_prompt, by_prompt).sum((1, 2)) / (seeds * (seeds - 1))


def _need(x: Tensor, y: Tensor, at_least: int) -> None:
    sizes: Sequence[int] = (*x.shape, *y.shape)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < at_least:
        raise FewstepError(
            f"two sets of features (n, d) with the same d and at least {at_least} rows are needed",
            value=sizes,
            hint="Generate more images, or use the same feature network for both sets.",
        )
    _need_finite(x, y)


def _need_finite(*sets: Tensor) -> None:
    """NaN is less than nothing and more than nothing: flags and medians would come out of it without a word."""
    for features in sets:
        if not bool(features.isfinite().all()):
            raise NonFiniteError("features hold NaN or infinity", hint="Look at the images: the network diverged.")


def _off_diagonal_mean(square: Tensor) -> Tensor:
    return (square.sum() - square.trace()) / (len(square) * (len(square) - 1))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def normal_fit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and covariance (d, d) of x (n, d); with n <= d it is shrunk (Ledoit and Wolf)."""
    x = x.double()
    mean = x.mean(0)
    if len(x) > x.shape[1]:
        return mean, torch.atleast_2d(torch.cov(x.T))
    from sklearn.covariance import ledoit_wolf

    covariance, _ = ledoit_wolf(x.numpy())
    return mean, torch.from_numpy(covariance)


def _quantiles(projected: Tensor, count: int) -> Tensor:
    """Sorted columns (n, k), read at `count` equally spaced levels -> (count, k)."""
    ordered = projected.sort(0).values
    if len(ordered) == count:
        return ordered
    place = ((torch.arange(count, dtype=torch.float64) + 0.5) / count * len(ordered) - 0.5).clamp(0, len(ordered) - 1)
    low = place.floor().long()
    high = (low + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], (place - low)[:, None])
