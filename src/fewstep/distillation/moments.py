"""Maximum mean discrepancy: a loss between two sets of samples, no teacher or critic (MMD-DDM, arXiv 2301.07969)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.part import part
from fewstep.distillation.rollout import needed
from fewstep.errors import FewstepError

Kernel = Callable[[Tensor, Tensor], Tensor]
"""Features (n, d) and (m, d) -> values (n, m)."""


@part
def polynomial_kernel(degree: int = 3, offset: float = 1.0) -> Kernel:
    """(a . b / d + offset)^degree: the kernel of KID is cubic. Degree 1 matches the means alone."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + offset) ** degree

    return kernel


@part
def gaussian_kernel(widths: tuple[float, ...] = (0.25, 0.5, 1.0)) -> Kernel:
    """Mean over widths of exp(-|a - b|^2 / (2 width^2))."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        # not cdist, whose gradient is undefined at distance 0
        square = (a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T).clamp(min=0)
        return torch.stack([torch.exp(-square / (2 * width**2)) for width in widths]).mean(0)

    return kernel


def discrepancy(x: Tensor, y: Tensor, kernel: Kernel, paired: bool = False) -> Tensor:
    """Unbiased estimate of the squared discrepancy of two sets; may be negative.

    Args:
        x: one set (n, d).
        y: the other (m, d).
        kernel: of the discrepancy.
        paired: sample i of both was drawn for condition i, so that the two are alike as no other two are. Their own
            value is then left out, as that of a sample with itself is: kept, it would push the conditions apart.

    Returns:
        A scalar.

    Raises:
        FewstepError: fewer than two samples on a side, or pairs of sets that are not equally large.
    """
    n, m = len(x), len(y)
    if n < 2 or m < 2:
        raise FewstepError("two sets of two samples at least are needed", value=(n, m), hint="Use a larger batch.")
    if paired and n != m:
        raise FewstepError("pairs need as many samples on both sides", value=(n, m), hint="Compare whole batches.")
    cross = kernel(x, y)
    between = _others(cross) if paired else cross.mean()
    return _others(kernel(x, x)) + _others(kernel(y, y)) - 2 * between


def _others(values: Tensor) -> Tensor:
    """Mean of values (n, n) off the diagonal."""
    n = len(values)
    return (values.sum() - values.diagonal().sum()) / (n * (n - 1))


def flat(x: Tensor) -> Tensor:
    """The samples' own numbers as features."""
    return x.flatten(1)


@part
def maximum_mean_discrepancy(
    features: Callable[[Tensor], Tensor] = flat,
    kernel: Kernel = polynomial_kernel(),
    scale: float = 1.0,
    unit: bool = False,
) -> Term:
    """Discrepancy of the student's samples from the real ones of the batch in a feature space.

    In a batch with conditions, sample i of the student and of the data share the condition: they are compared as pairs.
    Computed in float32 at least, for a cubic kernel overflows in half precision.

    Args:
        features: samples (B, ...) -> (B, d), with a gradient; decodes latents where it must. Evaluate the result by
            others.
        kernel: of the features.
        scale: of the loss.
        unit: divide features by the root mean squared distance of two real ones, which the widths of a radial kernel
            want.

    Raises:
        FewstepError: when called: the batch holds no data.
    """

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        x = needed(samples).clean
        if batch.clean is None:
            raise FewstepError("this objective compares with real data", hint="Give the distillation data.")
        with torch.no_grad():
            real = features(batch.clean)
        wide = torch.promote_types(real.dtype, torch.float32)
        real = real.to(wide)
        size = (2 * real.var(0).sum()).sqrt() if unit else 1.0
        made_here = features(x).to(wide)
        found = discrepancy(made_here / size, real / size, kernel, paired=batch.condition is not None)
        return scale * found, {"discrepancy": found.detach()}

    return loss
