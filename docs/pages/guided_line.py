"""The page of guided decoupled DMD on a line: which part makes two calls collapse."""

from __future__ import annotations

from typing import Any

from formats import listed, made_by, shown, table

RESULTS = ("guided-line.json",)
PAGE = "guided-line.md"


def page(found: dict[str, Any]) -> str:
    """docs/systems/guided-line.md, whole."""
    s, law, times = found["settings"], found["class"], found["times"]
    rows = []
    for name, calls in found["arms"].items():
        cells = [cell for call in calls for cell in (shown(call["mean"], 2), shown(call["std"], 2))]
        rows.append([name, *cells])
    for guidance, points in found["fixed_points"].items():
        cells = [f"{call[key]:.2f}" for call in points for key in ("mean", "std")]
        rows.append([f"stationary point at guidance {guidance}, each call told", *cells])
    heads = ["arm", *(f"{key} after call {k + 1}" for k in range(len(times)) for key in ("mean", "std"))]
    return f"""# Guided decoupled DMD on a line

Written by `docs/make_pages.py` from `results/guided-line.json`. The method: [decoupled-dmd.md](decoupled-dmd.md).

A class N({law["mean"]:g}, {law["std"]:g}^2) within a whole that is wider, the exact teacher, a rectified flow, a small
student called at times {listed(f"{t:g}" for t in times)}. Guidance {s["guidance"]:g}, {s["updates"]:,} updates, two of
the critic each. Each arm leaves one part of the method out or changes it; mean ± half of the 95 % interval over
{len(s["seeds"])} seeds of training. The last lines are the laws at which matching and guidance balance, call by call,
without weights (closed form; checked against the preset's own branches by a test).

{table(heads, rows)}

{_said(found)}

{made_by(found)}
"""


def _said(found: dict[str, Any]) -> str:
    """What the numbers say about the three suspects."""
    arms, wanted = found["arms"], [call["std"] for call in found["fixed_points"][f"{found['settings']['guidance']:g}"]]

    def away(name: str) -> float:
        return max(
            abs(call["std"]["mean"] - w) / w if w else call["std"]["mean"]
            for call, w in zip(arms[name], wanted, strict=True)
        )

    lines = [
        f"- *{name}*: its spread is up to {away(name):.0%} from that of the stationary point."
        for name in arms
        if "no guidance" not in name
    ]
    return "How far each arm ends from the stationary point of its own calls:\n\n" + "\n".join(lines)
