"""Restoring pictures with a denoiser of clean ones: an operator by its name, a guidance, a plan, tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError, nearest
from fewstep.executor import Noise, sample
from fewstep.plan import Plan, RunState
from fewstep.plan.combination import number
from fewstep.tasks.restoration import operators
from fewstep.tasks.restoration.guidance import Measurement, Rule, pigdm, posterior
from fewstep.tasks.restoration.operators import LinearOperator
from fewstep.tasks.restoration.tiles import tiled

OPERATORS: dict[str, Callable[[float, tuple[int, ...]], LinearOperator]] = {
    "bicubic": lambda value, shape: operators.bicubic_downsampling(_factor(value), shape),
    "blur": operators.blur,
    "box": lambda value, shape: operators.box_downsampling(_factor(value), shape),
    "denoise": lambda value, shape: operators.denoise(shape),
    "grey": lambda value, shape: operators.grey(shape),
    "inpainting": lambda value, shape: operators.denoise(shape),  # the mask comes with the picture
}
"""Operators by the name before the colon, with the number behind it."""


@dataclass(frozen=True)
class Restoration:
    """What was done to pictures, and how it is undone.

    Attributes:
        operator: `name` or `name:number` of `OPERATORS`: bicubic:4, box:2, blur:1.5 (pixels), grey, denoise,
            inpainting.
        noise: standard deviation of the noise in the picture given, of a range of 1 (white minus black).
        rule: the guidance.
        tile: side of what the network restores at once.
        overlap: of neighbouring tiles, in pixels of the result; a quarter of a tile unless given.
    """

    operator: str = "denoise"
    noise: float = 0.0
    rule: Rule = field(default_factory=pigdm)
    tile: int = 64
    overlap: int | None = None

    @property
    def factor(self) -> int:
        """How much larger the restored picture is.

        Raises:
            FewstepError: an unknown operator, or one whose number is missing or no number.
        """
        name, value = parse_operator(self.operator)
        return _factor(value) if name in ("box", "bicubic") else 1

    def of(self, shape: tuple[int, ...], mask: Tensor | None = None) -> LinearOperator:
        """The operator on restored pictures (C, H, W); `mask` (H, W) is 1 where inpainting knows them."""
        name, value = parse_operator(self.operator)
        if name == "inpainting":
            if mask is None:
                raise FewstepError("inpainting needs a mask", hint="Give one, white where the picture is known.")
            return operators.inpainting(mask, shape)
        return OPERATORS[name](value, shape)


def parse_operator(operator: str) -> tuple[str, float]:
    """Name and number of an operator as written.

    Raises:
        FewstepError: an unknown name, or no number where one is needed.
    """
    name, _, written = operator.partition(":")
    if name not in OPERATORS:
        raise FewstepError("unknown operator", value=operator, hint=nearest(name, OPERATORS))
    if name in ("box", "bicubic", "blur"):
        try:
            return name, float(written)
        except ValueError:
            raise FewstepError(f"{name} needs a number", value=operator, hint=f"Write {name}:2.") from None
    if written:
        raise FewstepError(f"{name} takes no number", value=operator, hint=f"Write {name}.")
    return name, 0.0


def restore_picture(
    denoiser: Denoiser,
    plan: Plan,
    picture: Tensor,
    how: Restoration,
    *,
    channels: int = 3,
    seeds: Sequence[int] = (0,),
    mask: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws of what the picture was, one per seed.

    Args:
        denoiser: of clean pictures in [-1, 1] with `channels` channels.
        plan: any plan for its network.
        picture: what came out of the operator (C, h, w), in [0, 1].
        how: the operator and how it is undone.
        channels: of the network. A grey picture enters a colour network as three equal channels.
        seeds: whole numbers; the first noise belongs to the whole picture, so that tiles agree where they overlap (with
            a plan that adds none later).
        mask: (H, W) of inpainting, 1 where the picture is known.
        device: where the network lies.

    Returns:
        (len(seeds), channels, H, W), in [0, 1] but for the network's overshoot.

    Raises:
        FewstepError: channels that do not fit, a picture with NaN, or a mask of another size.
    """
    picture = _fitting(picture, how, channels)
    scale = how.factor
    height, width = (scale * n for n in picture.shape[-2:])
    if mask is not None and tuple(mask.shape) != (height, width):
        raise FewstepError("the mask has another size", value=tuple(mask.shape), hint=f"Draw it {(height, width)}.")
    side = how.tile // scale
    overlap = (how.tile // 4 if how.overlap is None else how.overlap) // scale
    size = tuple(max(n, how.tile) for n in (height, width))
    drawn = Noise(seeds)
    noise = drawn.draw((channels, *size)) * number(plan.prior_scale)
    fresh = drawn.seeds()  # for rows that add noise
    known = None if mask is None else _grown(mask.float(), size)

    def one(tile: Tensor, top: int, left: int) -> Tensor:
        part = (slice(scale * top, scale * top + how.tile), slice(scale * left, scale * left + how.tile))
        operator = how.of((channels, how.tile, how.tile), None if known is None else known[part])
        # pictures in [0, 1] are measured, the network knows them in [-1, 1]
        values = 2 * tile - operator.forward(torch.ones(1, *operator.input_shape))[0]
        values = values if known is None else values * known[part]
        measured = Measurement(operator, values.to(device), 2 * how.noise)
        start = RunState({0: noise[:, :, part[0], part[1]].to(device)})
        network = posterior(denoiser, measured, how.rule).network
        own = [seed + top * 65_537 + left for seed in fresh]  # apart in their last 32 bits, which torch reads
        done = sample(plan, network, seeds=own, shape=operator.input_shape, start=start, device=device)
        return done.flatten(0, 1) / 2 + 0.5

    with torch.no_grad():
        done = tiled(one, picture, side, overlap, scale)
    return done.unflatten(0, (len(seeds), channels))


def _fitting(picture: Tensor, how: Restoration, channels: int) -> Tensor:
    """The picture with the channels of the operator's result."""
    wanted = 1 if parse_operator(how.operator)[0] == "grey" else channels
    if picture.ndim != 3 or not picture.numel() or len(picture) not in (1, wanted):
        hint = f"Its shape must be ({wanted}, H, W)." if picture.ndim == 3 else "Give (C, H, W)."
        raise FewstepError("the picture does not fit the network", value=tuple(picture.shape), hint=hint)
    if not bool(picture.isfinite().all()):
        raise FewstepError("the picture holds NaN or infinity", hint="Mask what is not known and use inpainting.")
    return picture.float().expand(wanted, -1, -1)


def _grown(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """Continued by its border to at least a tile."""
    grown = (0, size[1] - mask.shape[1], 0, size[0] - mask.shape[0])
    return torch.nn.functional.pad(mask[None, None], grown, mode="replicate")[0, 0]


def _factor(value: float) -> int:
    if value != int(value) or value < 1:
        raise FewstepError("a picture is reduced by a whole number", value=value, hint="Write bicubic:4.")
    return int(value)
