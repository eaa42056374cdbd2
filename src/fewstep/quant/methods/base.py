"""What a method is, their registry, and the one function that turns a float weight into what a layer stores."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.quant.grids import QuantGrid, StoredWeight, fit_grid, joined
from fewstep.quant.methods import low_rank, smoothing
from fewstep.quant.rotation import block, rotate
from fewstep.quant.scheme import Scheme
from fewstep.quant.statistics import LayerStatistics, input_range
from fewstep.registry import Maker, Registry, no_argument

Rounder = Callable[[Tensor, Scheme, Tensor | None], tuple[Tensor, QuantGrid]]
"""(weight (rows, columns) float32, scheme, second moments (columns, columns) of the inputs or None) -> codes, grid."""


def nearest_code(weight: Tensor, scheme: Scheme, second: Tensor | None = None) -> tuple[Tensor, QuantGrid]:
    """Round to nearest on the default grid."""
    return fit_grid(weight, scheme)


@dataclass(frozen=True)
class RoundingMethod:
    """How codes are chosen, and what the method adds to a scheme.

    Attributes:
        strength: alpha of SmoothQuant where the scheme is smooth: 0 leaves all difficulty in the activations, 1 in the
            weights.
        smooth, rank: Added to the scheme of each layer (a scheme may also name them itself).
        percentile: Of the magnitudes of the inputs, on which a static scale is put; 100 is the largest.
        calibrated: Whether second moments of the inputs are needed.
        uniform: Whether the method needs codes that are one step apart (integers).
        reconstruct: Steps of block reconstruction to follow (`fewstep.quant.reconstruct`), which needs runs of the
            whole model.
    """

    round: Rounder = nearest_code
    strength: float = 0.5
    smooth: bool = False
    rank: int = 0
    percentile: float = 100.0
    calibrated: bool = False
    uniform: bool = False
    reconstruct: int = 0

    def extend(self, scheme: Scheme, calibration: bool = True) -> Scheme:
        """The scheme with the method's own parts; smoothing only where there is calibration to smooth by."""
        smooth = scheme.smooth or (self.smooth and calibration)
        return dataclasses.replace(scheme, smooth=smooth, rank=scheme.rank or self.rank)


METHODS: Registry[Maker[RoundingMethod]] = Registry(
    "quantization method", "fewstep.rounding", package="fewstep.quant.methods", part=RoundingMethod
)


Argument = Callable[[str, str, type], float]
"""(name of a method, text after its colon, type of its number) -> the number (FewstepError if it is none)."""


def argument(what: str, least: float, most: float = math.inf, *, shown: str) -> Argument:
    """The number that a method may be given after a colon: what it is, its range, and one to show."""

    def read(name: str, text: str, kind: type) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise FewstepError(f"{name} takes {what}", value=text, hint=f"Write {name}:{shown}.")
        return value

    return read


def rounding_method(
    takes: Argument | None = None, **facts: bool
) -> Callable[[Callable[..., RoundingMethod]], Callable[..., RoundingMethod]]:
    """Decorator of a function of a method's name that makes it from its one number, which must have a default.

    Args:
        takes: what the number is (`argument`); None for a method that takes none.
        facts: fields of `RoundingMethod` that hold whatever the number is (`calibrated`, `uniform`, `smooth`).
    """

    def join(make: Callable[..., RoundingMethod]) -> Callable[..., RoundingMethod]:
        name = make.__name__

        def from_text(text: str) -> RoundingMethod:
            if takes is None:
                no_argument(name, text)
            default = next((p.default for p in inspect.signature(make).parameters.values()), None)
            given = () if not text or takes is None else (takes(name, text, type(default)),)
            return dataclasses.replace(make(*given), **facts)  # type: ignore[arg-type]

        METHODS.register(name)(from_text)
        return make

    return join


def method_of(spec: str | RoundingMethod) -> RoundingMethod:
    """The method that a text such as `gptq`, `smoothquant:0.3` or `svdquant:16` names.

    Raises:
        FewstepError: unknown method, or one that does not understand its argument.
    """
    return spec if isinstance(spec, RoundingMethod) else METHODS.load(spec)


