"""The page of USF and S3, from results/usf.json."""

from __future__ import annotations

from typing import Any

from formats import PAIRED, listed, made_by, ratio, shown, table, than

RESULTS, PAGE = ("usf.json",), "usf-s3.md"
SYSTEMS = {
    "ddim": "DDIM, best usual grid",
    "uniform": "best uniform solver and grid",
    "times": "times searched, one strategy",
    "everything, random": "times and strategies, random search",
    "everything, no predictor": "times and strategies, evolution",
    "everything": "times and strategies, S3 (evolution with predictor)",
    "everything with v3": "the same with v3's form as a third choice",
}


def page(results: dict[str, Any]) -> str:
    """docs/systems/usf-s3.md, whole; every number and every verdict comes from the results."""
    rows, budget = results["rows"], results["budget"]
    tried = next(iter(rows.values()))["uniform_solvers_tried"]
    return f"""# USF and S3 (arXiv 2312.07243)

Written by `docs/make_pages.py` from `results/usf.json`. The strategies of a step: `Decision` in
`src/fewstep/solvers/per_step.py`; the search: `src/fewstep/schedules`, `fewstep search --method s3`.

All fast solvers are one exponential integrator with different choices: times, what is extrapolated (noise, data, v3's
form), order, which points, a relaxation of the first derivative, a corrector. USF makes each choice per step; S3
searches them, with a predictor that ranks candidates before they are evaluated.

## Times, strategies, or both

{_table(rows)}

Root mean square error on a mixture of three Gaussians with a perfect network, half log-SNR from -4 to 4. "Search": on
the 200 quantiles that the search minimises; "fresh": on 2000 new noises; "shifted": on another mixture that no search
has seen. Means over {results["seeds"]} seeds of search and noise ± half of the 95 % interval. Every search evaluates
{budget} schedules, its hand-made starting ones included. The best uniform solver is the best of {tried}, in hindsight
({_chosen(rows)}).

For comparison, what an implementation without shared code found on its search's items, with 2000 evaluated schedules
and fewer uniform solvers:

{_independent(results["independent"])}

{_verdict(rows)}

## Does the predictor pay?

{_curves(results)}

Best error on the search's items after so many evaluations. {_verdict_predictor(results)}

## What was and was not reproduced

- Reproduced: the update rule with all seven components but the starting point, which no released schedule uses;
  low-order differences and relaxation (`tests/core/test_per_step.py`); analytic first steps; scaled skip connections as
  a network variant (`skip-scale:`).
- Reproduced from its description alone: the predictor (step embeddings, LSTM, pairwise ranking). The published code
  holds a plain evolutionary search.
- Changed: candidates are proposed one at a time, so that any number of workers can share one storage.
- Not reproduced: the published FID figures; those schedules belong to networks that are not at hand. Searches on
  models: `docs/systems/solvers.md`.

{made_by(results)}
"""


def _table(rows: dict[str, Any]) -> str:
    cells = []
    for n, systems in rows.items():
        for name, title in SYSTEMS.items():
            cells.append([n, title, *(shown(systems[name][k]) for k in ("search", "fresh", "shifted"))])
    return table(["evaluations", "system", "search", "fresh", "shifted"], cells)


def _chosen(rows: dict[str, Any]) -> str:
    return "; ".join(f"{n} evaluations: {systems['uniform']['chosen']}" for n, systems in rows.items())


def _independent(found: dict[str, Any]) -> str:
    rows = [[n, *(f"{v[k]:.4f}" for k in ("ddim", "uniform", "times", "everything"))] for n, v in found.items()]
    return table(["evaluations", "DDIM", "uniform", "times", "times and strategies"], rows)


def _verdict(rows: dict[str, Any]) -> str:
    """On fresh noise: strategies against times, and both against uniform solvers; and what the shift leaves."""
    compared = (
        ("strategies beside times", "everything", "times"),
        ("strategies and times against the best uniform solver", "everything", "uniform"),
        ("times alone against the best uniform solver", "times", "uniform"),
    )
    lines = []
    for words, ours, theirs in compared:
        said = []
        for n, systems in rows.items():
            a, b = systems[ours]["fresh"], systems[theirs]["fresh"]
            said.append(f"{n}: {a['mean'] / b['mean'] - 1:+.0%} ({than(a, b, 'better', 'worse')})")
        lines.append(f"- {words}: {'; '.join(said)}")
    holds = [n for n, s in rows.items() if s["everything"]["shifted"]["mean"] < s["uniform"]["shifted"]["mean"]]
    return (
        f"Error on fresh noise, by evaluations. {PAIRED}\n\n"
        + "\n".join(lines)
        + (
            f"\n\nOn the shifted mixture the searched schedule is below the best uniform solver at {listed(holds)} of "
            f"{listed(rows)} evaluations:\na schedule belongs to the model it was searched on."
        )
    )


def _curves(results: dict[str, Any]) -> str:
    cells = []
    for n, systems in results["rows"].items():
        for name in ("everything, random", "everything, no predictor", "everything"):
            cells.append([n, SYSTEMS[name], *(shown(e) for e in systems[name]["best_after"])])
    return table(["evaluations", "search", *(str(look) for look in results["looks"])], cells)


def _verdict_predictor(results: dict[str, Any]) -> str:
    """S3's final error over the others', over all runs."""
    words = []
    for name, title in (("everything, random", "random search"), ("everything, no predictor", "evolution alone")):
        ours, theirs = (
            [value for systems in results["rows"].values() for value in systems[k]["search"]["values"]]
            for k in ("everything", name)
        )
        words.append(f"S3 over {title}: {ratio(ours, theirs)}")
    runs = len(results["rows"]) * results["seeds"]
    return f"Ratio of final errors, geometric mean over {runs} runs with its 95 % interval: {'; '.join(words)}."
