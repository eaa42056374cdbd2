"""Lines with bands: a quantity over time, noise or steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fewstep.errors import FewstepError
from fewstep.report.figures import _DASHES, _MARKERS, COLOURS, _drawing, _legend_above, _svg

Curve = tuple[Sequence[float], Sequence[float]]
"""Places and values, of one length."""


def lines(
    curves: Mapping[str, Curve],
    *,
    xlabel: str,
    ylabel: str,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    falling: bool = False,
) -> str:
    """One line per name, with the band (low, high) of that name if there is one.

    Args:
        curves: name -> (places, values).
        bands: name -> (low, high), as long as the curve.
        falling: the largest place stands left, as in sampling.

    Raises:
        FewstepError: nothing to draw, or lengths that differ.
    """
    if not curves or any(len(places) != len(values) for places, values in curves.values()):
        raise FewstepError("a figure needs lines with as many places as values", value=list(curves))
    with _drawing(5.7, 3.5) as (figure, axes):
        for k, (name, (places, values)) in enumerate(curves.items()):
            colour = COLOURS[k % len(COLOURS)]
            style: dict[str, Any] = {"color": colour, "ls": _DASHES[k % 6], "marker": _MARKERS[k % 6], "ms": 5}
            axes.plot(np.asarray(places, float), np.asarray(values, float), label=name, **style)
            if bands and name in bands:
                low, high = (np.asarray(end, float) for end in bands[name])
                axes.fill_between(np.asarray(places, float), low, high, color=colour, alpha=0.16, lw=0)
        if log_x:
            axes.set_xscale("log")
        if log_y:
            axes.set_yscale("log")
        if falling:
            axes.invert_xaxis()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _legend_above(axes)
        return _svg(figure)
