"""The page of "Hyperparameters are all you need", from results/five-step.json."""

from __future__ import annotations

from typing import Any

from formats import PAIRED, apart, listed, made_by, shown, table, than

RESULTS, PAGE = ("five-step.json",), "five-step.md"


def page(results: dict[str, Any]) -> str:
    """docs/systems/five-step.md, whole; every number and every verdict comes from the results."""
    emoji, digits, items = results["emoji"], results["digits"], results["items"]
    seeds = len(results["seeds"])
    return f"""# Stopping above zero noise (arXiv 2510.02390)

Written by `docs/make_pages.py` from `results/five-step.json`. The published grids: `grids.truncated`
(`src/fewstep/solvers/grids.py`); FreeU in single rows: `Row.network = "freeu:1.1,1.1,0.9,0.2"` with `Variants`.

The last evaluations of a usual grid remove noise that an autoencoder's decoder, trained with noisy latents, may not
mind. The paper stops at sigma/alpha of about {results["paper_stop"]:g}, decodes that, and spends the evaluations above
it, in equal steps of time^(1/1.2). FreeU is switched on late.

## Does a tolerant decoder make up for the noise left?

Emoji teacher with its own autoencoder (trained with a small KL term), {items["emoji"]} held-out captions and {seeds}
seeds; control: 8x8 digits in pixels with an exact denoiser, which has no decoder. "2M" is DPM-Solver++(2M) as
published: second order to the very end where it stops above zero.

Distance from the teacher's picture ({results["fine_steps"]} steps) of the same noise, over the standard deviation of
pictures:

{_stops(results, "distance", 3)}

Squared MMD (emoji, judge's features; the teacher: {shown(emoji["teacher"]["mmd"])}) and Fréchet distance (digits,
pixels) to real pictures:

{_distributions(results)}

± half of the 95 % interval over seeds. {_tolerance(emoji["tolerance"], digits["tolerance"])}

{_verdict(results)}

## The grid

DPM-Solver++(2M) on the emoji teacher: grids that stop at sigma/alpha {results["paper_stop"]:g}, and the usual grids
that go on to zero, at the same evaluations.

{_grids(results)}

{_verdict_grids(results)}

## FreeU

{results["freeu_numbers"].removeprefix("freeu:")} as b1, b2, s1, s2 on the grid above:

{_freeu(results)}

{_verdict_freeu(results)}

## What was and was not reproduced

- Reproduced exactly: the published grids of 4 to 8 steps for Stable Diffusion and SDXL to the printed digits
  (`tests/core/test_truncated_grid.py`), and that a plan stops where it is told to.
- Reproduced at small scale: the tables above, on a small teacher with latents of 8x8.
- Not reproduced: FID on COCO with Stable Diffusion and SDXL. Their decoder makes 512x512 pictures from 64x64 latents
  and has more to invent; whether it bears more noise than this one was not measured. FreeU's numbers were found for
  those networks.

{made_by(results)}
"""


def _stops(results: dict[str, Any], metric: str, digits: int) -> str:
    rows = []
    for model in ("emoji", "digits"):
        for n, solvers in results[model]["stops"].items():
            for name, stops in solvers.items():
                rows.append([model, n, name, *(shown(entry[metric], digits) for entry in stops.values())])
    return table(["model", "evaluations", "solver", *_names(results)], rows)


def _distributions(results: dict[str, Any]) -> str:
    rows = []
    for model, metric, digits in (("emoji", "mmd", 4), ("digits", "frechet", 2)):
        for n, solvers in results[model]["stops"].items():
            for name, stops in solvers.items():
                rows.append([model, n, name, *(shown(entry[metric], digits) for entry in stops.values())])
    return table(["model", "evaluations", "solver", *_names(results)], rows)


def _names(results: dict[str, Any]) -> list[str]:
    first = next(iter(next(iter(results["emoji"]["stops"].values())).values()))
    return [f"to {stop}" for stop in first]


def _tolerance(emoji: dict[str, float], digits: dict[str, float]) -> str:
    least, most = min(emoji.values()), max(emoji.values())
    return (
        f"Noise put into a finished latent reaches the picture with {least:.2f} to {most:.2f} of its relative size "
        f"(digits: {min(digits.values()):.2f}, nothing is decoded)."
    )


def _verdict(results: dict[str, Any]) -> str:
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


def _grids(results: dict[str, Any]) -> str:
    rows = []
    for n, grids in results["grids"].items():
        rows += [[n, name, f"{results['paper_stop']:g}", *_cells(entry)] for name, entry in grids.items()]
        rows += [[n, name, "0", *_cells(entry)] for name, entry in results["emoji"]["to_zero"][n].items()]
    return table(["evaluations", "grid", "stops at", "distance", "squared MMD", "Fréchet"], rows)


def _cells(entry: dict[str, Any]) -> list[str]:
    return [shown(entry["distance"], 3), shown(entry["mmd"]), shown(entry["frechet"], 3)]


def _verdict_grids(results: dict[str, Any]) -> str:
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


def _freeu(results: dict[str, Any]) -> str:
    rows = [[n, name, *_cells(entry)] for n, kinds in results["freeu"].items() for name, entry in kinds.items()]
    return table(["evaluations", "FreeU in", "distance", "squared MMD", "Fréchet"], rows)


def _verdict_freeu(results: dict[str, Any]) -> str:
    words = []
    for n, kinds in results["freeu"].items():
        said = {
            k: than(e["mmd"], kinds["no rows"]["mmd"], "better", "worse") for k, e in kinds.items() if k != "no rows"
        }
        words.append(f"{n} evaluations: " + ", ".join(f"{k} {v}" for k, v in said.items()))
    return "By MMD against no FreeU: " + "; ".join(words) + "."
