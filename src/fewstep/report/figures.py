"""Drawings for reports, as inline SVG: text takes the page's colour, so that light and dark both read well.

Colours tell apart under every common colour blindness; lines differ in dash and marker too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2b7bba", "#d9771a", "#1d9a78", "#bf6aa3", "#8a8f98", "#5ab4e5")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_INK = "#010203"  # stands for the page's text colour
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#9a9a9a",
    "grid.alpha": 0.28,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "lines.linewidth": 1.9,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "fewstep",
}


def landscape(
    outputs: Sequence[float],
    states: Sequence[float],
    values: Any,
    *,
    optimum: tuple[float, float],
    box: tuple[tuple[float, float], tuple[float, float]] | None = None,
    identity: tuple[float, float] = (1.0, 1.0),
    label: str = "JAQ (higher is better)",
) -> str:
    """The objective over Q-Sched's two numbers of the first step, with identity, optimum and search box marked.

    Args:
        outputs: values of m0 (scale of the network output), length M.
        states: values of s0 (scale of the state), length S.
        values: objective, shape (M, S); NaN where it was not measured.
        optimum: (m0, s0).
        box: ((m low, m high), (s low, s high)) of the search.

    Raises:
        FewstepError: the shapes do not fit, or nothing was measured.
    """
    heights = np.ma.masked_invalid(np.asarray(values, dtype=float))
    if heights.shape != (len(outputs), len(states)) or heights.count() == 0 or min(heights.shape) < 2:
        raise FewstepError(
            f"a landscape over {len(outputs)} x {len(states)} points needs that many values", value=heights.shape
        )
    with _drawing(5.7, 4.5) as (figure, axes):
        axes.grid(False)
        shades = axes.contourf(outputs, states, heights.T, levels=18, cmap="cividis")
        axes.contour(outputs, states, heights.T, levels=9, colors="white", linewidths=0.5, alpha=0.45)
        if box:
            from matplotlib.patches import Rectangle

            (left, right), (low, high) = box
            axes.add_patch(
                Rectangle(
                    (left, low), right - left, high - low, fill=False, ls="--", lw=1.3, ec="white", label="search box"
                )
            )
        axes.plot(*identity, "o", ms=9, mfc="white", mec="black", mew=1.2, ls="none", label="identity")
        axes.plot(*optimum, "*", ms=17, mfc="#ff9d2e", mec="black", mew=1.0, ls="none", label="optimum")
        axes.set(xlabel="m₀ (network output, first step)", ylabel="s₀ (state, first step)")
        bar = figure.colorbar(shades, ax=axes, pad=0.02)
        bar.set_label(label)
        bar.outline.set_visible(False)
        _legend_above(axes, face="#6f7a86")
        return _svg(figure)


def trade_off(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    chosen: tuple[float, float],
    xlabel: str,
    ylabel: str,
) -> str:
    """Costs against quality, one colour and marker per series, and the chosen point.

    Args:
        series: name -> points (x, y).
        chosen: one of them.
        xlabel: of the cost.
        ylabel: of the quality.

    Raises:
        FewstepError: no points.
    """
    if not any(series.values()):
        raise FewstepError("a front needs at least one point")
    with _drawing(5.7, 3.7) as (figure, axes):
        every = sorted(point for points in series.values() for point in points)
        axes.plot(*zip(*every, strict=True), "-", color="#9a9a9a", lw=0.8, zorder=1)
        for k, (name, points) in enumerate(series.items()):
            x, y = zip(*sorted(points), strict=True)
            marker = _MARKERS[k % len(_MARKERS)]
            axes.plot(x, y, marker, color=COLOURS[k % len(COLOURS)], ms=7, ls="none", label=name)
        axes.plot(*chosen, "o", ms=15, mfc="none", mec=_INK, mew=1.2, ls="none", label="chosen")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_ylim(bottom=0)
        _legend_above(axes)
        return _svg(figure)


def search_curve(
    curves: Mapping[str, tuple[Sequence[float], Any]],
    *,
    reference: tuple[str, float] | None = None,
    ylabel: str = "best objective so far",
    xlabel: str = "network calls",
    log: bool = True,
) -> str:
    """Best value found against network calls, one line per searcher; the band spans its seeds.

    Args:
        curves: name -> (calls of length n, best values of shape (seeds, n) or (n,)).
        reference: a named horizontal line, for instance the full grid.

    Raises:
        FewstepError: no curves, or lengths that differ.
    """
    if not curves:
        raise FewstepError("a search curve needs at least one searcher")
    with _drawing(5.7, 3.7) as (figure, axes):
        for k, (name, (calls, best)) in enumerate(curves.items()):
            seeds = np.atleast_2d(np.asarray(best, dtype=float))
            if seeds.shape[1] != len(calls):
                raise FewstepError(f"curve {name!r} has {len(calls)} calls", value=seeds.shape)
            colour = COLOURS[k % len(COLOURS)]
            axes.step(calls, np.median(seeds, 0), where="post", color=colour, ls=_DASHES[k % 6], label=name)
            if len(seeds) > 1:
                axes.fill_between(calls, seeds.min(0), seeds.max(0), step="post", color=colour, alpha=0.16, lw=0)
        if reference:
            axes.axhline(reference[1], color=_INK, lw=1, ls=":", label=reference[0])
        if log:
            axes.set_xscale("log")
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _legend_above(axes)
        return _svg(figure)


def coefficients(
    series: Mapping[str, Sequence[float]], *, ylabel: str = "factor (1 = unchanged)", xlabel: str = "step"
) -> str:
    """Q-Sched's scalars step by step, around the line of no change.

    Args:
        series: name -> one value per step.

    Raises:
        FewstepError: no series.
    """
    if not series:
        raise FewstepError("a coefficient plot needs at least one series")
    with _drawing(5.7, 3.1) as (figure, axes):
        axes.axhline(1.0, color=_INK, lw=0.9, alpha=0.6)
        for k, (name, values) in enumerate(series.items()):
            axes.plot(
                range(len(values)),
                values,
                color=COLOURS[k % len(COLOURS)],
                ls=_DASHES[k % 6],
                marker=_MARKERS[k % 6],
                ms=6.5,
                label=name,
            )
        axes.set_xticks(range(max(len(v) for v in series.values())))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _legend_above(axes)
        return _svg(figure)


def bars(groups: Mapping[str, Mapping[str, float]], *, unit: str, digits: int = 1) -> str:
    """Horizontal bars: what something cost before and after.

    Args:
        groups: thing -> (variant -> value), for instance {"weights": {"float32": 12.1, "w4a8": 1.9}}.

    Raises:
        FewstepError: nothing to draw.
    """
    variants = list(dict.fromkeys(name for group in groups.values() for name in group))
    if not variants:
        raise FewstepError("a bar chart needs at least one value")
    count = sum(len(group) for group in groups.values())
    with _drawing(5.7, 0.9 + 0.36 * count + 0.25 * len(groups)) as (figure, axes):
        place, ticks = 0.0, []
        widest = max(value for group in groups.values() for value in group.values())
        for name, group in groups.items():
            ticks.append((place + (len(group) - 1) / 2, name))
            for variant, value in group.items():
                colour = COLOURS[variants.index(variant) % len(COLOURS)]
                axes.barh(place, value, height=0.82, color=colour)
                axes.text(value + widest * 0.012, place, f"{value:,.{digits}f}", va="center", fontsize=9.5)
                place += 1
            place += 0.7
        axes.set_yticks([t for t, _ in ticks], [name for _, name in ticks])
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, widest * 1.14)
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        from matplotlib.patches import Patch

        keys = [Patch(color=COLOURS[i % len(COLOURS)], label=name) for i, name in enumerate(variants)]
        _legend_above(axes, handles=keys)
        return _svg(figure)


@contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the house style, without touching pyplot's global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _legend_above(axes: Axes, face: str | None = None, **settings: Any) -> None:
    handles = settings.pop("handles", None) or axes.get_legend_handles_labels()[0]
    figure: Any = axes.figure
    longest = max(len(str(handle.get_label())) for handle in handles)
    across = 3 if longest <= 16 else 2 if longest <= 28 else 1
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=min(across, len(handles)),
        columnspacing=1.4,
        handlelength=2.2,
        frameon=face is not None,
        framealpha=1.0,
        facecolor=face or "none",
        edgecolor="none",
        labelcolor="white" if face else _INK,
    )


def _svg(figure: Figure) -> str:
    """The figure as an `<svg>` element: transparent, text in the colour of the page, no size of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor").strip()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
