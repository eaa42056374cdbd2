"""Drifting: a one-step generator without a teacher's scores, a critic or an adversary."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewstep.distillation.parts import (
    Method,
    OptimizerSettings,
    backward_simulation,
    drifting_loss,
    evenly,
    flat,
    needing,
    preset,
)
from fewstep.process import Process


@preset("drifting")
def drifting(
    process: Process,
    *,
    features: Callable[[Tensor], Tensor] = flat,
    widths: tuple[float, ...] = (0.02, 0.05, 0.2),
    normalise: bool = True,
) -> Method:
    """Drifting: samples move towards real ones and away from each other, in one step (arXiv 2602.04770).

        loss = mean |f - sg(f + sum_w V_w)|^2,  V = a+ (sum a-) real - a- (sum a+) others,
        a = sqrt(softmax_rows softmax_columns)(-|x - y| / w)

    The teacher is only where the student starts. Conditions must recur within a batch. The paper's guidance, real
    samples of other conditions among those that repel, is not built.

    Args:
        process: of the teacher.
        features: samples (B, ...) -> (B, d), such as a frozen encoder's; evaluate by others.
        widths: of the kernels, as multiples of the mean distance between samples and data.
        normalise: each width's V is divided by its root mean square.
    """
    chain = evenly(process, 1)
    return Method(
        {"drifting": drifting_loss(features, widths, normalise)},
        chain,
        rollout=backward_simulation(chain),
        needs=needing(data=True),
        settings=OptimizerSettings(learning_rate=2e-4, betas=(0.9, 0.95), weight_decay=0.01, clip_norm=2.0),
    )
