"""Four-bit floats: the values of e2m1, and the block scales of MXFP4 and NVFP4.

MXFP4 (OCP Microscaling Formats 1.0, section 6.3): blocks of 32 share a power of two, the largest that is not above
max|w| / 4, stored as a biased exponent (e8m0). NVFP4: blocks of 16 share an e4m3 number, and the tensor a float32
number that puts the largest of these at 448. Both saturate at 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of the codes 0 to 7; codes 8 to 15 are their negatives, stored as the int8 codes -8 to -1."""
TOP = 6.0
BIAS = 127
_E4M3_MAX, _E4M3_MIN = 448.0, 2.0**-6  # the smallest normal number: block scales do not go below
# Halfway between two magnitudes the even mantissa wins: up at 0.75, 1.75, 3.5, down at the others.
_HALFWAY = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_UP = (0.75, 1.75, 3.5)


def encode_fp4(levels: Tensor) -> Tensor:
    """Codes, int8 from -8 to 7 with the bit pattern of e2m1, nearest to float32 levels; ties to even, saturating."""
    halfway = torch.tensor(_HALFWAY, device=levels.device)
    below = torch.nextafter(halfway, torch.zeros_like(halfway))
    bounds = torch.where(torch.tensor([h in _UP for h in _HALFWAY], device=levels.device), below, halfway)
    codes = torch.bucketize(levels.abs(), bounds).to(torch.int8)
    return torch.where(levels.signbit(), codes - 8, codes)


def decode_fp4(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers that codes stand for."""
    table = torch.tensor([*MAGNITUDES, *(-m for m in MAGNITUDES)], dtype=dtype, device=codes.device)
    return table[codes.long() & 15]


def power_of_two(reach: Tensor) -> Tensor:
    """The scale of MXFP4, 2^(floor(log2 reach) - 2), for the largest magnitudes of blocks."""
    exponent = torch.frexp(reach.float()).exponent - 1 - 2
    exponent = torch.where(reach > 0, exponent, torch.full_like(exponent, -BIAS)).clamp(-BIAS, BIAS)
    return torch.ldexp(torch.ones_like(reach, dtype=torch.float32), exponent)


def tensor_scale(weight: Tensor) -> Tensor:
    """The scale of a whole tensor in NVFP4, max|w| / (448 * 6), float32 (0-dim); 1 for a tensor of zeros."""
    reach = weight.detach().abs().amax().float() if weight.numel() else torch.zeros(())
    scale = reach / (_E4M3_MAX * TOP)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def block_scale(scale: Tensor, whole: Tensor) -> Tensor:
    """The e4m3 numbers (held in float32) nearest to scales divided by that of the tensor."""
    return (scale.float() / whole).clamp(_E4M3_MIN, _E4M3_MAX).to(torch.float8_e4m3fn).float()


def nearest_power(scale: Tensor) -> Tensor:
    """The power of two nearest to a scale in the logarithm: where a learned scale goes."""
    exponent = scale.float().clamp(min=2.0**-126).log2().round().clamp(-BIAS, BIAS).to(torch.int32)
    return torch.ldexp(torch.ones_like(scale, dtype=torch.float32), exponent)


def to_bytes(scale: Tensor, whole: Tensor | None) -> Tensor:
    """Scales as they are stored, uint8: e4m3 where the tensor has a scale of its own, else the biased exponent."""
    if whole is not None:
        return block_scale(scale, whole).to(torch.float8_e4m3fn).view(torch.uint8)
    return (torch.frexp(scale.float()).exponent - 1 + BIAS).to(torch.uint8)


def from_bytes(stored: Tensor, whole: Tensor | None) -> Tensor:
    """The float32 scales (with that of the tensor multiplied in) that bytes stand for."""
    if whole is not None:
        return whole * stored.view(torch.float8_e4m3fn).float()
    return torch.ldexp(torch.ones_like(stored, dtype=torch.float32), stored.to(torch.int32) - BIAS)
