"""Structures as inline SVG that turns by itself: no script, no network, one file."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.tasks.proteins.geometry import centred

COLOURS = ("#2b7bba", "#d9771a", "#1d9a78", "#bf6aa3", "#8a8f98", "#5ab4e5")
FRAMES, SIDE = 24, 300


def traces_svg(traces: Sequence[Tensor], labels: Sequence[str] = (), *, seconds: float = 12.0, side: int = SIDE) -> str:
    """C-alpha traces (L, 3) in angstrom over each other, turning about the vertical axis.

    Lines begin at a filled dot, the first residue. They lie as they are given: superpose them before.

    Args:
        traces: any number; colours repeat after six.
        labels: what each is, shown below.
        seconds: of a turn; 0 for a still picture.
        side: of the drawing.
    """
    points = [_upright(trace, traces[0]) for trace in traces]
    reach = max(float(p.norm(dim=-1).max()) for p in points) or 1.0
    drawn, size = [], side * 0.46 / reach
    for k, x in enumerate(points):
        colour = COLOURS[k % len(COLOURS)]
        frames = [_seen(x, 2 * math.pi * f / FRAMES, size, side) for f in range(FRAMES if seconds else 1)]
        frames.append(frames[0])
        lines = [" ".join(f"{a:.1f},{b:.1f}" for a, b in frame) for frame in frames]
        turn = ""
        dot = ""
        if seconds:
            turn = _animated("points", lines, seconds)
            dot = "".join(
                _animated(name, [f"{frame[0][axis]:.1f}" for frame in frames], seconds)
                for axis, name in enumerate(("cx", "cy"))
            )
        (a, b), *_ = frames[0]
        drawn.append(
            f'<polyline points="{lines[0]}" fill="none" stroke="{colour}" stroke-width="{2.2 if k else 3.0}" '
            f'stroke-linejoin="round" opacity="{0.9 if k < 2 else 0.6}">{turn}</polyline>'
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}">{dot}</circle>'
        )
    for k, label in enumerate(labels):
        y = side + 16 + 17 * k
        safe = label.replace("&", "&amp;").replace("<", "&lt;")
        drawn.append(
            f'<rect x="8" y="{y - 9}" width="14" height="4" fill="{COLOURS[k % len(COLOURS)]}"/>'
            f'<text x="28" y="{y - 2}" font-size="12" fill="currentColor">{safe}</text>'
        )
    height = side + 17 * len(labels) + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {height}" width="{side}" height="{height}" '
        f'role="img" font-family="sans-serif">{"".join(drawn)}</svg>'
    )


def _upright(x: Tensor, like: Tensor) -> Tensor:
    """The trace with the longest axis of the first one upright."""
    base = centred(like).double()
    _, _, axes = torch.linalg.svd(base, full_matrices=False)
    frame = torch.stack([axes[1], axes[0], torch.linalg.cross(axes[1], axes[0])])
    return (x.double() - like.double().mean(0)) @ frame.T


def _seen(x: Tensor, angle: float, size: float, side: int) -> list[tuple[float, float]]:
    across = x[:, 0] * math.cos(angle) + x[:, 2] * math.sin(angle)
    return list(zip((side / 2 + size * across).tolist(), (side / 2 - size * x[:, 1]).tolist(), strict=True))


def _animated(attribute: str, values: Sequence[str], seconds: float) -> str:
    path = ";".join(values)
    return f'<animate attributeName="{attribute}" dur="{seconds:g}s" repeatCount="indefinite" values="{path}"/>'
