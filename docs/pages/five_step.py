"""What the numbers say of stopping above zero noise."""

from __future__ import annotations

from typing import Any

from pages.formats import apart, listed, than


def best(stops: dict[str, Any]) -> str:
    """The nearest stop above zero."""
    return min(list(stops)[1:], key=lambda stop: float(stops[stop]["distance"]["mean"]))


def won(results: dict[str, Any], model: str) -> str:
    """Settings in which the paper's stop is nearer than zero."""
    stop, found = f"{results['paper_stop']:g}", results[model]["stops"].values()
    pairs = [(s[stop]["distance"], s["0"]["distance"]) for solvers in found for s in solvers.values()]
    return f"{sum(apart(a, b) < 0 for a, b in pairs)} of {len(pairs)} settings"


def reading(results: dict[str, Any]) -> str:
    """Whether the control loses the advantage, as the explanation by the decoder demands."""
    gains = {}
    for model in ("emoji", "digits"):
        pairs = [s for solvers in results[model]["stops"].values() for s in solvers.values()]
        best = [
            min(e["distance"]["mean"] for k, e in s.items() if k != "0") / s["0"]["distance"]["mean"] for s in pairs
        ]
        gains[model] = 1 - sum(best) / len(best)
    words = "keeps" if gains["digits"] >= gains["emoji"] else "loses part of"
    reason = (
        "so the decoder is not the reason here: fewer evaluations at little noise leave more for the rest"
        if gains["digits"] >= gains["emoji"]
        else "as the explanation by the decoder asks for"
    )
    return (
        f"With its best stop the distance falls by {gains['emoji']:.0%} on emoji and by {gains['digits']:.0%} on "
        f"digits on average: the control {words} the advantage, {reason}."
    )


def verdict_grid(results: dict[str, Any], n: str) -> str:
    """The paper's grid against the others at its stop, and against the best that goes on to zero."""
    grids, zero = results["grids"][n], results["emoji"]["to_zero"][n]
    own = grids["time^(1/1.2)"]
    signs = {k: apart(own["distance"], e["distance"]) for k, e in grids.items() if k != "time^(1/1.2)"}
    won, lost = ([k for k, sign in signs.items() if sign == wanted] for wanted in (-1, 1))
    best = min(zero, key=lambda k: float(zero[k]["distance"]["mean"]))
    near = than(own["distance"], zero[best]["distance"], "nearer", "farther")
    return (
        f"nearer than {listed(won)}, farther than {listed(lost)} at the same stop; against the best grid to zero "
        f"({best}): {near}, MMD {than(own['mmd'], zero[best]['mmd'], 'better', 'worse')}"
    )
