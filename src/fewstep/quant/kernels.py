"""Which implementation multiplies a quantized Linear: ours (float arithmetic on integers) or torchao's int8 kernel.

torchao serves dynamic W8A8 Linear layers on CUDA. It takes no convolution in that format, gives no gradient with
respect to the input, and on a CPU without int8 instructions its product is many times slower than the float one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError, nearest
from fewstep.quant.scheme import Scheme

BACKENDS = ("auto", "fewstep", "torchao")


def check_backend(name: str) -> str:
    """The name itself, if it is a backend.

    Raises:
        FewstepError: unknown backend, or torchao was asked for and is not installed.
    """
    if name not in BACKENDS:
        raise FewstepError("unknown quantization backend", value=name, mend=nearest(name, BACKENDS))
    if name == "torchao" and not torchao_installed():
        raise FewstepError("torchao is not installed or too old", mend="pip install 'torchao>=0.15', or use 'auto'.")
    return name


def torchao_fits(scheme: Scheme, linear: bool) -> bool:
    """Whether torchao has a kernel for this layer at all."""
    return linear and scheme == Scheme(8, 8)


def use_torchao(backend: str, scheme: Scheme, *, linear: bool, on_cuda: bool) -> bool:
    """Whether torchao multiplies: always if named and able, by itself only where it has fast kernels."""
    if backend == "fewstep" or not torchao_fits(scheme, linear):
        return False
    return backend == "torchao" or (on_cuda and torchao_installed())


def describe(scheme: Scheme, backend: str, *, linear: bool, on_cuda: bool) -> str:
    """Name of the kernel for the report."""
    if use_torchao(backend, scheme, linear=linear, on_cuda=on_cuda):
        return "torchao int8 dynamic"
    if scheme.activation_bits == 16:
        return "dequantize, float product"
    return "int8 product in float" if scheme.group_size is None else "int8 x dequantized groups"


def torchao_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Dynamic int8 Linear of torchao on our codes (out, in) and scales (out, 1), without copying them."""
    kind, activation = _torchao_format()
    weight = kind(codes, scale, [1, codes.shape[1]], x.dtype, act_quant_kwargs=activation)
    return torch.nn.functional.linear(x, weight, bias)


@lru_cache
def torchao_installed() -> bool:
    """Whether torchao is there with the tensor format used here."""
    try:
        _torchao_format()
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError):
        return False
    return True


@lru_cache
def _torchao_format() -> tuple[Any, Any]:
    """Tensor class and activation settings that torchao's own configuration gives to a layer."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    layer = torch.nn.Linear(16, 16, bias=False)
    quantize_(torch.nn.Sequential(layer), Int8DynamicActivationInt8WeightConfig())
    weight: Any = layer.weight
    return type(weight), weight.act_quant_kwargs
