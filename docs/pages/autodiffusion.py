"""The page of AutoDiffusion, from results/autodiffusion.json."""

from __future__ import annotations

from typing import Any

from formats import PAIRED, apart, listed, made_by, ratio, shown, table, than

RESULTS, PAGE = ("autodiffusion.json",), "autodiffusion.md"
NEAR = 0.05
"""A searched error within so much of the least possible counts as found."""
SYSTEMS = {
    "uniform": "equal steps in time",
    "best usual": "best usual grid",
    "times, random": "times, random search",
    "times": "times, evolution",
    "one step more, blocks by rank": "one step more, least harmful blocks skipped",
    "times and blocks": "times and skipped blocks, evolution from there",
}


def page(results: dict[str, Any]) -> str:
    """docs/systems/autodiffusion.md, whole; every number and every verdict comes from the results."""
    digits, seeds, budget = results["digits"], results["seeds"], results["line_budget"]
    return f"""# AutoDiffusion (arXiv 2309.10438)

Written by `docs/make_pages.py` from `results/autodiffusion.json`. The search: `fewstep search --method autodiffusion`,
`src/fewstep/schedules/evolution.py`; skipped blocks: `src/fewstep/variants.py`.

Steps differ in what they need. AutoDiffusion searches by evolution which times to visit, then which blocks of the
network each step may leave out, under a budget of executed blocks; weights stay as they are.

## Is the optimum found? Gaussian data

{_gaussian(results["gaussian"])}

Root mean square error of DDIM on Gaussian data, where every sequence of times has a closed form; "least" is the minimum
over a dense grid of all sequences. Searches evaluate {budget} schedules; {seeds} seeds, ± half of the 95 % interval.
{_verdict_gaussian(results["gaussian"])}

## Evolution against random search, times against solvers: the mixture

{_mixture(results["mixture"])}

Root mean square error on fresh noise, half log-SNR from -4 to 4, {budget} schedules per search.

{_verdict_mixture(results["mixture"])}

## Skipped blocks: the digit model

{digits["about"][0].upper()}{digits["about"][1:]}; {digits["blocks"]} transformer blocks, of which a step may leave out
{int(digits["blocks"] * digits["most_skipped"])}. Budget: evaluations times blocks. DPM-Solver++(2M) everywhere.
A search evaluates {digits["budget"]} schedules by their distance to the model's fine results on
{digits["items"]["search"]} items.

{_digits(digits)}

Held-out noise, {digits["items"]["held-out per seed"]} items for each of {seeds} seeds. Distance: from the fine results,
over their standard deviation. Fréchet: features against real digits (fine results:
{shown(digits["teacher_frechet"], 1)}).

{_verdict_digits(digits)}

## What was and was not reproduced

- Reproduced: both search spaces, the operators with their rates, and the budget in executed blocks. Skipping works on
  UNets and transformers of diffusers (`tests/pipelines/test_variants.py`).
- Changed: the search compares with the model's own fine results, item by item, instead of FID on a small batch, which
  is biased and noisy (`DistributionMatch` is there for stochastic plans). Candidates come one at a time, so that any
  number of workers can share a storage.
- Repaired: in the published code skip lists hardly mutate, and crossing can make duplicate times.
- Not reproduced: FID on ImageNet-64, LSUN and Stable Diffusion, whose networks have many more blocks to
  choose from; neither they nor their statistics are at hand.

{made_by(results)}
"""


def _gaussian(rows: dict[str, Any]) -> str:
    cells = [
        [n, f"{r['optimum']:.4f}", ", ".join(f"{t:.3f}" for t in r["optimal_times"]), f"{r['uniform']:.4f}",
         shown(r["evolution"]), shown(r["random"])]
        for n, r in rows.items()
    ]  # fmt: skip
    return table(["evaluations", "least", "at times", "equal steps", "evolution", "random search"], cells)


def _verdict_gaussian(rows: dict[str, Any]) -> str:
    words = []
    for n, r in rows.items():
        over = [v / r["optimum"] - 1 for v in r["evolution"]["values"]]
        found = sum(o <= NEAR for o in over)
        words.append(f"{n} evaluations: {found} of {len(over)} seeds (the worst {max(over):+.1%})")
    return f"Evolution comes within {NEAR:.0%} of the least error: {'; '.join(words)}."


def _mixture(rows: dict[str, Any]) -> str:
    cells = [
        [n, solver, *(shown(entry[k]["fresh"]) for k in ("usual", "random", "evolution"))]
        for n, solvers in rows.items()
        for solver, entry in solvers.items()
    ]
    return table(["evaluations", "solver", "best usual grid", "random search", "evolution"], cells)


def _verdict_mixture(rows: dict[str, Any]) -> str:
    entries = [(n, solver, entry) for n, solvers in rows.items() for solver, entry in solvers.items()]
    better = [1 for _, _, e in entries if e["evolution"]["fresh"]["mean"] < e["random"]["fresh"]["mean"]]
    clear = [1 for _, _, e in entries if apart(e["evolution"]["fresh"], e["random"]["fresh"]) < 0]
    usual = [1 for _, _, e in entries if apart(e["evolution"]["fresh"], e["usual"]["fresh"]) < 0]
    solver = [
        n for n, s in rows.items() if s["order 3"]["usual"]["fresh"]["mean"] < s["DDIM"]["evolution"]["fresh"]["mean"]
    ]
    pairs = [[v for _, _, e in entries for v in e[k]["search"]["values"]] for k in ("evolution", "random")]
    return (
        f"- Evolution has the smaller mean than random search in {len(better)} of {len(entries)} settings, told "
        f"apart in {len(clear)}; it beats the best usual grid in {len(usual)}. {PAIRED} Ratio of "
        f"their errors on the search's own items, geometric mean over all runs: {ratio(*pairs)}.\n"
        f"- A third-order solver on a usual grid beats DDIM on searched times at {listed(solver)} of {listed(rows)} "
        "evaluations: the solver comes first, times second."
    )


def _digits(digits: dict[str, Any]) -> str:
    cells = [
        [
            n,
            title,
            f"{systems[k]['blocks']['mean']:.1f}",
            shown(systems[k]["distance"]),
            shown(systems[k]["frechet"], 1),
        ]
        for n, systems in digits["rows"].items()
        for k, title in SYSTEMS.items()
    ]
    return table(["evaluations", "schedule", "blocks executed", "distance", "Fréchet"], cells)


def _verdict_digits(digits: dict[str, Any]) -> str:
    lines = []
    for n, systems in digits["rows"].items():
        both, times, usual = (systems[k]["distance"] for k in ("times and blocks", "times", "best usual"))
        skipping = sum(any(s["skipped"]) for s in systems["times and blocks"]["schedules"])
        harm = systems["harm"]
        lines.append(
            f"- {n} evaluations: searched times against the best usual grid: {than(times, usual, 'nearer', 'farther')} "
            f"({times['mean'] / usual['mean'] - 1:+.0%}); skipping beside times: "
            f"{than(both, times, 'nearer', 'farther')} ({both['mean'] / times['mean'] - 1:+.0%}); {skipping} of "
            f"{len(systems['times']['schedules'])} best schedules skip anything. One block of {int(n) + 1} steps left "
            f"out alone takes the distance on the search's items from {harm['full']:.4f} to {harm['least']:.4f} at "
            f"least, {harm['median']:.4f} in the median"
        )
    return "\n".join(lines)