def fitting(
    shape: torch.Size, scheme: Scheme, method: RoundingMethod, statistics: LayerStatistics | None, groups: int = 1
) -> tuple[Scheme, RoundingMethod, str]:
    """Scheme and method that a layer of this weight shape can carry, and the reason where they are less than asked."""
    reasons = []
    if groups > 1 and (scheme.smooth or scheme.rank or scheme.hadamard):
        scheme = dataclasses.replace(scheme, smooth=False, rank=0, hadamard=False)
        reasons.append("grouped convolution: no smoothing, no rotation, no float branch")
    if scheme.hadamard and block(shape[1]) == 1:
        scheme = dataclasses.replace(scheme, hadamard=False)
        reasons.append("an odd number of inputs: no rotation")
    rows, columns = shape[0], shape[1:].numel()
    most = rows * columns // (4 * (rows + columns))  # the branch takes a quarter of the layer's weights at most
    if scheme.rank > most:
        scheme = dataclasses.replace(scheme, rank=most)
        reasons.append(f"small layer: float branch of rank {most}")
    if scheme.weight_format not in ("int", "asym") and method.uniform:
        method = dataclasses.replace(method, round=nearest_code, calibrated=False)
        reasons.append(f"{scheme.weight_format} has no uniform steps: rounded to nearest")
    if statistics is None and (scheme.smooth or scheme.calibrated or method.calibrated):
        how = "dynamic" if scheme.calibrated else scheme.activation_format
        scheme = dataclasses.replace(scheme, smooth=False, activation_format=how)
        method = RoundingMethod()
        reasons.append("not reached by the calibration: rounded to nearest")
    return scheme, method, "; ".join(reasons)


@torch.no_grad()
def store(
    weight: Tensor, scheme: Scheme, method: RoundingMethod, statistics: LayerStatistics | None = None, groups: int = 1
) -> StoredWeight:
    """What a layer of float weight (out, in / groups, ...) stores under a scheme; runs on the weight's device.

    Order: smoothing, the rotation, the float branch, then the method's rounding of what is left. Without statistics
    only round-to-nearest schemes can be made.

    Raises:
        FewstepError: the scheme or the method needs statistics, or the layer cannot carry the scheme.
    """
    if statistics is None and (scheme.smooth or scheme.calibrated or method.calibrated):
        raise FewstepError(
            "this scheme or method needs calibration", value=str(scheme), hint="Pass calibration=calibrate(...)."
        )
    if groups > 1 and (scheme.smooth or scheme.rank or scheme.hadamard):
        what = "grouped convolutions take no smoothing, no rotation and no float branch"
        raise FewstepError(what, value=str(scheme))
    matrix, spread = weight.flatten(1).float(), weight[0, 0].numel()
    smooth = None
    second = None if statistics is None or statistics.second is None else statistics.second.to(matrix.device)
    if scheme.smooth and statistics is not None:
        smooth = smoothing.divisors(matrix.view(*weight.shape[:2], -1), statistics.largest, method.strength)
        wide = smooth.repeat_interleave(spread)
        matrix = matrix * wide
        second = None if second is None else second / (wide[:, None] * wide[None, :])
    if scheme.hadamard:
        matrix = rotate(matrix.view(*weight.shape[:2], -1), 1).flatten(1)
        second = None if second is None else _rotated_moments(second, weight.shape[1])
    up, down = None, None
    if scheme.rank:
        up, down, codes, grid = low_rank.split(matrix, scheme, method.round, None if second is None else second[0])
    else:
        codes, grid = _round_groups(matrix, scheme, method, second, groups)
    ranges = (None, None) if statistics is None else input_range(scheme, statistics, smooth, method.percentile)
    return StoredWeight(scheme, codes, grid, smooth, up, down, *ranges)


def _rotated_moments(second: Tensor, width: int) -> Tensor:
    """Second moments (1, K, K) of rotated inputs, R H R^T over the `width` features or channels in K."""
    count, size = second.shape[:2]
    apart = second.view(count, width, size // width, width, size // width)
    return rotate(rotate(apart, 1), 3).view_as(second)


def _round_groups(
    matrix: Tensor, scheme: Scheme, method: RoundingMethod, second: Tensor | None, groups: int
) -> tuple[Tensor, QuantGrid]:
    """Round the rows of each convolution group with the second moments of its own inputs."""
    if groups == 1 or second is None or scheme.per_tensor or scheme.weight_format == "nvfp4":
        return method.round(matrix, scheme, None if second is None else second.mean(0))
    parts = [method.round(part, scheme, moments) for part, moments in zip(matrix.chunk(groups), second, strict=True)]
    return torch.cat([codes for codes, _ in parts]), joined([grid for _, grid in parts])
