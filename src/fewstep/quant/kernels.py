"""Which implementation multiplies a quantized layer: float arithmetic on integers, oneDNN's or torchao's int8 kernels.

On a CPU with int8 instructions oneDNN (`native`) takes Linear and Conv2d with 8-bit activations and one scale per row.
torchao serves dynamic W8A8 Linear layers on CUDA. It takes no convolution in that format and gives no gradient with
respect to the input. Where a CPU lacks the instructions pairs of products may saturate at 16 bit and the sum is
silently wrong; so both are tried first, and torchao runs on a CPU only if it was asked for
(`benchmarks/quant_latency.py` measures all of them).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError, nearest
from fewstep.quant import native
from fewstep.quant.scheme import Scheme

BACKENDS = ("auto", "fewstep", "torchao", "triton", "int8")
"""`int8` is `auto`, and layers of fewer than 8 bits keep int8 codes in memory for oneDNN's kernel (`quant.native`): one
more byte per weight, and no unpacking in every call."""


def check_backend(name: str) -> str:
    """The name itself, if it is a backend.

    Raises:
        FewstepError: unknown backend, or torchao was asked for and is not installed.
    """
    if name not in BACKENDS:
        raise FewstepError("unknown quantization backend", value=name, hint=nearest(name, BACKENDS))
    if name == "torchao" and not torchao_installed():
        raise FewstepError("torchao is not installed or too old", hint="pip install 'torchao>=0.15', or use 'auto'.")
    if name == "triton" and importlib.util.find_spec("triton") is None:
        raise FewstepError("Triton is not installed", hint="It comes with PyTorch for CUDA on Linux; or use 'auto'.")
    return name


def use_triton(backend: str, where: native.ConvGeometry | None, x: Tensor) -> bool:
    """Whether the int8 convolution in Triton serves an input: only if asked for, on CUDA or in Triton's interpreter."""
    if backend != "triton" or where is None or where.groups != 1 or x.dim() != 4 or x.requires_grad:
        return False
    return x.is_cuda or (x.is_cpu and os.environ.get("TRITON_INTERPRET") == "1")


def torchao_fits(scheme: Scheme, linear: bool) -> bool:
    """Whether torchao has a kernel for this layer at all; what is done to the inputs before it does not matter."""
    return linear and dataclasses.replace(scheme, smooth=False, rank=0, hadamard=False) == Scheme(8, 8)


def use_torchao(backend: str, scheme: Scheme, *, linear: bool, on_cuda: bool) -> bool:
    """Whether torchao multiplies: on CUDA if it is installed, on a CPU only if named and exact there."""
    if backend == "fewstep" or not torchao_fits(scheme, linear):
        return False
    return torchao_installed() if on_cuda else backend == "torchao" and int8_product_exact()


def kernel_reason(
    backend: str, scheme: Scheme, *, linear: bool, on_cuda: bool, regular: bool = True, weights: int = 0
) -> str:
    """Why a layer does not run on an int8 kernel or on the one asked for, or nothing if that needs no word.

    weights: how many the layer has, if known: a call of a tiny one is over before the kernel has begun.
    """
    if on_cuda or scheme.activation_bits == 16:
        return ""
    if backend == "torchao" and torchao_fits(scheme, linear) and not int8_product_exact():
        return "asked for torchao, but this CPU's int8 product saturates: ours is exact"
    if scheme.activation_bits == 4:
        return "no kernel here multiplies 4-bit inputs: they are rounded, the product is in float"
    if not scheme.integer_product:
        return "scales vary inside the sum, which no int8 kernel takes: memory is saved, not time"
    if not regular:
        return "the int8 kernel takes no convolution but Conv2d, and no padding but even zeros"
    if weights and native.SMALL // weights > 256 and native.available():
        rows = -(-native.SMALL // weights)
        return f"tiny layer: int8 pays from {rows:,} rows of input on; below, the same integers are multiplied in float"
    return "" if native.available() else "this CPU's int8 product is missing or saturates: memory is saved, not time"


def describe(scheme: Scheme, backend: str, *, linear: bool, on_cuda: bool, regular: bool = True) -> str:
    """Name of the kernel for the report; `regular` means that oneDNN knows the geometry of the layer."""
    if use_torchao(backend, scheme, linear=linear, on_cuda=on_cuda):
        return "torchao int8 dynamic"
    if scheme.activation_bits == 16:
        return "dequantize, float product"
    if not scheme.integer_product:
        grouped = scheme.group_size and scheme.activation_bits == 8 and scheme.activation_group is None
        return "int8 x dequantized groups" if grouped else "rounded inputs, float product"
    if on_cuda and regular and not linear and backend == "triton":
        return "Triton int8 implicit product"
    return "int8 product in float" if on_cuda or not regular or not native.available() else "oneDNN int8"


def torchao_weight(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Torchao's dynamic int8 weight over our codes (out, in) and scales (out, 1), without copying them."""
    kind, activation = torchao_style()
    return kind(codes, scale, [1, codes.shape[1]], dtype, act_quant_kwargs=activation)


@lru_cache
def int8_product_exact() -> bool:
    """Whether the CPU's int8 matrix product gives the true integers at full range (without VNNI it may saturate)."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(-127, 128, (32, 64), generator=generator, dtype=torch.int8)
    right = torch.randint(-127, 128, (64, 32), generator=generator, dtype=torch.int8)
    left[0], right[:, 0] = 127, 127
    try:
        product = torch._int_mm(left, right)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(product.long(), left.long() @ right.long())


@lru_cache
def torchao_installed() -> bool:
    """Whether torchao is there with the tensor format used here."""
    try:
        torchao_style()
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError):
        return False
    return True


@lru_cache
def torchao_style() -> tuple[Any, Any]:
    """Tensor class and activation settings that torchao's own configuration gives to a layer."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    layer = torch.nn.Linear(16, 16, bias=False)
    quantize_(torch.nn.Sequential(layer), Int8DynamicActivationInt8WeightConfig())
    weight: Any = layer.weight
    return type(weight), weight.act_quant_kwargs
