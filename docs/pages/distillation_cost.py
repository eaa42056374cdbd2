"""The page of what distillation costs: the engine beside hand-written loops and plain fine-tuning, and true sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from formats import command, shown, table

from fewstep.files import read_json

RESULTS = ("distillation-cost.json",)
PAGE = "distillation-cost.md"
SPEED, MEMORY = 0.95, 1.25
"""Targets: images per second as a share of a plain loop's, memory as a multiple of plain LoRA fine-tuning's."""
TRUE = Path(__file__).parent.parent.parent / "results" / "distillation-true-size.json"


def page(results: dict[str, Any]) -> str:
    """docs/systems/distillation-cost.md, whole; every number and every verdict comes from the results."""
    e = results["environment"]
    return f"""# What distilling costs

Written by `docs/make_pages.py` from `results/distillation-cost.json`. Loop and processes: `src/fewstep/train`.

## Speed

The loop of `fewstep distill` and a loop written by hand (`benchmarks/plain_loops.py`: the same networks, calls, losses,
optimizers, clipping and averages, nothing that watches), in turns on one thread; images per second of processor time.
Ratio: ours over theirs, 95 % interval over pairs of turns. Target: {SPEED}. "ms": what a step takes more.

{_speed(results["speed"])}

DMD2 draws how many calls its roll-out makes, so two turns differ in their work: that is in the interval. What the
engine does beyond the other loop: times and scales in float64, signals of health, parts that the recipe chooses; how
much each of them takes is not among these results.

## Memory

Peak of resident memory over two updates, less what the imports took, a process per case, on a CPU; adapters of rank
{results["rank"]} on one base in float32. "of plain": as a multiple of plain LoRA fine-tuning of the same network at the
same batch. Target: {MEMORY}.

{_memory(results["memory"])}

{_words(results["memory"])}

## FastGen

{_fastgen(results["fastgen"])}

{_true()}

`{command(e)}`, commit `{e["commit"]}`, {e["device"]}, {e["threads"]} thread(s).
"""


def _speed(rows: list[dict[str, Any]]) -> str:
    heads = ["method", "network", "weights", "batch", "images/s", "by hand", "ratio", "ms", "target"]
    lines = []
    for row in rows:
        ours, theirs, ratio = row["images_per_second"], row["plain_images_per_second"], row["ratio"]
        said = "met" if ratio["low"] >= SPEED else "missed" if ratio["high"] < SPEED else "within the interval"
        more = 1000 * row["batch"] * (1 / ours - 1 / theirs)
        lines.append(
            [row["method"], row["network"], f"{row['parameters']:,}", row["batch"], f"{ours:.0f}", f"{theirs:.0f}",
             shown(ratio, 3), f"{more:.1f}", said]
        )  # fmt: skip
    return table(heads, lines)


def _memory(rows: list[dict[str, Any]]) -> str:
    heads = ["what dominates", "activations", "training", "base, MB", "peak, MB", "of plain", "target"]
    lines = [
        [row["network"], "recomputed" if row["checkpointing"] else "kept", row["case"], f"{row['base'] / 1e6:.0f}",
         f"{row['peak'] / 1e6:.0f}", f"{row['of_plain']:.2f}", _verdict(row)]
        for row in rows
    ]  # fmt: skip
    return table(heads, lines)


def _verdict(row: dict[str, Any]) -> str:
    if row["of_plain"] == 1:
        return ""
    return "met" if row["of_plain"] <= MEMORY else "missed"


def _words(rows: list[dict[str, Any]]) -> str:
    """Who misses, and what of it is known."""
    missed = [row for row in rows if row["of_plain"] > MEMORY]
    if not missed:
        return "All cases meet the target."
    names = ", ".join(sorted({row["case"] for row in missed}))
    return (
        f"Beyond the target: {names}. The losses of an update are added before the one backward pass, so the graphs\n"
        "of the critic's denoising and of the adversary's looks at the critic lie in memory together, and in the\n"
        "student's update those of the roll-out and of the critic. Which makes the peak was not measured."
    )


def _fastgen(found: dict[str, Any]) -> str:
    lacking = f" Absent here: {', '.join(found['lacking'])}." if found.get("lacking") else ""
    return f"Beside NVlabs/FastGen: {'run' if found['run'] else 'not run'} ({found.get('why', '')}).{lacking}"


def _true() -> str:
    if not TRUE.exists():
        return (
            "## True sizes\n\nNot measured yet: `benchmarks/distillation_true_size.py` needs a CUDA device; it is "
            "tried on small networks in the tests."
        )
    found = read_json(TRUE)
    heads = ["network", "method", "student", "batch", "s per step", "GB"]
    lines = [
        [r["model"], r["method"], r["student"], r["batch"], f"{r['seconds_per_step']:.2f}", f"{r['bytes'] / 1e9:.1f}"]
        if "student" in r
        else [r["model"], r["method"], r["why"], "", "", ""]
        for r in found["rows"]
    ]
    e = found["environment"]
    return f"## True sizes\n\n{table(heads, lines)}\n\n`{e['command']}`, commit `{e['commit']}`, {e['device']}."
