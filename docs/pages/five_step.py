"""What the numbers say of stopping above zero noise."""

from __future__ import annotations

from typing import Any

from formats import PAIRED, apart, listed, than


def tolerance(emoji: dict[str, float], digits: dict[str, float]) -> str:
    least, most = min(emoji.values()), max(emoji.values())
    return (
        f"Noise put into a finished latent reaches the picture with {least:.2f} to {most:.2f} of its relative size "
        f"(digits: {min(digits.values()):.2f}, nothing is decoded)."
    )


def verdict(results: dict[str, Any]) -> str:
    """Where a stop above zero beats zero, by distance and by distribution, with a decoder and without."""
    lines = []
    for model, other in (("emoji", "mmd"), ("digits", "frechet")):
        for n, solvers in results[model]["stops"].items():
            for name, stops in solvers.items():
                zero = stops["0"]
                best = min(list(stops)[1:], key=lambda stop: stops[stop]["distance"]["mean"])
                near = than(stops[best]["distance"], zero["distance"], "nearer", "farther")
                change = stops[best]["distance"]["mean"] / zero["distance"]["mean"] - 1
                alike = than(stops[best][other], zero[other], "better", "worse")
                lines.append(
                    f"- {model}, {n} evaluations, {name}: best stop {best}, {change:+.0%} against 0 ({near}); by "
                    f"distribution: {alike}"
                )
    paper = f"{results['paper_stop']:g}"
    won = {model: _won(results[model]["stops"], paper) for model in ("emoji", "digits")}
    return (
        f"Claim: stopping helps, because the decoder bears the noise. {PAIRED}\n\n"
        + "\n".join(lines)
        + f"\n\nThe paper's stop {paper} is nearer than 0 in {won['emoji']} on emoji and in "
        f"{won['digits']} on digits, where there is no decoder. {_reading(results)}"
    )


def _won(stops: dict[str, Any], stop: str) -> str:
    pairs = [(s[stop]["distance"], s["0"]["distance"]) for solvers in stops.values() for s in solvers.values()]
    return f"{sum(apart(a, b) < 0 for a, b in pairs)} of {len(pairs)} settings"


def _reading(results: dict[str, Any]) -> str:
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


def verdict_grids(results: dict[str, Any]) -> str:
    """The paper's grid against the others at its stop, and against the best that goes on to zero."""
    lines = []
    for n, grids in results["grids"].items():
        own = grids["time^(1/1.2)"]
        signs = {k: apart(own["distance"], e["distance"]) for k, e in grids.items() if k != "time^(1/1.2)"}
        won, lost = ([k for k, sign in signs.items() if sign == wanted] for wanted in (-1, 1))
        zero = results["emoji"]["to_zero"][n]
        best = min(zero, key=lambda k: zero[k]["distance"]["mean"])
        near = than(own["distance"], zero[best]["distance"], "nearer", "farther")
        alike = than(own["mmd"], zero[best]["mmd"], "better", "worse", "not told apart")
        lines.append(
            f"- {n} evaluations: nearer than {listed(won)}, farther than {listed(lost)} at the same stop; against the "
            f"best grid to zero ({best}): {near}, MMD {alike}"
        )
    return "Claim: equal steps in time^(1/1.2) are the better grid.\n\n" + "\n".join(lines)


def verdict_freeu(results: dict[str, Any]) -> str:
    words = []
    for n, kinds in results["freeu"].items():
        said = {
            k: than(e["mmd"], kinds["no rows"]["mmd"], "better", "worse") for k, e in kinds.items() if k != "no rows"
        }
        words.append(f"{n} evaluations: " + ", ".join(f"{k} {v}" for k, v in said.items()))
    return "By MMD against no FreeU: " + "; ".join(words) + "."
