"""What a quantized layer stores and multiplies: the bit widths and the granularity of the scales, as one value."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fewstep.errors import FewstepError

WEIGHT_BITS = (2, 3, 4, 8)
ACTIVATION_BITS = (8, 16)
DEFAULT_GROUP = 32
_NAME = re.compile(r"w(\d+)(?:a(\d+))?(?:g(\d+)|(row))?")
_MEND = "Write w<bits>[a<8 or 16>][g<group size> or row], for instance w8a8, w4a8, w4a16, w8, w4a8g64, w4a8row."


def default_group(weight_bits: int) -> int | None:
    """Group size when none is named: one scale per output channel at 8 bit, per 32 inputs below."""
    return None if weight_bits == 8 else DEFAULT_GROUP


@dataclass(frozen=True)
class Scheme:
    """Symmetric integer quantization of one layer.

    weight_bits:
        2, 3, 4 or 8; stored packed.
    activation_bits:
        8: inputs are quantized at run time, scales and all; 16: inputs keep their float type.
    group_size:
        Input values (for a convolution: of in_channels * kh * kw, flattened) that share one scale; None shares it over
        the whole output channel.

    Raises:
        FewstepError: a width or group size that is not supported.
    """

    weight_bits: int
    activation_bits: int = 16
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.weight_bits not in WEIGHT_BITS:
            raise FewstepError("unsupported weight bits", value=self.weight_bits, mend=f"Use one of {WEIGHT_BITS}.")
        if self.activation_bits not in ACTIVATION_BITS:
            raise FewstepError(
                "unsupported activation bits", value=self.activation_bits, mend=f"Use one of {ACTIVATION_BITS}."
            )
        if self.group_size is not None and self.group_size < 2:
            raise FewstepError(
                "group size too small", value=self.group_size, mend="Use at least 2, normally 32 to 128."
            )

    @classmethod
    def parse(cls, name: str | Scheme) -> Scheme:
        """Read a name such as `w4a8`; `str` writes it again.

        Raises:
            FewstepError: the name is malformed or asks for unsupported widths.
        """
        if isinstance(name, Scheme):
            return name
        found = _NAME.fullmatch(name.strip().lower()) if isinstance(name, str) else None
        if found is None:
            raise FewstepError("unknown quantization scheme", value=name, mend=_MEND)
        weight, activation, group, row = found.groups()
        size = None if row else int(group) if group else default_group(int(weight))
        return cls(int(weight), int(activation or 16), size)

    def __str__(self) -> str:
        name = f"w{self.weight_bits}a{self.activation_bits}"
        if self.group_size == default_group(self.weight_bits):
            return name
        return name + ("row" if self.group_size is None else f"g{self.group_size}")


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code. At 8 bit -128 is left out: symmetric, and one code of 256 costs nothing."""
    top = 2 ** (bits - 1) - 1
    return (-top if bits == 8 else -top - 1), top
