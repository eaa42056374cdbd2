"""Statistics of what one layer sees, and the ranges that calibrated activations take from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.quant.scheme import Scheme


@dataclass(frozen=True)
class LayerStatistics:
    """Inputs of one Linear or convolution, as rows of its matrix product (for a convolution: unfolded patches).

    largest: (in,) largest magnitude per input feature or channel.  rows: how many entered `second`.
    lowest, highest: (in,) smallest and largest value.
    sample: (n, in * kh * kw), rows drawn evenly from the whole stream.
    second: (convolution groups, K, K), mean of x x^T over rows; None if it was not asked for.
    """

    rows: int
    largest: Tensor
    sample: Tensor
    second: Tensor | None = None
    lowest: Tensor | None = None
    highest: Tensor | None = None
    percentile: float = 100.0
    """Of the sampled values, at which `reach` and `span` end unless told otherwise."""

    def span(self, smooth: Tensor | None = None, percentile: float | None = None) -> tuple[Tensor, Tensor]:
        """Ends (0-dim) of the range of the inputs, divided by `smooth` (in,); 0 lies between them.

        Below a percentile of 100 each end leaves out half of the rest.
        """
        share = self.percentile if percentile is None else min(percentile, self.percentile)
        if self.lowest is None or self.highest is None:
            ends = -self.reach(smooth, share), self.reach(smooth, share)
        elif share >= 100:
            wide = torch.ones_like(self.lowest) if smooth is None else smooth.to(self.lowest)
            ends = (self.lowest / wide).min(), (self.highest / wide).max()
        else:
            rows = self._rows(smooth).flatten()
            rank = max(1, round((100 - share) / 200 * rows.numel()))
            ends = rows.kthvalue(rank).values, rows.kthvalue(rows.numel() + 1 - rank).values
        return ends[0].clamp(max=0), ends[1].clamp(min=0)

    def _rows(self, smooth: Tensor | None) -> Tensor:
        if smooth is None:
            return self.sample
        return self.sample / smooth.to(self.sample).repeat_interleave(self.sample.shape[1] // len(smooth))

    def reach(self, smooth: Tensor | None = None, percentile: float | None = None) -> Tensor:
        """Magnitude (0-dim) that inputs, divided by `smooth` (in,), do not exceed, or exceed that rarely."""
        share = self.percentile if percentile is None else min(percentile, self.percentile)
        largest = self.largest if smooth is None else self.largest / smooth.to(self.largest)
        if share >= 100:
            return largest.max()
        rows = self._rows(smooth).abs().flatten()
        return rows.kthvalue(max(1, round(share / 100 * rows.numel()))).values


def ranges_of(text: str) -> tuple[float, float]:
    """Momentum and percentile of `max`, `ema:MOMENTUM` or `percentile:P`.

    Raises:
        FewstepError: it is none of these, or the number is out of place.
    """
    kind, _, number = text.partition(":")
    try:
        value = float(number) if number else -1.0
    except ValueError:
        value = -1.0
    if text == "max":
        return 0.0, 100.0
    if kind == "ema" and 0 <= value < 1:
        return value, 100.0
    if kind == "percentile" and 50 <= value <= 100:
        return 0.0, value
    hint = "Write max, ema:0.95 (from 0 to below 1) or percentile:99.9 (from 50 to 100)."
    raise FewstepError("unknown way to take ranges", value=text, hint=hint)


def input_range(
    scheme: Scheme, statistics: LayerStatistics, smooth: Tensor | None = None, percentile: float = 100.0
) -> tuple[Tensor | None, Tensor | None]:
    """Scale (float32, 0-dim) and zero point (int32, 0-dim) of calibrated activations; None where there is none."""
    if scheme.activation_format == "static":
        return statistics.reach(smooth, percentile).clamp(min=1e-30) / 127, None
    if scheme.activation_format == "affine":
        low, high = statistics.span(smooth, percentile)
        scale = (high - low).clamp(min=1e-30) / 255
        return scale, (-low / scale).round().clamp(0, 255).to(torch.int32)
    return None, None
