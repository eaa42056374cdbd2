"""Linear and Conv2d whose weights stay in low bits; the same module runs, differentiates and saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.quant.integer import apply_scale_, dequantize_weight, quantize_activation, quantize_weight
from fewstep.quant.kernels import torchao_weight, use_torchao
from fewstep.quant.packing import pack, packed_columns, unpack, unpack_into
from fewstep.quant.scheme import Scheme


class QuantLayer(nn.Module):
    """What quantized layers share: storage, dequantization and the forward pass around one float product.

    Buffers:
        packed: int8 (out, bytes per row), the codes of the weight flattened to (out, rest).
        scale: (out, groups), float32 per row or float16 per group; keeps its type when the model is cast.
    Parameter:
        bias: the original one, or None.

    With 8-bit activations and one scale per row, both factors of the product are integers held in floats. The float32
    sum then equals that of an int8 kernel exactly while every partial sum stays below 2^24 (1,040 terms of 127 * 127 in
    the worst case; far more in practice), and differs in the last float32 digit beyond. With groups the scale varies
    inside the sum, so the weight is dequantized first: equal up to float32 rounding.

    The gradient with respect to the input is the straight-through one: that of a float layer with dequantized weights.
    """

    packed: Tensor
    scale: Tensor
    bias: nn.Parameter | None
    _dims: tuple[int, ...]  # dimensions of the input over which one activation scale is shared
    linear: bool

    def __init__(self, source: nn.Linear | nn.Conv2d, scheme: Scheme, backend: str) -> None:
        super().__init__()
        self.scheme, self.backend = scheme, backend
        self.weight_shape, self.float_dtype = source.weight.shape, source.weight.dtype
        rows, self.columns = self.weight_shape[0], self.weight_shape[1:].numel()
        groups = 1 if scheme.group_size is None else -(-self.columns // scheme.group_size)
        precision = torch.float32 if scheme.group_size is None else torch.float16
        stored = packed_columns(self.columns, scheme.weight_bits)
        self.register_buffer("packed", torch.empty(rows, stored, dtype=torch.int8, device="meta"))
        self.register_buffer("scale", torch.empty(rows, groups, dtype=precision, device="meta"))
        # decided here and not in forward, so that torch.compile sees a constant
        self._torchao = tuple(
            device
            for device in ("cpu", "cuda")
            if (device == "cpu" or torch.cuda.is_available())
            and use_torchao(backend, scheme, linear=self.linear, on_cuda=device == "cuda")
        )
        self._view: Any = None  # torchao's tensor over our buffers
        self.register_parameter("bias", cast("nn.Parameter | None", source.bias))

    @torch.no_grad()
    def load_float(self, weight: Tensor) -> None:
        """Quantize a float weight of shape `weight_shape` into this layer (empty until now), on the weight's device."""
        codes, scale = quantize_weight(weight.flatten(1), self.scheme.weight_bits, self.scheme.group_size)
        self.packed, self.scale = pack(codes, self.scheme.weight_bits), scale

    def codes(self) -> Tensor:
        """Integer weight codes, int8 (out, rest)."""
        return unpack(self.packed, self.scheme.weight_bits, self.columns)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the codes stand for, of shape `weight_shape`."""
        if dtype not in (torch.float32, torch.float64):
            weight = dequantize_weight(self.codes(), self.scale, self.scheme.group_size, dtype)
        else:
            weight = apply_scale_(self._float_codes(dtype), self.scale, self.scheme.group_size)
        return weight.view(self.weight_shape)

    @property
    def weight(self) -> Tensor:
        """Dequantized weight, for code that asks a layer for its weight or the type and device of it."""
        return self.dequantize(self.float_dtype)

    def to_float(self) -> nn.Module:
        """The float layer with the dequantized weight."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer; shapes and memory formats as in the float layer it replaced."""
        half = x.dtype not in (torch.float32, torch.float64)
        if self.scheme.activation_bits == 16:
            return self._product(x, self.dequantize(x.dtype), self._bias(x.dtype))
        if x.device.type in self._torchao and not x.requires_grad:  # it has no gradient
            return F.linear(x, self._torchao_weight(x.dtype), self._bias(x.dtype))
        codes, scale = quantize_activation(x, self._dims)
        if half and x.is_cuda:  # tensor cores multiply half precision; the scales go in first so that nothing overflows
            return self._product((codes * scale).to(x.dtype), self.dequantize(x.dtype), self._bias(x.dtype))
        return self._integer_product(codes, scale).to(x.dtype)

    def _torchao_weight(self, dtype: torch.dtype) -> Tensor:
        """Made again when the buffers were replaced: moved, loaded or copied."""
        if self._view is None or self._view.qdata is not self.packed or self._view.dtype != dtype:
            self._view = torchao_weight(self.packed, self.scale, dtype)
        return self._view

    def _integer_product(self, codes: Tensor, scale: Tensor) -> Tensor:
        per_row = self.scheme.group_size is None
        weight = self._float_codes(codes.dtype).view(self.weight_shape) if per_row else self.dequantize(codes.dtype)
        y = self._product(codes, weight, None).mul_(scale)
        if per_row:
            y = y.mul_(self._per_channel(self.scale.to(y.dtype)))
        bias = self._bias(y.dtype)
        return y if bias is None else y.add_(self._per_channel(bias))

    def _float_codes(self, dtype: torch.dtype) -> Tensor:
        """Codes as floats, freshly allocated."""
        out = torch.empty(self.weight_shape[0], self.columns, dtype=dtype, device=self.packed.device)
        return unpack_into(self.packed, self.scheme.weight_bits, out)

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        return None if self.bias is None else self.bias.to(dtype)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _per_channel(self, values: Tensor) -> Tensor:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLayer:
        """Move and cast as usual, but never round the scales: `.half()` must not change the weights."""
        scale = self.scale
        super()._apply(fn, recurse)
        self.float_dtype = fn(torch.empty(0, dtype=self.float_dtype, device=scale.device)).dtype
        if self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)
        return self

    def extra_repr(self) -> str:
        """Shape and scheme."""
        return f"{tuple(self.weight_shape)}, {self.scheme}, bias={self.bias is not None}, backend={self.backend}"


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
