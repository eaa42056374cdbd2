"""Sub-byte storage: signed codes of 2, 3 or 4 bits, packed into bytes row by row.

Within a row of codes a byte j holds the codes j, j + m, j + 2m, ... (m = bytes per row), lowest bits first. So each
field of all bytes is one contiguous block of columns, and unpacking is two shifts per block with no interleaving. Three
bits are stored as two planes, the low two bits and then the sign bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,)}


def packed_columns(columns: int, bits: int) -> int:
    """Bytes that a row of `columns` codes takes."""
    if bits == 8:
        return columns
    return sum(math.ceil(columns / (8 // width)) for width in _PLANES[bits])


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack int8 codes (rows, columns) into int8 bytes (rows, packed_columns); 8 bit is already packed."""
    if bits == 8:
        return codes
    planes, rest = [], codes.to(torch.int16)
    for width in _PLANES[bits]:
        planes.append(_pack_plane(rest, width))
        rest = rest >> width
    return torch.cat(planes, 1)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Int8 codes (rows, columns) from packed bytes."""
    return packed if bits == 8 else unpack_into(packed, bits, packed.new_empty(packed.shape[0], columns))


def unpack_into(packed: Tensor, bits: int, out: Tensor) -> Tensor:
    """Write the codes of packed bytes into `out` (rows, columns) of any type, and return it."""
    if bits == 8:
        return out.copy_(packed)
    if bits == 3:
        columns = out.shape[1]
        split = packed_columns(columns, 2)
        low = unpack(packed[:, :split], 2, columns) & 3
        high = _unpack_plane(packed[:, split:], 1, packed.new_empty(packed.shape[0], columns))
        return out.copy_(high.mul_(4).add_(low))
    return _unpack_plane(packed, bits, out)


def _pack_plane(codes: Tensor, width: int) -> Tensor:
    fields = 8 // width
    rows, columns = codes.shape
    size = math.ceil(columns / fields)
    blocks = torch.nn.functional.pad(codes & (2**width - 1), (0, fields * size - columns)).view(rows, fields, size)
    shifts = torch.arange(fields, dtype=codes.dtype, device=codes.device)[:, None] * width
    return (blocks << shifts).sum(1).to(torch.uint8).view(torch.int8)


def _unpack_plane(packed: Tensor, width: int, out: Tensor) -> Tensor:
    size = packed.shape[1]
    for field in range(8 // width):
        block = out[:, field * size : (field + 1) * size]
        if block.shape[1]:
            bits = packed[:, : block.shape[1]]
            top = 8 - width * (field + 1)
            # up to the top of the byte, then down again with the sign
            block.copy_((bits << top if top else bits) >> (8 - width))
    return out
