"""The pages of Q-Sched (arXiv 2509.01624) and the README's table, from results/q-sched*.json and search-*.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fewstep.files import read_json
from fewstep.report import figures

PAGE = "q-sched.md"
FOLDER = Path(__file__).parents[2] / "results"
SHORT = {"mmd": "RBF-MMD² ↓", "frechet": "Fréchet ↓", "recall": "recall ↑", "judge": "judge ↑", "psnr": "PSNR, dB ↑"}


def value(entry: Any, digits: int) -> str:
    if entry is None:
        return "–"
    return f"{entry['mean']:.{digits}f} ({entry['low']:.{digits}f} to {entry['high']:.{digits}f})"


def digits_of(kind: str) -> int:
    return {"mmd": 4, "psnr": 1}.get(kind, 3)


def table(results: dict[str, Any], kinds: tuple[str, ...]) -> str:
    """Systems by metrics; brackets hold 95 % bootstrap intervals over prompts."""
    evaluation = results["evaluation"]
    chosen = {m: d for m, d in evaluation["metrics"].items() if d["kind"] in kinds}
    heads = [SHORT[d["kind"]] + (f" ({d['of']})" if d["of"] else "") for d in chosen.values()]
    lines = ["| system | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    rows = {**evaluation["systems"], "real against real": evaluation["null"]}
    for name, row in rows.items():
        cells = [value(row.get(m), digits_of(d["kind"])) for m, d in chosen.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(results: dict[str, Any]) -> str:
    evaluation, lines = results["evaluation"], []
    for pair, row in evaluation["comparisons"].items():
        for metric, entry in row.items():
            described = evaluation["metrics"][metric]
            if described["kind"] in ("mmd", "frechet", "recall", "judge", "diversity"):
                shown = value(entry, digits_of(described["kind"]))
                lines.append(f"- {pair}, {described['label']}: {shown}")
    return "\n".join(lines)


def facts(results: dict[str, Any]) -> str:
    e, q, speed = results["environment"], results["quantization"], results["speed"]
    evaluation = results["evaluation"]
    disk, memory = (f"{q[f'{w}_before'] / 1e6:.2f} MB -> {q[f'{w}_after'] / 1e6:.2f} MB" for w in ("disk", "resident"))
    times = ", ".join(f"{name} {s['milliseconds']:.0f} ms" for name, s in speed.items())
    return (
        f"{evaluation['prompts']} held-out prompts x {evaluation['seeds']} seeds; reference: "
        f"{evaluation['reference_set']} ({evaluation['reference']} images). Backbone in {q['scheme']}: {disk} on disk, "
        f"{memory} in memory. Per image at batch 1: {times}. Device: {e['device']}, {e['threads']} threads, torch "
        f"{e['torch']}, commit `{e['commit']}`.\n\nCommand: `{e['command']}`"
    )


def q_sched_page(results: dict[str, Any]) -> str:
    searches = "\n".join(
        f"| {name} | {s['identity_value']:.3f} | {s['value']:.3f} | {s['spent']:.0f} | {s['on_boundary']} |"
        for name, s in results["search"].items()
    )
    scales = "\n".join(
        f"| {name} | {_numbers(c['sample_scale'])} | {_numbers(c['output_scale'])} |"
        for name, c in results["coefficients"].items()
    )
    return f"""# Q-Sched (arXiv 2509.01624)

Written by `docs/make_pages.py` from `results/q-sched.json`. How it works: `src/fewstep/jobs/q_sched`.

{facts(results)}

## What each step cost and won

{table(results, ("mmd", "frechet", "recall", "judge", "psnr"))}

Brackets: 95 % bootstrap intervals over prompts, seeds averaged; for "real against real" the range over random splits.

## Paired differences

{differences(results)}

## The search

| pipeline | JAQ untuned | JAQ tuned | candidates spent | on the boundary |
|---|---|---|---|---|
{searches}

