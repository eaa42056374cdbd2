"""Super-resolution at several scales: nested small pictures for scale distillation, and the decoder's fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from fewstep.distillation.flow_map.jump import PRIVATE
from fewstep.errors import FewstepError
from fewstep.tasks.restoration.operators import box_downsampling


def nested(clean: Tensor, factors: Sequence[int]) -> list[Tensor]:
    """Pictures (B, C, H / f, W / f) for rising factors, each the mean of squares of the one before.

    So the picture of a larger factor says nothing that the smaller one's does not: E[E[x | y_2] | y_4] = E[x | y_4],
    and a model of the easier task is an unbiased teacher of the harder one (YONOS-SR, arXiv 2401.17258). Draw noise and
    other degradations once, on `clean`, before this.

    Raises:
        FewstepError: factors that do not rise by whole multiples, or do not divide the sides.
    """
    found, before = [clean], 1
    for factor in factors:
        if factor <= before or factor % before:
            raise FewstepError("factors rise by whole multiples", value=tuple(factors), hint="Use 2, 4, 8.")
        found.append(box_downsampling(factor // before, found[-1].shape[1:]).forward(found[-1]))
        before = factor
    return found[1:]


def scale_conditions(clean: Tensor, easier: int, harder: int, name: str = "given") -> dict[str, Tensor]:
    """Conditions of one update of scale distillation: the student's `name` and the teacher's own, at full size.

    Args:
        clean: pictures (B, C, H, W).
        easier: factor of the teacher's task; 1: it sees the picture.
        harder: of the student's.
        name: of the condition.

    Returns:
        Both pictures enlarged by bicubic interpolation, as the presets `yonos` takes them.
    """
    small = nested(clean, [f for f in (easier, harder) if f > 1])
    shown = [F.interpolate(y, size=clean.shape[-2:], mode="bicubic") for y in small]
    return {name: shown[-1], PRIVATE + name: clean if easier == 1 else shown[0]}


def decoder_loss(
    decoder: Callable[[Tensor], Tensor],
    latents: Tensor,
    pictures: Tensor,
    features: Callable[[Tensor, Tensor], Tensor] | None = None,
    perceptual: float = 1.0,
) -> Tensor:
    """The last stage of YONOS-SR: the decoder alone learns to show what the frozen one-step network makes.

        mean |D(z) - x| + perceptual mean d(D(z), x)

    Args:
        decoder: latents (B, ...) -> pictures; the one network that gradients reach.
        latents: of the one step; they are detached.
        pictures: the truth (B, C, H, W).
        features: d, a distance (B,) such as `fewstep.metrics.paired.perceptual_distance`; the paper: LPIPS, and an
            adversary, which `fewstep.distillation.adversary` has for samples.
        perceptual: its weight.
    """
    shown = decoder(latents.detach())
    loss = (shown - pictures).abs().mean()
    return loss if features is None else loss + perceptual * features(shown, pictures).mean()
