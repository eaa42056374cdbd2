"""Linear and Conv2d whose weights stay in low bits; the same module runs, differentiates and saves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.quant.layer import QuantLayer
from fewstep.quant.scheme import Scheme


class QuantLinear(QuantLayer):
    """Quantized nn.Linear: activation scale per token (over the last dimension)."""

    _dims = (-1,)
    linear = True

    def __init__(self, source: nn.Linear, scheme: Scheme, backend: str = "auto") -> None:
        super().__init__(source, scheme, backend)
        self.in_features, self.out_features = source.in_features, source.out_features

    def to_float(self) -> nn.Linear:
        """The float layer with the dequantized weight."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        layer.weight = nn.Parameter(self.weight)
        layer.register_parameter("bias", self.bias)
        return layer.train(self.training)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.flatten()

    def _per_input(self, values: Tensor) -> Tensor:
        return values

    def _mix(self, narrow: Tensor, up: Tensor) -> Tensor:
        return F.linear(narrow, up)

    def _inputs(self, source: nn.Linear) -> int:
        return source.in_features


class QuantConv2d(QuantLayer):
    """Quantized nn.Conv2d: activation scale per image.

    One scale per image and not per position, because each output of a convolution sums over several positions: scales
    that differ inside the sum could not be taken out of an integer product.
    """

    _dims = (-3, -2, -1)
    linear = False

    def __init__(self, source: nn.Conv2d, scheme: Scheme, backend: str = "auto") -> None:
        super().__init__(source, scheme, backend)
        self.in_channels, self.out_channels = source.in_channels, source.out_channels
        self.kernel_size, self.stride, self.dilation = source.kernel_size, source.stride, source.dilation
        self.padding, self.padding_mode, self.groups = source.padding, source.padding_mode, source.groups
        self._border = list(source._reversed_padding_repeated_twice)

    def to_float(self) -> nn.Conv2d:
        """The float layer with the dequantized weight."""
        shape: Any = (self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation)
        layer = nn.Conv2d(*shape, self.groups, self.bias is not None, self.padding_mode, device="meta")  # type: ignore[call-arg,misc]
        layer.weight = nn.Parameter(self.weight)
        layer.register_parameter("bias", self.bias)
        return layer.train(self.training)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._border, mode=self.padding_mode), 0
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.view(-1, 1, 1)

    def _per_input(self, values: Tensor) -> Tensor:
        return values.view(-1, 1, 1)

    def _mix(self, narrow: Tensor, up: Tensor) -> Tensor:
        return F.conv2d(narrow, up[:, :, None, None])

    def _inputs(self, source: nn.Conv2d) -> int:
        return source.in_channels


def make_layer(source: nn.Linear | nn.Conv2d, scheme: Scheme, backend: str = "auto") -> QuantLayer:
    """The quantized layer that takes the place of a float one; its tensors are empty (on `meta`) until it is loaded."""
    kind: Any = QuantLinear if isinstance(source, nn.Linear) else QuantConv2d
    layer: QuantLayer = kind(source, scheme, backend)
    return layer.train(source.training)


def run_conditioning_by_row(layers: Iterable[QuantLayer]) -> None:
    """Let conditioning layers give the same numbers for any batch size, where all others do so anyhow.

    Products of integers are exact, so a picture does not depend on those drawn beside it; a float product sums in an
    order that depends on the number of rows, and its last digits then flip codes all over the network. Linear layers
    with one scale per row and float inputs (`FEW_STEP_RULES`' conditioning: one row per image) take their rows one by
    one if the other layers multiply integers; if these do not, it would change nothing.
    """
    layers = list(layers)
    exact = any(layer.scheme.integer_product for layer in layers)
    for layer in layers:
        layer.by_row = exact and layer.linear and layer.scheme == Scheme(8, 16)
