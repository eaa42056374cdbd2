"""Tables of measured orders of convergence, from results/convergence.json, for the pages of single papers."""

from __future__ import annotations

from typing import Any

from formats import table

ROOM = 0.25
"""How far below its promise a measured slope may lie and still count as that order."""


def orders(rows: list[dict[str, Any]]) -> str:
    """Errors at the two ends, the last slope, what was promised, and the departure from independent errors."""
    cells = []
    for row in rows:
        settings = ", ".join(f"{k}={v}" for k, v in row["settings"].items() if k != "lower_order_final")
        start = f"{row['seeded']} states exact" if row["seeded"] else "its own"
        counts, away = row["counts"], row["departure_from_golden"]
        cells.append(
            [
                f"`{row['solver']}` {settings}".strip() + (f" ({row['note']})" if row["note"] else ""),
                start,
                f"{row['errors'][0]:.2g} at {counts[0]}",
                f"{row['errors'][-1]:.2g} at {counts[-1]}",
                f"{row['slopes'][-1]:.2f}",
                row["promised"],
                "–" if away is None else f"{100 * away:.1f} %",
            ]
        )
    heads = ["solver", "start", "error", "error", "measured order", "order on paper", "largest departure"]
    return table(heads, cells)


def kept(rows: list[dict[str, Any]]) -> str:
    """How many clean cases reach their order, and which do not."""
    clean = [row for row in rows if not row["note"]]
    short = [row for row in clean if row["slopes"][-1] < row["promised"] - ROOM]
    names = ", ".join(f"`{row['solver']}` {row['slopes'][-1]:.2f} of {row['promised']}" for row in short)
    return f"{len(clean) - len(short)} of {len(clean)} reach their order on the last refinement" + (
        f"; below it: {names}." if short else "."
    )


def find(rows: list[dict[str, Any]], solver: str, note: str, **settings: Any) -> dict[str, Any]:
    """The one row of this solver, note and settings."""
    for row in rows:
        if row["solver"] == solver and row["note"] == note and settings.items() <= row["settings"].items():
            return row
    raise KeyError((solver, note, settings))


PROTOCOL = """\
One-dimensional mixture of three Gaussians with a perfect noise estimate, half log-SNR uniformly from -2 to 2, nine
first states, largest error to the exact flow. "States exact": the first new states are given exactly, because a
low-order start hides every order above 2. "Largest departure": from the errors that an implementation without shared
code found (printed to two or three digits)."""
