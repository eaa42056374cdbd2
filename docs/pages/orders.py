"""Measured orders of convergence, from results/convergence.json, for the pages of single papers."""

from __future__ import annotations

from typing import Any

ROOM = 0.25
"""How far below its promise a measured slope may lie and still count as that order."""


def title(row: dict[str, Any]) -> str:
    """A solver with its settings and what was changed about it."""
    settings = ", ".join(f"{k}={v}" for k, v in row["settings"].items() if k != "lower_order_final")
    return f"`{row['solver']}` {settings}".strip() + (f" ({row['note']})" if row["note"] else "")


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


def identities(rows: list[dict[str, Any]]) -> str:
    """Pairs of papers that are one method, and what the usual start makes of degree 3."""
    pairs = [
        ("DEIS of degree 2 in log rho and DPM-Solver of order 3", find(rows, "deis_log_rho", "", degree=2),
         find(rows, "dpm_solver", "", order=3)),
        ("DEIS of degree 3 in rho and LMS of order 4", find(rows, "deis_rhoab", "", degree=3), find(rows, "lms", "")),
        ("rhoRK with Heun's tableau and EDM's Heun", find(rows, "rho_rk", "", method="heun2"), find(rows, "heun", "")),
    ]  # fmt: skip
    words = []
    for name, a, b in pairs:
        away = max(abs(x / y - 1) for x, y in zip(a["errors"], b["errors"], strict=True))
        words.append(f"{name} differ by {away:.0e} of their error")
    late = find(rows, "deis_tab", "low-order start", degree=3)
    return f"{'; '.join(words)}. With the usual low-order start, degree 3 falls to order {late['slopes'][-1]:.2f}."


def defect(rows: list[dict[str, Any]]) -> str:
    """What halving the second derivative costs, with exact starts and with the usual one."""
    right, wrong = (find(rows, "dpm_solver_pp_3m", note) for note in ("", "defective"))
    usual = find(rows, "dpm_solver_pp_3m", "low-order start")
    usual_wrong = find(rows, "dpm_solver_pp_3m", "defective, low-order start")
    pairs = list(zip(usual_wrong["errors"], usual["errors"], strict=True))
    less = sum(a < b for a, b in pairs)
    return (
        f"The widespread ++3M with half of the second derivative has order {wrong['slopes'][-1]:.2f} instead of "
        f"{right['slopes'][-1]:.2f} when started exactly. With the start that samplers really make, both fall to about "
        f"two ({usual_wrong['slopes'][-1]:.2f} and {usual['slopes'][-1]:.2f}), and the defective one has the smaller "
        f"error at {less} of {len(pairs)} step counts here: two errors that cancel. The repair is right; on its own it "
        f"promises no better images."
    )
