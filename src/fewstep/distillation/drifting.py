"""Drifting: the student's samples are moved towards real ones and away from each other (arXiv 2602.04770)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.distillation.core import Batch, Loss, Networks, Samples, Term
from fewstep.distillation.moments import flat
from fewstep.distillation.part import part
from fewstep.distillation.rollout import needed
from fewstep.errors import FewstepError


def drift(x: Tensor, real: Tensor, others: Tensor, width: float | Tensor, alike: Tensor | None = None) -> Tensor:
    """Where samples should go; zero on average where `real` and `others` have one law (arXiv 2602.04770).

        V = a+ (sum a-) real - a- (sum a+) others,  a = sqrt(softmax_rows softmax_columns)(-|x - y| / width)

    with both softmaxes over real and other samples together. Exchanging the two sets turns the sign.

    Args:
        x: the samples (n, d).
        real: what attracts (m, d).
        others: what repels (k, d).
        width: of the kernel, in the units of distances.
        alike: which of the m + k each sample may see (n, m + k); all unless given.

    Returns:
        (n, d); zero for a sample that sees only one of the two sets.
    """
    logits = -torch.cdist(x, torch.cat([real, others])) / width
    if alike is not None:
        logits = logits.masked_fill(~alike, -torch.inf)
    # a row or a column in which nobody sees anybody has no softmax: its weights are 0
    affinity = (0.5 * (logits.log_softmax(1) + logits.log_softmax(0))).exp().nan_to_num(0.0)
    towards, away = affinity.split([len(real), len(others)], dim=1)
    pull, push = towards * away.sum(1, keepdim=True), away * towards.sum(1, keepdim=True)
    return pull @ real - push @ others


@part
def drifting_loss(
    features: Callable[[Tensor], Tensor] = flat, widths: tuple[float, ...] = (0.02, 0.05, 0.2), normalise: bool = True
) -> Term:
    """mean |f - sg(f + sum over widths of V)|^2 / d on features f (B, d) of the student's samples.

    Features are divided so that the mean distance between samples and data is sqrt(d); widths are multiples of that
    distance. In a batch with conditions a sample sees those of its own condition alone.

    The loss itself says nothing with `normalise`; logged are `drift`, the root mean square of V before it, in multiples
    of the mean distance (it falls towards 0), and `alone`, the share of samples that see no other of their condition.

    Args:
        features: samples (B, ...) -> (B, d), with a gradient. Evaluate the result by others.
        widths: of the kernels.
        normalise: V of each width is divided by its root mean square over the batch.

    Raises:
        FewstepError: when called: the batch holds no data, or no two samples of one condition in the first one.
    """

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        if batch.clean is None:
            raise FewstepError("this objective compares with real data", hint="Give the distillation data.")
        own = features(needed(samples).clean)
        found = own.to(torch.promote_types(own.dtype, torch.float32))
        with torch.no_grad():
            real, here = features(batch.clean).to(found), found.detach()
            typical = torch.cdist(here, real).mean()
            seen = _alike(batch, here.device)
            alone = ~seen[:, batch.size :].any(1)
            if batch.step == 0 and bool(alone.all()):  # later steps do not wait for the device
                hint = "Use a larger batch, or data with several samples of each condition."
                raise FewstepError("no two samples of the batch share a condition", value=batch.size, hint=hint)
            moves = [drift(here, real, here, width * typical, seen) for width in widths]
            sizes = [move.square().mean().sqrt() for move in moves]
            unit = typical / found.shape[1] ** 0.5  # what a feature is divided by
            parts = zip(moves, sizes, strict=True)
            move = sum(m * unit / size.clamp(min=1e-12) if normalise else m for m, size in parts)
        distance = ((found - (here + move)) / unit).square().mean()
        numbers = {"drift": torch.stack(sizes).square().mean().sqrt() / unit, "alone": alone.float().mean()}
        return distance, numbers

    return loss


def _alike(batch: Batch, device: torch.device) -> Tensor:
    """Whom each sample sees (B, 2 B): real samples of its condition, other samples of it, not itself."""
    same = torch.ones(batch.size, batch.size, dtype=torch.bool, device=device)
    for value in (batch.condition or {}).values():
        rows = value.flatten(1) if value.ndim > 1 else value[:, None]
        same &= (rows[:, None] == rows[None]).all(2).to(device)
    return torch.cat([same, same & ~torch.eye(batch.size, dtype=torch.bool, device=device)], dim=1)
