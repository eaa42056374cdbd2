"""What a quantized layer stores and multiplies, as one value: formats, bit widths, granularity, corrections."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fewstep.errors import FewstepError, nearest

WEIGHT_BITS = (2, 3, 4, 8)
ACTIVATION_BITS = (4, 8, 16)
WEIGHT_FORMATS = ("int", "asym", "fp8", "nf4", "mxfp4", "nvfp4")
ACTIVATION_FORMATS = ("dynamic", "static", "affine", "fp8")
CALIBRATED = ("static", "affine")
"""Formats of activations whose range is calibrated."""
DEFAULT_GROUP = 32
BLOCKS = {"mxfp4": 32, "nvfp4": 16}
"""Formats whose definition fixes how many weights share a scale."""
_WIDTH = {"fp8": 8, "nf4": 4, "mxfp4": 4, "nvfp4": 4}
_NAME = re.compile(
    r"(?:w(\d)|(fp8|nf4|mxfp4|nvfp4))(?:a(\d{1,2}|fp8))?(?:g(\d{1,7})|(row|tensor))?((?:-[a-z0-9]{1,9})*)", re.A
)
_OPTIONS = ("asym", "static", "affine", "smooth", "hadamard", "r<rank>", "ag<group of inputs>")
_HINT = (
    "Write w<bits>, fp8, nf4, mxfp4 or nvfp4, then a4, a8, a16 or afp8, then g<group size>, row or tensor, then "
    f"options from -{', -'.join(_OPTIONS)}: for instance w8a8, w4a8, w4a4g64-ag64, w4a16-asym, w8a8-static, w4g64, "
    "w4a8row, fp8afp8, mxfp4a8, w4a8-r32."
)


def default_group(weight_bits: int, weight_format: str = "int") -> int | None:
    """Group size when none is named: one scale per output channel at 8 bit, per 32 inputs below, per 64 for NF4,
    16 for NVFP4."""
    if weight_bits == 8:
        return None
    if weight_format in BLOCKS:
        return BLOCKS[weight_format]
    return 64 if weight_format == "nf4" else DEFAULT_GROUP


@dataclass(frozen=True)
class Scheme:
    """How one layer is stored and multiplied; `str` writes the name that `parse` reads.

    Attributes:
        weight_bits: 2, 3, 4 or 8; stored packed.
        activation_bits: 4 or 8: inputs are quantized before the product; 16: inputs keep their float type.
        group_size: Input values (for a convolution: of in_channels * kh * kw, flattened) that share one scale; None
            shares it over the whole output channel.
        weight_format: `int` symmetric integers; `asym` integers with a zero point per scale; `fp8` float8 e4m3 (8 bit);
            `nf4` the 16 quantiles of a normal distribution (4 bit; arXiv 2305.14314); `mxfp4` the 16 values of e2m1
            with a power of two per 32 inputs (OCP Microscaling 1.0); `nvfp4` the same values with an e4m3 scale per 16
            inputs and a float32 scale per tensor.
        activation_format: `dynamic` integers with a scale per token or image at run time. At 8 bit also: `static` with
            one calibrated scale per layer; `affine` with a calibrated scale and zero point; `fp8` e4m3 with a scale at
            run time.
        per_tensor: One weight scale for the whole layer.
        smooth: Inputs are divided by a stored vector, and weights multiplied by it (SmoothQuant, arXiv 2211.10438).
        rank: Rank of a float branch beside the low-bit product (SVDQuant, arXiv 2411.05007); 0 for none.
        activation_group: Input features or channels of a token or image that share one dynamic scale; None shares it
            over all.
        hadamard: Inputs and weights are rotated (`fewstep.quant.rotation`; QuaRot, arXiv 2404.00456), after smoothing.

    Raises:
        FewstepError: a width, format or group size that is not supported, or a combination that means nothing.
    """

    weight_bits: int
    activation_bits: int = 16
    group_size: int | None = None
    weight_format: str = "int"
    activation_format: str = "dynamic"
    per_tensor: bool = False
    smooth: bool = False
    rank: int = 0
    activation_group: int | None = None
    hadamard: bool = False

    def __post_init__(self) -> None:
        _one_of("weight format", self.weight_format, WEIGHT_FORMATS)
        _one_of("activation format", self.activation_format, ACTIVATION_FORMATS)
        if self.weight_bits not in WEIGHT_BITS:
            raise FewstepError("unsupported weight bits", value=self.weight_bits, hint=f"Use one of {WEIGHT_BITS}.")
        if self.activation_bits not in ACTIVATION_BITS:
            raise FewstepError(
                "unsupported activation bits", value=self.activation_bits, hint=f"Use one of {ACTIVATION_BITS}."
            )
        if self.group_size is not None and self.group_size < 2:
            raise FewstepError(
                "group size too small", value=self.group_size, hint="Use at least 2, normally 32 to 128."
            )
        if self.weight_bits != _WIDTH.get(self.weight_format, self.weight_bits):
            raise FewstepError(f"{self.weight_format} weights have another width", value=self.weight_bits, hint=_HINT)
        if self.activation_bits != 8 and self.activation_format != "dynamic":
            hint = "Write a8." if self.activation_format != "fp8" else "Write afp8."
            raise FewstepError(f"{self.activation_format} activations are 8 bit", value=self.activation_bits, hint=hint)
        self._check_groups()
        if self.hadamard and self.calibrated:
            hint = "Leave -static and -affine out: dynamic scales follow the rotated inputs."
            raise FewstepError("the range of rotated inputs is not calibrated", value=self.activation_format, hint=hint)
        if self.rank < 0:
            raise FewstepError("the rank of the float branch is negative", value=self.rank, hint="Use 0 for none.")

    def _check_groups(self) -> None:
        block = BLOCKS.get(self.weight_format)
        if self.per_tensor and self.group_size is not None:
            raise FewstepError("one scale per tensor leaves no groups", value=self.group_size, hint=_HINT)
        if block is not None and self.group_size != block:
            hint = f"Write {self.weight_format} without a group."
            raise FewstepError(
                f"{self.weight_format} has one scale per {block} weights", value=self.group_size, hint=hint
            )
        if self.activation_group is None:
            return
        if self.activation_bits == 16 or self.activation_format != "dynamic":
            raise FewstepError("only dynamic integers have groups of inputs", value=self.activation_group, hint=_HINT)
        if self.activation_group < 2:
            hint = "Use at least 2, normally 32 to 128."
            raise FewstepError("group of inputs too small", value=self.activation_group, hint=hint)

    @classmethod
    def parse(cls, name: str | Scheme) -> Scheme:
        """Read a name such as `w4a8`; `str` writes it again.

        Raises:
            FewstepError: the name is malformed or asks for something unsupported.
        """
        if isinstance(name, Scheme):
            return name
        found = _NAME.fullmatch(name.strip().lower()) if isinstance(name, str) else None
        if found is None:
            raise FewstepError("unknown quantization scheme", value=name, hint=_HINT)
        weight, kind, activation, group, whole, rest = found.groups()
        chosen = _options(name, rest)
        kind = kind or ("asym" if chosen["asym"] else "int")
        if chosen["asym"] and kind != "asym":
            raise FewstepError("only integers have zero points", value=name, hint=_HINT)
        if chosen["static"] and chosen["affine"]:
            raise FewstepError("affine inputs are static already", value=name, hint="Leave -static out.")
        if (chosen["static"] or chosen["affine"]) and activation != "8":
            raise FewstepError("calibrated scales need int8 activations", value=name, hint="Add a8.")
        bits = int(weight or _WIDTH[kind])
        size = None if whole else int(group) if group else default_group(bits, kind)
        calibrated = "static" if chosen["static"] else "affine" if chosen["affine"] else "dynamic"
        how = "fp8" if activation == "fp8" else calibrated
        wide = 8 if activation == "fp8" else int(activation or 16)
        more = bool(chosen["smooth"]), chosen["rank"], chosen["ag"] or None, bool(chosen["hadamard"])
        return cls(bits, wide, size, kind, how, whole == "tensor", *more)

    def __str__(self) -> str:
        name = f"w{self.weight_bits}" if self.weight_format in ("int", "asym") else self.weight_format
        name += "afp8" if self.activation_format == "fp8" else f"a{self.activation_bits}"
        if self.per_tensor:
            name += "tensor"
        elif self.group_size != default_group(self.weight_bits, self.weight_format):
            name += "row" if self.group_size is None else f"g{self.group_size}"
        name += "-asym" if self.weight_format == "asym" else ""
        name += f"-{self.activation_format}" if self.activation_format in CALIBRATED else ""
        name += f"-ag{self.activation_group}" if self.activation_group else ""
        name += ("-smooth" if self.smooth else "") + ("-hadamard" if self.hadamard else "")
        return name + (f"-r{self.rank}" if self.rank else "")

    @property
    def top(self) -> int:
        """Largest code of dynamic integer inputs, symmetric."""
        return int(2 ** (self.activation_bits - 1) - 1)

    @property
    def calibrated(self) -> bool:
        """Whether the range of the inputs is calibrated and stored."""
        return self.activation_format in CALIBRATED

    @property
    def integer_product(self) -> bool:
        """Whether both factors of the product are symmetric integers and the scales can be taken out of the sum."""
        return (
            self.activation_bits == 8
            and self.activation_format != "fp8"
            and self.weight_format == "int"
            and self.group_size is None
            and self.activation_group is None
        )


def code_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code. At 8 bit -128 is left out: symmetric, and one code of 256 costs nothing."""
    top = 2 ** (bits - 1) - 1
    return (-top if bits == 8 else -top - 1), top


def _options(name: str, text: str) -> dict[str, int]:
    chosen = dict.fromkeys(("asym", "static", "affine", "smooth", "hadamard", "rank", "ag"), 0)
    for option in text.split("-")[1:]:
        number = re.fullmatch(r"(r|ag)([1-9]\d*)", option, re.A)
        key = {"r": "rank", "ag": "ag"}[number[1]] if number else option
        if key not in chosen or (key in ("rank", "ag") and number is None) or chosen[key]:
            raise FewstepError("unknown or repeated option of a quantization scheme", value=name, hint=_HINT)
        chosen[key] = int(number[2]) if number else 1
    return chosen


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise FewstepError(f"unknown {what}", value=value, hint=nearest(value, known))
