"""Cells, sentences and drawings of the page of Q-Sched, from results/q-sched*.json and search-*.json."""

from __future__ import annotations

from typing import Any

import numpy as np
from pages.formats import RESULTS, interval, results, table

from fewstep.report import figures

SHORT = {
    "mmd": "RBF-MMD² ↓",
    "frechet": "Fréchet ↓",
    "recall": "recall ↑",
    "judge": "judge ↑",
    "diversity": "diversity ↑",
    "psnr": "PSNR, dB ↑",
}


def others() -> list[Any]:
    """The same job at other bit widths and step counts."""
    return [results(file.stem) for file in sorted(RESULTS.glob("q-sched-w*.json"))]


def searches() -> list[Any]:
    """The benchmarks of searchers."""
    return [results(file.stem) for file in sorted(RESULTS.glob("search-*.json"))]


def quality(found: dict[str, Any]) -> str:
    """Systems by metrics; brackets hold 95 % bootstrap intervals over prompts."""
    evaluation = found["evaluation"]
    chosen = {m: d for m, d in evaluation["metrics"].items() if d["kind"] in SHORT}
    heads = [SHORT[d["kind"]] + (f" ({d['of']})" if d["of"] else "") for d in chosen.values()]
    rows = {**evaluation["systems"], "real against real": evaluation["null"]}
    cells = [
        [name, *(interval(row.get(m), digits(d["kind"])) for m, d in chosen.items())] for name, row in rows.items()
    ]
    return table(["system", *heads], cells)


def digits(kind: str) -> int:
    """Decimals of a metric."""
    return {"mmd": 4, "psnr": 1}.get(kind, 3)


def compared(variant: dict[str, Any]) -> dict[str, Any]:
    """Distance, judge and diversity of the three systems, and what Q-Sched changed of the distance."""
    e, systems = variant["evaluation"], variant["evaluation"]["systems"]
    kinds = {d["kind"]: m for m, d in reversed(e["metrics"].items())}  # the first of each kind
    names = ("full precision", "quantized", "quantized + Q-Sched")
    found: dict[str, Any] = {
        kind: [systems[n][kinds[kind]]["mean"] for n in names] for kind in ("mmd", "judge", "diversity")
    }
    return {**found, "change": e["comparisons"]["quantized + Q-Sched - quantized"][kinds["mmd"]]}


def shares(search: dict[str, Any], row: dict[str, Any]) -> str:
    """Of the full grid's gain that a searcher reached, seed by seed."""
    whole = search["grid"]["value"] - search["identity"]
    return ", ".join(f"{100 * (v - search['identity']) / whole:.0f} %" for v in row["values"])


def images() -> dict[str, str]:
    """Search curves: best objective so far over network calls."""
    return {f"search-{search['problem']}.svg": _curves(search) for search in searches()}


def _curves(search: dict[str, Any]) -> str:
    curves = {}
    for name, row in search["searchers"].items():
        calls = sorted({at for curve in row["curves"] for at, _ in curve})
        best = [[max((v for at, v in c if at <= call), default=float("nan")) for call in calls] for c in row["curves"]]
        curves[name] = (calls, np.array(best))
    reference = ("full grid", search["grid"]["value"])
    return figures.search_curve(curves, reference=reference, xlabel="network calls, in candidates on all items")
