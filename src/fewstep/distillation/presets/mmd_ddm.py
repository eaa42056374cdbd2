"""MMD-DDM: the deterministic sampler itself fine-tuned by a two-sample statistic."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewstep.distillation.parts import (
    Kernel,
    Method,
    OptimizerSettings,
    backward_simulation,
    evenly,
    flat,
    gaussian_kernel,
    maximum_mean_discrepancy,
    needing,
    polynomial_kernel,
    preset,
)
from fewstep.errors import FewstepError, nearest
from fewstep.process import Process

KERNELS: dict[str, tuple[Kernel, bool]] = {
    "cubic": (polynomial_kernel(3), False),
    "linear": (polynomial_kernel(1), False),
    "radial": (gaussian_kernel(), True),
}


@preset("mmd_ddm")
def mmd_ddm(
    process: Process, *, steps: int = 5, kernel: str = "cubic", features: Callable[[Tensor], Tensor] = flat
) -> Method:
    """MMD-DDM: unbiased MMD to real data through all calls of a deterministic chain, no critic (arXiv 2301.07969).

        loss = E k(x, x') - 2 E k(x, y) + E k(y, y'),  k on features of samples x and of real y

    The paper's grid begins at 1 - 1/steps of the range, here at the noisiest time.

    Args:
        process: of the teacher.
        steps: calls of the student.
        kernel: `cubic`, `linear` or `radial`.
        features: samples (B, ...) -> (B, d), such as a frozen Inception or CLIP on decoded samples; evaluate by others.
    """
    if kernel not in KERNELS:
        raise FewstepError("unknown kernel", value=kernel, hint=nearest(kernel, KERNELS))
    run, (form, unit) = evenly(process, steps, fresh=0.0), KERNELS[kernel]
    return Method(
        {"moments": maximum_mean_discrepancy(features, form, unit=unit)},
        run,
        rollout=backward_simulation(run, last=True, through=True),
        needs=needing(data=True),
        settings=OptimizerSettings(learning_rate=5e-6, clip_norm=0.5),
    )
