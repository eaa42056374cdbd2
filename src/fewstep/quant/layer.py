"""What quantized layers share: storage, dequantization, and the forward pass around one float product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.quant import fp4
from fewstep.quant.grids import QuantGrid, StoredWeight, decode
from fewstep.quant.integer import apply_scale_, dequantize_weight, quantize_groups, quantize_input
from fewstep.quant.kernels import describe, torchao_weight, use_torchao, use_triton
from fewstep.quant.modules import FloatLayer, kind_of, weight_rows
from fewstep.quant.native import NativeProduct, geometry
from fewstep.quant.packing import pack, packed_columns, unpack, unpack_into
from fewstep.quant.preparation import prepare_inputs, restore_weight
from fewstep.quant.scheme import BLOCKS, Scheme

# Buffers that must keep their type: rounding them with `.half()` would change the weights
KEPT = ("scale", "tensor_scale", "smooth", "input_scale", "up", "down")


class QuantLayer(nn.Module):
    """What quantized layers share: storage, dequantization and the forward pass around one float product.

    Buffers:
        packed: int8 (out, bytes per row), codes of the weight flattened to (out, rest).
        scale: (out, groups), float32 per row, float16 per group, bytes for mxfp4 and nvfp4; keeps its type when the
            model is cast. tensor_scale: float32 0-dim, of nvfp4.
        zero: int8 (out, bytes per row of groups), zero points packed as the codes are; asymmetric schemes only.
        smooth: float32 (in,), by which inputs are divided.
        input_scale: float32 0-dim, of static and affine activations; input_zero: int32 0-dim, of affine ones.
        up, down: (out, rank) and (rank, rest), the float branch of schemes with a rank; float16.
        schemes_digest: uint8 (8,), in the first layer of a model that can be saved: see `fewstep.quant.config.seal`.
    Parameter:
        bias: the original one, or None.

    With 8-bit activations and one scale per row, both factors are integers held in floats. The float32 sum equals that
    of an int8 kernel while partial sums stay below 2^24 (1,040 terms of 127 * 127 in the worst case), and differs in
    its last digit beyond. With groups the scale varies inside the sum: the weight is dequantized first. The gradient
    of the input is the straight-through one: that of a float layer with dequantized weights.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    tensor_scale: Tensor | None
    smooth: Tensor | None
    input_scale: Tensor | None
    input_zero: Tensor | None
    up: Tensor | None
    down: Tensor | None
    schemes_digest: Tensor | None
    bias: nn.Parameter | None
    _dims: tuple[int, ...]  # dimensions of the input over which one activation scale is shared
    linear: bool

    def __init__(self, source: FloatLayer, scheme: Scheme, backend: str) -> None:
        super().__init__()
        self.scheme, self.backend, self.kind = scheme, backend, kind_of(source)
        self.weight_shape, self.float_dtype = weight_rows(source).shape, source.weight.dtype
        rows, self.columns = self.weight_shape[0], self.weight_shape[1:].numel()
        groups = 1 if scheme.group_size is None else -(-self.columns // scheme.group_size)
        block = scheme.weight_format in BLOCKS
        precision = torch.uint8 if block else torch.float32 if scheme.group_size is None else torch.float16
        stored = packed_columns(self.columns, scheme.weight_bits)
        self.register_buffer("packed", torch.empty(rows, stored, dtype=torch.int8, device="meta"))
        shape = (1 if scheme.per_tensor else rows, groups)
        self.register_buffer("scale", torch.empty(shape, dtype=precision, device="meta"))
        zeros = (shape[0], packed_columns(groups, scheme.weight_bits))
        self._optional("zero", scheme.weight_format == "asym", zeros, torch.int8)
        self._optional("smooth", scheme.smooth, (self.weight_shape[1] * getattr(source, "groups", 1),), torch.float32)
        self._optional("tensor_scale", scheme.weight_format == "nvfp4", (), torch.float32)
        self._optional("input_scale", scheme.calibrated, (), torch.float32)
        self._optional("input_zero", scheme.activation_format == "affine", (), torch.int32)
        self._optional("up", scheme.rank > 0, (rows, scheme.rank), torch.float16)
        self._optional("down", scheme.rank > 0, (scheme.rank, self.columns), torch.float16)
        self._optional("schemes_digest", False, (8,), torch.uint8)
        # decided here and not in forward, so that torch.compile sees a constant
        self._torchao = tuple(
            device
            for device in ("cpu", "cuda")
            if (device == "cpu" or torch.cuda.is_available())
            and use_torchao(backend, scheme, linear=self.linear, on_cuda=device == "cuda")
        )
        self.by_row = False  # see fewstep.quant.linear_conv.run_conditioning_by_row
        self._view: Any = None  # torchao's tensor over our buffers
        self.native = self._native(source)
        self.register_parameter("bias", cast("nn.Parameter | None", getattr(source, "bias", None)))

    def _native(self, source: Any) -> NativeProduct | None:
        where = geometry(source) if isinstance(source, nn.Conv2d) else None
        if not self.scheme.integer_product or (where is None and not self.linear):
            return None
        keep = self.scheme.weight_bits == 8 or self.backend == "int8"
        return NativeProduct(where, keep=keep, weights=self.weight_shape.numel())

    def _optional(self, name: str, present: bool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta") if present else None)

    @torch.no_grad()
    def load(self, stored: StoredWeight) -> None:
        """Take over codes, grid and corrections made for this layer's scheme."""
        self.allocate(stored.codes.device)
        self.load_rows(0, stored.codes, stored.grid)
        self.tensor_scale, self.input_zero = stored.grid.whole, stored.input_zero
        for name in ("smooth", "input_scale"):
            value = getattr(stored, name)
            setattr(self, name, None if value is None else value.to(torch.float32))
        for name in ("up", "down"):
            value = getattr(stored, name)
            setattr(self, name, None if value is None else value.to(torch.float16).contiguous())

    def allocate(self, device: torch.device | str = "cpu") -> None:
        """Real memory for codes and scales, for `load_rows` to fill."""
        for name, buffer in list(self.named_buffers(recurse=False)):
            if name != "schemes_digest":
                setattr(self, name, torch.empty_like(buffer, device=device))

    @torch.no_grad()
    def load_rows(self, start: int, codes: Tensor, grid: QuantGrid) -> None:
        """Take over some rows of the weight, from `start` on; schemes with one scale per tensor come whole."""
        bits, stop = self.scheme.weight_bits, start + len(codes)
        block = self.scheme.weight_format in BLOCKS
        self.packed[start:stop] = pack(codes, bits)
        self.scale[start:stop] = fp4.to_bytes(grid.scale, grid.whole) if block else grid.scale
        if self.zero is not None and grid.zero is not None:
            self.zero[start:stop] = pack(grid.zero, bits)
        if grid.whole is not None:
            self.tensor_scale = grid.whole

    def stored(self) -> StoredWeight:
        """What `load` took."""
        more = self.smooth, self.up, self.down, self.input_scale, self.input_zero
        return StoredWeight(self.scheme, self.codes(), self.grid(), *more)

    def weight_bytes(self) -> int:
        """Bytes that stand for the weight: codes, scales, zero points, float branch, smoothing."""
        parts = (self.packed, self.scale, self.tensor_scale, self.zero, self.smooth, self.up, self.down)
        return sum(part.nbytes for part in parts if part is not None)

    def codes(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Integer weight codes, int8 (out, rest), of some rows or all."""
        return unpack(self.packed[rows], self.scheme.weight_bits, self.columns)

    def grid(self, rows: Tensor | slice = slice(None)) -> QuantGrid:
        """Scales and zero points of the codes, of some rows or all."""
        which = slice(None) if self.scheme.per_tensor else rows
        scale = self.scale[which]
        if self.scheme.weight_format in BLOCKS:
            return QuantGrid(fp4.from_bytes(scale, self.tensor_scale), None, self.tensor_scale)
        zero = None if self.zero is None else unpack(self.zero[which], self.scheme.weight_bits, scale.shape[1])
        return QuantGrid(scale, zero)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the layer stands for, (out, in / groups, ...): float branch, rotation, smoothing included."""
        weight = self.low_bit_weight(dtype)
        if self.up is not None and self.down is not None:
            weight = weight + (self.up.to(dtype) @ self.down.to(dtype)).view(self.weight_shape)
        return restore_weight(self, weight)

    def low_bit_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the codes stand for, of shape `weight_shape`."""
        if self.scheme.weight_format != "int":
            weight = decode(self.codes(), self.grid(), self.scheme, dtype)
        elif dtype not in (torch.float32, torch.float64):
            weight = dequantize_weight(self.codes(), self.scale, self.scheme.group_size, dtype)
        else:
            weight = apply_scale_(self._float_codes(dtype), self.scale, self.scheme.group_size)
        return weight.view(self.weight_shape)

    @property
    def weight(self) -> Tensor:
        """Dequantized weight as the float layer holds it, for code that asks for it, its type or its device."""
        return self.as_held(self.dequantize(self.float_dtype))

    def as_held(self, weight: Tensor) -> Tensor:
        """A weight (out, in / groups, ...) in the order of the float layer's own, and back."""
        return weight

    @property
    def kernel(self) -> str:
        """What multiplies, for the report."""
        known: Any = {"linear": self.linear, "on_cuda": self.packed.is_cuda, "regular": self.native is not None}
        return describe(self.scheme, self.backend, **known)

    def to_float(self) -> FloatLayer:
        """The float layer with the dequantized weight."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer; shapes and memory formats as in the float layer."""
        x = prepare_inputs(self, x, self.smooth)
        y = self._low_bit(x)
        if self.up is not None and self.down is not None:
            narrow = self._product(x, self.down.to(x.dtype).view(-1, *self.weight_shape[1:]), None)
            y = y + self._mix(narrow, self.up.to(x.dtype))
        return y

    def _low_bit(self, x: Tensor) -> Tensor:
        half = x.dtype not in (torch.float32, torch.float64)
        if self.scheme.activation_bits == 16:
            weight, bias = self.low_bit_weight(x.dtype), self._bias(x.dtype)
            if self.by_row and x.ndim == 2:
                return torch.cat([self._product(row, weight, bias) for row in x.split(1)])
            return self._product(x, weight, bias)
        if x.device.type in self._torchao and not x.requires_grad:  # it has no gradient
            return F.linear(x, self._torchao_weight(x.dtype), self._bias(x.dtype))
        if self.native is not None and self.input_zero is None and use_triton(self.backend, self.native.where, x):
            return self._triton_product(x)
        if self.native is not None and self.native.takes(x):
            return self._native_product(self.native, x).to(x.dtype)
        if self.scheme.activation_group is not None:
            seen = quantize_groups(x, self._dims, self.scheme.activation_group, self.scheme.top).to(x.dtype)
            return self._product(seen, self.low_bit_weight(x.dtype), self._bias(x.dtype))
        codes, scale = self._quantize_input(x)
        if half and x.is_cuda:  # tensor cores multiply half precision; the scales go in first so that nothing overflows
            return self._product((codes * scale).to(x.dtype), self.low_bit_weight(x.dtype), self._bias(x.dtype))
        return self._integer_product(codes, scale).to(x.dtype)

    def _quantize_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes held in float, and scales that broadcast with the output."""
        return quantize_input(x, self._dims, self.scheme, self.input_scale, self.input_zero)

    def _torchao_weight(self, dtype: torch.dtype) -> Tensor:
        """Made again when the buffers were replaced: moved, loaded or copied."""
        if self._view is None or self._view.qdata is not self.packed or self._view.dtype != dtype:
            self._view = torchao_weight(self.packed, self.scale, dtype)
        return self._view

    def _integer_product(self, codes: Tensor, scale: Tensor) -> Tensor:
        per_row = self.scheme.integer_product
        weight = self._float_codes(codes.dtype).view(self.weight_shape) if per_row else self.low_bit_weight(codes.dtype)
        y = self._product(codes, weight, None)
        if per_row:
            y = y.mul_(self._per_channel(self.scale.to(y.dtype)))
        y = y.mul_(scale)
        bias = self._bias(y.dtype)
        return y if bias is None else y.add_(self._per_channel(bias))

    def _native_product(self, native: NativeProduct, x: Tensor) -> Tensor:
        scale = self.scale.flatten().expand(self.weight_shape[0]).contiguous()
        given = self.input_scale, self.input_zero
        y = native(x, self.packed, lambda: self.codes().view(self.weight_shape), scale, *given)
        bias = self._bias(y.dtype)
        return y if bias is None else y.add_(self._per_channel(bias))

    def _triton_product(self, x: Tensor) -> Tensor:
        from fewstep.quant.triton_conv import convolve

        where: Any = self.native and self.native.where
        codes, steps = self._quantize_input(x)
        steps = steps.float().flatten().expand(x.shape[0]).contiguous()
        scale = self.scale.flatten().expand(self.weight_shape[0]).contiguous()
        weight = self.codes().view(self.weight_shape)
        y = convolve(codes.to(torch.int8), weight, steps, scale, self.bias, where, x.dtype)
        return y.contiguous() if x.is_contiguous() else y

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

    def _per_input(self, values: Tensor) -> Tensor:
        """Values (in,) shaped to broadcast with the input, and with the weight."""
        raise NotImplementedError

    def _mix(self, narrow: Tensor, up: Tensor) -> Tensor:
        """The wide end of the float branch."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLayer:
        """Move and cast as usual, but never round the scales: `.half()` must not change the weights."""
        if self.native is not None:
            self.native.clear()
        kept = {name: value for name in KEPT if (value := getattr(self, name)) is not None}
        super()._apply(fn, recurse)
        self.float_dtype = fn(torch.empty(0, dtype=self.float_dtype, device=kept["scale"].device)).dtype
        for name, value in kept.items():
            if getattr(self, name).dtype != value.dtype:
                setattr(self, name, value.to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        """Shape and scheme."""
        return f"{tuple(self.weight_shape)}, {self.scheme}, bias={self.bias is not None}, backend={self.backend}"
