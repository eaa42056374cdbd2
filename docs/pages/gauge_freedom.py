"""The page of arXiv 2402.03845, from results/gauge-freedom.json."""

from __future__ import annotations

from typing import Any

RESULTS, PAGE = ("gauge-freedom.json",), "gauge-freedom.md"


def page(results: dict[str, Any]) -> str:
    """docs/systems/gauge-freedom.md, whole; every number and every verdict comes from `results`."""
    e, seeds = results["environment"], results["seeds"]
    return f"""# Gauge freedom and conservativity (arXiv 2402.03845)

Written by `docs/make_pages.py` from `results/gauge-freedom.json`. The measures: `src/fewstep/diagnostics`; for a
pipeline of your own: `fewstep inspect MODEL`.

A score is a gradient; a network's field need not be. The paper says: a remainder r with div(p r) = 0 (a gauge) changes
no distribution, so conservativity is neither necessary nor sufficient for sampling (1, 2); for geometry read from the
field it is wanted (3). The authors' figures come from their own small models, which are not public; what follows are
our own checks of the three statements, exact fields first.

Means over {seeds} seeds, brackets: their range.

## 1. A gauge changes samples, not their distribution

{samples(results["samples"])}

Two-dimensional mixture of three Gaussians, variance exploding from sigma 20 to 0.02, fine flow. "Moved": mean distance
from the samples of the true score with the same noise. {_verdict_samples(results["samples"])}

## 2. What measures see at sigma {results["sigma"]:g}

{fields(results["fields"])}

The gap is E‖Jv − Jᵀv‖² / (2 E‖Jv‖²): 0 symmetric, 1 unrelated to its transpose, 2 antisymmetric. The naive error counts
the gauge; the weak error, from integration by parts, must not. {_verdict_fields(results["fields"])}

## 3. Dimension, from the flow and from the trace

{dimensions(results)}

Margin: slope of the smallest normal singular value minus that of the largest tangent one (1 is ideal). A constant gauge
on exact fields. {_verdict_dimension(results)}

## Trained: free output against the gradient of a scalar

{trained(results["trained"])}

MLPs of {results["width"]} hidden units twice, {results["steps"]} Adam steps, data in R⁵; dimension at 100 points.
Distances alone: {_baselines(results["trained"])}. {_verdict_trained(results["trained"])}

Command: `{e["command"]}`, commit `{e["commit"]}`, {e["device"]}, {e["threads"]} thread(s), {results["seconds"]:.0f} s.
"""


def samples(parts: dict[str, Any]) -> str:
    lines = ["| field | energy distance to data | moved |", "|---|---|---|"]
    for name, row in parts.items():
        lines.append(f"| {_label(name)} | {_shown(row['energy_distance'], 4)} | {_shown(row.get('moved'), 2)} |")
    return "\n".join(lines)


def fields(parts: dict[str, Any]) -> str:
    lines = ["| field | gap | naive error | weak error | its floor |", "|---|---|---|---|---|"]
    for name, row in parts.items():
        cells = [_shown(row["gap"], 2), *(_shown(row[key], 5) for key in ("naive", "weak", "weak_floor"))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def dimensions(results: dict[str, Any]) -> str:
    lines = ["| data in R⁵ | field | slopes | margin | points right | trace at sigma 1, 0.3, 0.1 |", "|---" * 6 + "|"]
    for shape, true in (("plane", 2), ("circle", 1)):
        for name, row in results[shape].items():
            slopes = ", ".join(f"{s['mean']:.2f}" for s in row["slopes"])
            trace = ", ".join(f"{t['mean']:.2f}" for t in row["trace"].values())
            correct = f"{100 * row['correct']['mean']:.0f} %"
            cells = [f"{shape} ({true})", _label(name), slopes, _shown(row["margin"], 2), correct, trace]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def trained(parts: dict[str, Any]) -> str:
    heads = ["gap", "shuffled", "weak error", "loss", "flow: points right", "margin", "trace at 0.1", "points right"]
    lines = ["| data | output | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    digits = {"gap": 4, "shuffled_gap": 2, "weak": 5, "loss": 4}
    for shape, kinds in parts.items():
        for kind in ("free", "gradient"):
            row = kinds[kind]
            cells = [_shown(row[key], places) for key, places in digits.items()]
            cells += [_percent(row["flow_correct"]), _shown(row["flow_margin"], 2)]
            cells += [_shown(row["trace_mean"], 2), _percent(row["trace_correct"])]
            lines.append(f"| {shape} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _baselines(parts: dict[str, Any]) -> str:
    return "; ".join(
        f"{shape}: maximum likelihood {_percent(kinds['distances']['likelihood_correct'])} of points right, local PCA "
        f"{_percent(kinds['distances']['local_pca_correct'])}"
        for shape, kinds in parts.items()
    )


def _verdict_samples(parts: dict[str, Any]) -> str:
    """Statement 1 holds where gauges stay as close to data as other data are, and rotations do not."""
    null = parts["data"]["largest_of_8"]["high"]
    gauges = {n: row["energy_distance"]["mean"] for n, row in parts.items() if n.startswith("gauge")}
    rotations = {n: row["energy_distance"]["mean"] for n, row in parts.items() if n.startswith("rotation")}
    return (
        f"Fresh data sets reach {null:.4f}; on average, {sum(v <= null for v in gauges.values())} of {len(gauges)} "
        f"fields with the true conservative part stay below; {sum(v > null for v in rotations.values())} of "
        f"{len(rotations)} rotations that break the gauge condition lie above."
    )


def _verdict_fields(parts: dict[str, Any]) -> str:
    floor = max(row["weak_floor"]["high"] for row in parts.values())
    seen = [name for name, row in parts.items() if row["weak"]["low"] > floor]
    blind = [name for name in parts if name not in seen]
    return f"Above the sampling floor: {', '.join(seen) or 'none'}; not: {', '.join(blind) or 'none'}."


def _verdict_dimension(results: dict[str, Any]) -> str:
    texts = []
    for shape in ("plane", "circle"):
        plain, strong = results[shape]["gauge 0"], results[shape]["gauge 1"]
        apart = strong["margin"]["high"] < plain["margin"]["low"]
        texts.append(
            f"on the {shape} a gauge of strength 1 {'lowers' if apart else 'does not lower'} the margin beyond the "
            f"seeds' range ({plain['margin']['mean']:.2f} to {strong['margin']['mean']:.2f})"
        )
    return "Statement 3: " + "; ".join(texts) + "."


def _verdict_trained(parts: dict[str, Any]) -> str:
    texts = []
    for shape, kinds in parts.items():
        free, gradient = kinds["free"]["flow_margin"], kinds["gradient"]["flow_margin"]
        if gradient["low"] > free["high"]:
            words = "a gradient output separates tangent from normal better, beyond the seeds' range"
        elif free["low"] > gradient["high"]:
            words = "a free output separates tangent from normal better, beyond the seeds' range"
        else:
            words = "no difference beyond the seeds' range"
        texts.append(f"{shape}: {words}")
    return "Statement 3 on trained networks, by the margin: " + "; ".join(texts) + "."


def _label(name: str) -> str:
    return {"gauge 0": "true score", "data": "data against data"}.get(name, name)


def _percent(entry: dict[str, float]) -> str:
    return f"{100 * entry['mean']:.0f} % ({100 * entry['low']:.0f} to {100 * entry['high']:.0f})"


def _shown(entry: dict[str, float] | None, digits: int) -> str:
    if entry is None:
        return "–"
    return f"{entry['mean']:.{digits}f} ({entry['low']:.{digits}f} to {entry['high']:.{digits}f})"
