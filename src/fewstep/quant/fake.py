"""Float twins of quantized layers for fine-tuning: same function, with straight-through gradients to every part.

to_fake(model)     # packed -> trainable, output unchanged
...train...
to_packed(model)   # back, output unchanged again
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.quant import fp4
from fewstep.quant.grids import QuantGrid, StoredWeight, encode, snapped
from fewstep.quant.integer import quantize_activation, quantize_fp8, quantize_groups
from fewstep.quant.layer import QuantLayer
from fewstep.quant.linear_conv import make_layer, run_conditioning_by_row
from fewstep.quant.modules import replace_modules
from fewstep.quant.preparation import prepare_inputs, prepare_weight
from fewstep.quant.scheme import Scheme, code_range

_TOP = {"fp8": 448.0, "nf4": 1.0, "mxfp4": fp4.TOP, "nvfp4": fp4.TOP}


def fake_weight(weight: Tensor, grid: QuantGrid, scheme: Scheme) -> Tensor:
    """Round weights (rows, columns) to the grid and back, differentiable in weight and scale.

    Straight through (arXiv 1308.3432): rounding counts as the identity, clipped weights get no gradient. What follows
    for the scale is the learned step size of LSQ (arXiv 1902.08153, eq. 3).
    """
    spread = grid.columns(0, weight.shape[1], weight.shape[1], scheme)
    scale = spread.scale.float()
    zero = 0.0 if spread.zero is None else spread.zero.float()
    levels = weight.float() / scale
    if scheme.weight_format in _TOP:
        top = _TOP[scheme.weight_format]
        levels = levels.clamp(-top, top)
        return _through(levels, lambda v: snapped(v, scheme)) * scale
    half = 2 ** (scheme.weight_bits - 1)
    low, high = (-half, half - 1) if scheme.weight_format == "asym" else code_range(scheme.weight_bits)
    return (_through((levels + zero).clamp(low, high), torch.round) - zero) * scale


def fake_affine(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Round inputs to 256 levels of a scale (0-dim) around a zero point and back, differentiable in x and scale."""
    scale = scale.float()
    return (_through((x.float() / scale).clamp(-zero, 255 - zero), torch.round) * scale).to(x.dtype)


def fake_static(x: Tensor, scale: Tensor) -> Tensor:
    """Round inputs to 255 levels of a scale (0-dim) and back, differentiable in both."""
    scale = scale.float()
    return (_through((x.float() / scale).clamp(-127, 127), torch.round) * scale).to(x.dtype)