| plan | sample scale s | output scale m |
|---|---|---|
{scales}
"""


def variants_page(variants: list[dict[str, Any]]) -> str:
    """The same job at other bit widths and step counts: what was lost, and what the search won back."""
    lines = [
        "| run | distance, full precision | quantized | + Q-Sched | change by Q-Sched "
        "| judge, full precision | quantized | + Q-Sched | diversity, quantized | + Q-Sched |",
        "|---" * 10 + "|",
    ]
    for v in variants:
        e, systems = v["evaluation"], v["evaluation"]["systems"]
        kinds = {d["kind"]: m for m, d in reversed(e["metrics"].items())}  # the first of each kind
        change = e["comparisons"]["quantized + Q-Sched - quantized"][kinds["mmd"]]
        names = ("full precision", "quantized", "quantized + Q-Sched")
        cells = [f"{systems[n][kinds['mmd']]['mean']:.4f}" for n in names] + [value(change, 4)]
        cells += [f"{systems[n][kinds['judge']]['mean']:.3f}" for n in names]
        cells += [f"{systems[n][kinds['diversity']]['mean']:.3f}" for n in names[1:]]
        lines.append(f"| {v['recipe']['scheme']}, {v['recipe']['steps']} steps | " + " | ".join(cells) + " |")
    commands = "\n".join(f"- `{v['environment']['command']}`, commit `{v['environment']['commit']}`" for v in variants)
    return (
        "## Other bit widths and step counts\n\nDistance: RBF-MMD² on the judge's features; the change with "
        "its 95 % interval. An interval that contains 0 shows no difference.\n\n" + "\n".join([*lines, "", commands])
    )


def search_page(results: dict[str, Any]) -> str:
    """What the searchers of one benchmark needed, one line each."""
    grid, noise = results["grid"], results["noise"]
    lines = [
        f"| full grid, {grid['candidates']} candidates | {grid['value']:.4f} | 100 % | {grid['spent']:.0f} |",
    ]
    for name, row in results["searchers"].items():
        values = ", ".join(f"{v:.4f}" for v in row["values"])
        reached = ", ".join("not" if r is None else f"{r:.0f}" for r in row["reached_grid_within_noise_after"])
        gains = [(v - results["identity"]) / (grid["value"] - results["identity"]) for v in row["values"]]
        share = ", ".join(f"{100 * g:.0f} %" for g in gains)
        lines.append(f"| {name} | {values} | {share} | {reached} |")
    e = results["environment"]
    return (
        f"### {results['problem']}\n\nUntuned {results['identity']:.4f}; noise of the objective at the grid's optimum "
        f"(spread over fresh seeds) {noise:.4f}; budget {results['budget']} candidates, seeds {results['seeds']}.\n\n"
        "| searcher | best objective, per seed | share of the grid's gain | candidates until within noise of it |\n"
        "|---|---|---|---|\n"
        + "\n".join(lines)
        + f"\n\n![curves](../images/search-{results['problem']}.svg)\n\n`{e['command']}`, commit `{e['commit']}`, "
        f"{e['device']}, {results['seconds']:.0f} s."
    )


def search_plot(results: dict[str, Any]) -> str:
    """Best objective so far over network calls, as SVG."""
    curves = {}
    for name, row in results["searchers"].items():
        calls = sorted({at for curve in row["curves"] for at, _ in curve})
        best = [[max((v for at, v in c if at <= call), default=float("nan")) for call in calls] for c in row["curves"]]
        curves[name] = (calls, np.array(best))
    reference = ("full grid", results["grid"]["value"])
    return figures.search_curve(curves, reference=reference, xlabel="network calls, in candidates on all items")


def _numbers(values: list[Any]) -> str:
    return ", ".join(f"{v:.4f}" for v in values)


def results() -> tuple[Any, ...] | None:
    """The main run, its variants, and the search benchmarks; None until the main job has run."""
    main = FOLDER / "q-sched.json"
    if not main.exists():
        return None
    others = [read_json(f) for f in sorted(FOLDER.glob("q-sched-*.json"))]
    searches = [read_json(f) for f in sorted(FOLDER.glob("search-*.json"))]
    return read_json(main), others, searches


def page(main: dict[str, Any], others: list[dict[str, Any]], searches: list[dict[str, Any]]) -> str:
    """docs/systems/q-sched.md."""
    costs = "\n\n".join(["## What the searchers cost", *map(search_page, searches)])
    parts = [q_sched_page(main), *([variants_page([main, *others])] if others else []), costs]
    return "\n".join(f"{part}\n" for part in parts)


def images(main: dict[str, Any], others: list[dict[str, Any]], searches: list[dict[str, Any]]) -> dict[str, str]:
    """Search curves."""
    return {f"search-{search['problem']}.svg": search_plot(search) for search in searches}


def readme(main: dict[str, Any], others: list[dict[str, Any]], searches: list[dict[str, Any]]) -> str:
    """The block between the README's markers."""
    return f"{table(main, ('mmd', 'recall', 'judge'))}\n\n{facts(main)}"
