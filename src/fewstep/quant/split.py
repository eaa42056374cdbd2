"""Skip connections of UNets: the two halves of a concatenation get scales of their own.

The shortcut convolution of a decoder block sees the raw concatenation of the features from below and of those carried
over from the encoder, whose ranges may differ by an order of magnitude; one scale for both wastes levels on the smaller
one (Q-Diffusion, arXiv 2302.04304, section 4.3). All other layers see them after normalization. The convolution is
linear in its inputs, so it is the sum of two convolutions, one per half, and each is quantized as any other layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.quant.modules import replace_modules

HIDDEN, SKIP = "hidden", "skip"


class SplitConv2d(nn.Module):
    """A convolution as the sum of one over the first channels and one over the rest.

    Raises:
        FewstepError: the convolution has groups, or the first part is empty or everything.
    """

    wraps_layer = True  # see fewstep.quant.wrappers

    def __init__(self, source: nn.Conv2d, channels: int) -> None:
        super().__init__()
        if source.groups != 1 or not 0 < channels < source.in_channels:
            hint = f"Split between 1 and {source.in_channels - 1} of a convolution without groups."
            raise FewstepError("a convolution cannot be split there", value=channels, hint=hint)
        self.channels = channels
        self.hidden = _part(source, slice(0, channels), bias=True)
        self.skip = _part(source, slice(channels, None), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, out, h', w')."""
        y: Tensor = self.hidden(x[:, : self.channels])
        return y + self.skip(x[:, self.channels :])

    def merged(self) -> nn.Conv2d:
        """One float convolution again, of the weights that the halves have now."""
        halves: tuple[Any, Any] = (self.hidden, self.skip)
        first = halves[0]
        weight = torch.cat([half.weight.detach() for half in halves], 1)
        whole: Any = nn.Conv2d(
            weight.shape[1], weight.shape[0], first.kernel_size, first.stride, first.padding, first.dilation,
            bias=first.bias is not None, padding_mode=first.padding_mode, device="meta",
        )  # fmt: skip
        whole.weight = nn.Parameter(weight)
        whole.register_parameter("bias", first.bias)
        return whole.train(self.training)


def find_skips(model: nn.Module) -> dict[str, int]:
    """Names of the convolutions of a diffusers UNet that see a raw concatenation, with the channels of its first half.

    Empty for networks without such blocks.
    """
    found: dict[str, int] = {}
    blocks = [*getattr(model, "down_blocks", ()), getattr(model, "mid_block", None)]
    below: Any = next((block for block in reversed(blocks) if block is not None), None)
    channels = getattr(below.resnets[-1], "out_channels", None) if getattr(below, "resnets", None) else None
    if channels is None:  # also 1-D networks, whose blocks join their halves in another way
        return found
    for i, block in enumerate(getattr(model, "up_blocks", ())):
        for j, resnet in enumerate(getattr(block, "resnets", ())):
            if isinstance(resnet.conv_shortcut, nn.Conv2d) and 0 < channels < resnet.in_channels:
                found[f"up_blocks.{i}.resnets.{j}.conv_shortcut"] = channels
            channels = resnet.out_channels
    return found


def split_skips(model: nn.Module) -> list[str]:
    """Split these convolutions of a float model in place, before it is quantized; returns their names."""
    found = find_skips(model)

    def halves(name: str, module: Any) -> nn.Module | None:
        return SplitConv2d(module, found[name]) if name in found else None

    replace_modules(model, halves)
    return list(found)


def split_like(model: nn.Module, names: Iterable[str]) -> None:
    """Split the convolutions of a model whose halves are among these layers of a saved one."""
    halves = tuple(f"{name}.{HIDDEN}" for name in find_skips(model))
    if any(f"{name}.".startswith(f"{half}.") for name in names for half in halves):
        split_skips(model)


def merge_skips(model: nn.Module) -> nn.Module:
    """Put whole float convolutions back, in place."""
    replace_modules(model, lambda _, module: module.merged() if isinstance(module, SplitConv2d) else None)
    return model


def _part(source: nn.Conv2d, channels: slice, bias: bool) -> nn.Conv2d:
    weight = source.weight.detach()[:, channels].clone()
    more: Any = (source.stride, source.padding, source.dilation, 1, bias, source.padding_mode, "meta")
    part = nn.Conv2d(weight.shape[1], source.out_channels, source.kernel_size, *more)  # type: ignore[arg-type]
    part.weight = nn.Parameter(weight, source.weight.requires_grad)
    part.bias = source.bias if bias else None
    return part.train(source.training)