class FakeLayer(nn.Module):
    """Twin of one `QuantLayer`; its parameters are what the packed layer keeps, before rounding.

    Attributes:
        weight: (out, in / groups, ...), what is rounded (smoothing and float branch already taken out).
        scale: (out, groups) as in the packed layer, float32.
        bias, input_scale, up, down: where the layer has them.
    """

    zero: Tensor | None
    whole: Tensor | None
    smooth: Tensor | None
    input_zero: Tensor | None
    input_scale: nn.Parameter | None
    up: nn.Parameter | None
    down: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, layer: QuantLayer, weight: Tensor | None = None) -> None:
        super().__init__()
        stored, self.scheme, self.backend = layer.stored(), layer.scheme, layer.backend
        start = layer.low_bit_weight() if weight is None else _residual(layer, weight)
        self.weight = nn.Parameter(start.detach().clone())
        self.scale = nn.Parameter(stored.grid.scale.float().clone())
        self.register_buffer("zero", stored.grid.zero)
        self.register_buffer("whole", stored.grid.whole)
        self.register_buffer("input_zero", stored.input_zero)
        self.register_buffer("smooth", stored.smooth)
        for name in ("input_scale", "up", "down"):
            value = getattr(stored, name)
            self.register_parameter(name, None if value is None else nn.Parameter(value.float().clone()))
        self.register_parameter("bias", layer.bias)
        shape = make_layer(layer.to_float(), layer.scheme, layer.backend)
        shape.bias = None
        self._digest = layer.schemes_digest
        self._shape = [shape]  # in a list, so that it is no submodule: it lends its geometry and holds no tensors
        self.train(layer.training)

    def grid(self) -> QuantGrid:
        """Scales as they will be stored (float16 where groups share them), with the gradient passed through."""
        kept = QuantGrid(self.scale.detach(), self.zero, self.whole).rounded(self.scheme).scale.float()
        return QuantGrid(_through(self.scale, lambda s: kept), self.zero, self.whole)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Apply the layer in float arithmetic on rounded values."""
        weight = fake_weight(self.weight.flatten(1), self.grid(), self.scheme)
        return self.product(x, weight.view_as(self.weight), output_size)

    def product(self, x: Tensor, weight: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The layer with this weight in the place of the rounded one; smoothing and float branch included."""
        shape: Any = self._shape[0]
        if output_size is not None:
            shape = shape.sized(x, output_size)
        x = prepare_inputs(shape, x, self.smooth)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        wide = x.dtype if x.is_floating_point() else weight.dtype  # embeddings take indices
        y: Tensor = shape._product(self._inputs(x), weight.to(wide), bias)
        if self.up is not None and self.down is not None:
            up, down = (_through(p, lambda v: v.half().float()).to(x.dtype) for p in (self.up, self.down))
            y = y + shape._mix(shape._product(x, down.view(-1, *self.weight.shape[1:]), None), up)
        return y

    @torch.no_grad()
    def packed(self) -> QuantLayer:
        """The low-bit layer this one stands for."""
        layer = make_layer(self._shape[0].to_float(), self.scheme, self.backend)
        layer.register_parameter("bias", self.bias)
        grid = QuantGrid(self.scale.detach(), self.zero, self.whole).rounded(self.scheme)
        codes = encode(self.weight.flatten(1), grid, self.scheme)
        up, down, step = (None if p is None else p.detach() for p in (self.up, self.down, self.input_scale))
        layer.load(StoredWeight(self.scheme, codes, grid, self.smooth, up, down, step, self.input_zero))
        layer.schemes_digest = self._digest
        return layer.train(self.training)

    def _inputs(self, x: Tensor) -> Tensor:
        if self.scheme.activation_bits == 16:
            return x
        if self.input_scale is not None and self.input_zero is not None:
            return fake_affine(x, self.input_scale, self.input_zero)
        if self.input_scale is not None:
            return fake_static(x, self.input_scale)
        dims, top = self._shape[0]._dims, self.scheme.top
        if self.scheme.activation_group is not None:
            return quantize_groups(x, dims, self.scheme.activation_group, top).to(x.dtype)
        fp8 = self.scheme.activation_format == "fp8"
        codes, scale = quantize_fp8(x, dims) if fp8 else quantize_activation(x, dims, top)
        return (codes * scale).to(x.dtype)


def to_fake(
    model: nn.Module,
    weights: Mapping[str, Tensor] | None = None,
    kind: Callable[[QuantLayer, Tensor | None], FakeLayer] = FakeLayer,
) -> nn.Module:
    """Replace the quantized layers of a model by their twins, in place.

    Args:
        weights: Float weights by layer name to start from (the original ones, for quantization-aware training); layers
            that are not named start from their rounded weights, with unchanged output.
        kind: Makes the twin of a layer from it and its float weight or None.

    Raises:
        FewstepError: a layer has several precisions over one weight (bits per step).
    """
    for name, module in model.named_modules():
        if getattr(module, "tied", dict)():
            hint = "Train the model with one table of bits, then quantize it with several."
            raise FewstepError("precisions that share one weight cannot be trained apart", value=name, hint=hint)
    given = weights or {}
    replace_modules(model, lambda name, m: kind(m, given.get(name)) if isinstance(m, QuantLayer) else None)
    return model


def to_packed(model: nn.Module) -> nn.Module:
    """Replace the twins of a model by packed layers, in place; output unchanged up to float rounding."""
    replace_modules(model, lambda _, layer: layer.packed() if isinstance(layer, FakeLayer) else None)
    run_conditioning_by_row(layer for layer in model.modules() if isinstance(layer, QuantLayer))
    return model


def _through(values: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Rounded values with the gradient of the identity."""
    return values + (rounding(values.detach()) - values.detach())


def _residual(layer: QuantLayer, weight: Tensor) -> Tensor:
    """The part of a float weight that the layer rounds."""
    weight = prepare_weight(layer, layer.as_held(weight.float()))
    if layer.up is not None and layer.down is not None:
        weight = weight - (layer.up.float() @ layer.down.float()).view(layer.weight_shape)
    return weight
