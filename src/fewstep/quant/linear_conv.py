"""Linear, convolutions and Embedding whose weights stay in low bits; one module runs, differentiates and saves."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvTransposeNd

from fewstep.quant.grids import decode
from fewstep.quant.layer import QuantLayer
from fewstep.quant.modules import Convolution, FloatLayer, swapped
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


class QuantConv(QuantLayer):
    """Quantized convolution in 1 to 3 dimensions, also a transposed one: activation scale per sample.

    One scale per sample and not per position, because each output of a convolution sums over several positions: scales
    that differ inside the sum could not be taken out of an integer product.
    """

    linear = False

    def __init__(self, source: Convolution, scheme: Scheme, backend: str = "auto") -> None:
        super().__init__(source, scheme, backend)
        self.in_channels, self.out_channels = source.in_channels, source.out_channels
        self.transposed = source.transposed
        self.kernel_size, self.stride, self.dilation = source.kernel_size, source.stride, source.dilation
        self.padding, self.padding_mode, self.groups = source.padding, source.padding_mode, source.groups
        self.output_padding = source.output_padding
        self._border = list(source._reversed_padding_repeated_twice)
        self._ones = (1,) * len(self.kernel_size)
        self._dims = tuple(range(-1 - len(self.kernel_size), 0))

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """As the float layer; a transposed one takes the size of its output, which its stride leaves open."""
        return QuantLayer.forward(self if output_size is None else self.sized(x, output_size), x)

    def sized(self, x: Tensor, output_size: Sequence[int]) -> QuantConv:
        """This layer, with the same tensors, where its output for `x` has a given size (all dimensions or the last).

        Raises:
            TypeError: a convolution that is not transposed.
            ValueError: a size that the stride does not allow.
        """
        if not self.transposed:
            raise TypeError(f"{self.kind} takes no output_size")
        count, window, step = len(self.kernel_size), list(self.kernel_size), list(self.stride)
        given: Any = (x, list(output_size), step, list(self.padding), window, count, list(self.dilation))
        twin: QuantConv = copy.copy(self)
        twin.output_padding = tuple(_ConvTransposeNd._output_padding(cast("Any", self), *given))
        return twin

    def to_float(self) -> Convolution:
        """The float layer with the dequantized weight."""
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        options: Any = {name: getattr(self, name) for name in names}
        if self.transposed:
            options["output_padding"] = self.output_padding
        bias = self.bias is not None
        layer = getattr(nn, self.kind)(self.in_channels, self.out_channels, bias=bias, device="meta", **options)
        layer.weight = nn.Parameter(self.weight)
        layer.register_parameter("bias", self.bias)
        return cast("Convolution", layer.train(self.training))

    def as_held(self, weight: Tensor) -> Tensor:
        """A weight (out, in / groups, ...) in the order of the float layer's own, and back."""
        return swapped(weight, self.groups) if self.transposed else weight

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.transposed:
            apply: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(self._ones) - 1]
            more = (self.stride, padding, self.output_padding, self.groups, self.dilation)
            return cast("Tensor", apply(x, swapped(weight, self.groups), bias, *more))
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._border, mode=self.padding_mode), 0
        return _convolve(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.view(-1, *self._ones)

    def _per_input(self, values: Tensor) -> Tensor:
        return values.view(-1, *self._ones)

    def _mix(self, narrow: Tensor, up: Tensor) -> Tensor:
        return _convolve(narrow, up.view(*up.shape, *self._ones), None)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *more: Any) -> Tensor:
    apply: Any = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
    return cast("Tensor", apply(x, weight, bias, *more))


class QuantEmbedding(QuantLayer):
    """Quantized nn.Embedding: the rows that are looked up are dequantized, the others stay codes."""

    linear = False

    def __init__(self, source: nn.Embedding, scheme: Scheme, backend: str = "auto") -> None:
        super().__init__(source, scheme, backend)
        self.num_embeddings, self.embedding_dim = source.num_embeddings, source.embedding_dim
        self.padding_idx = source.padding_idx

    def forward(self, x: Tensor) -> Tensor:
        """The entries (..., embedding_dim) of indices (...)."""
        which = x.flatten()
        rows = decode(self.codes(which), self.grid(which), self.scheme, self.float_dtype)
        return rows.view(*x.shape, self.embedding_dim)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.embedding(x, weight, self.padding_idx)

    def to_float(self) -> nn.Embedding:
        """The float layer with the dequantized weight."""
        return nn.Embedding.from_pretrained(self.weight, freeze=False, padding_idx=self.padding_idx)

    @property
    def kernel(self) -> str:
        """What the report says of the lookup."""
        return "lookup, rows dequantized"


def make_layer(source: FloatLayer, scheme: Scheme, backend: str = "auto") -> QuantLayer:
    """The quantized layer that takes the place of a float one; its tensors are empty (on `meta`) until it is loaded."""
    lookup = isinstance(source, nn.Embedding)
    kind: Any = QuantLinear if isinstance(source, nn.Linear) else QuantEmbedding if lookup else QuantConv
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
