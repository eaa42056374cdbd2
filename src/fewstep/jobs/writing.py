"""`fewstep write`: a page with samples side by side and when each of their tokens was revealed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fewstep.report import Block, Column, FactList, Note, Page, Table, TableRow, TokenStrip, save_page
from fewstep.tasks.text import Written


def report(written: Written, more: Written, seeds: Sequence[int], path: Path, model: str) -> Path:
    """Samples of a plan beside those of one with more steps, equal seeds, and the order of reveals.

    Args:
        written: what was asked for.
        more: the same with more steps.
        seeds: of both.
        path: of the page.
        model: its name.
    """
    steps = written.plan.steps
    columns = [Column(f"{steps} steps"), Column(f"{more.plan.steps} steps")]
    rows = [TableRow(f"seed {s}", [a, b]) for s, a, b in zip(seeds, written.texts, more.texts, strict=True)]
    lines = []
    for seed, pieces, revealed in zip(seeds, written.pieces, written.revealed.tolist(), strict=True):
        shades = [(row - 1) / max(1, steps - 1) if row else None for row in revealed]
        lines.append((f"seed {seed}", list(zip(pieces, shades, strict=True))))
    about = "Pale tokens were revealed in the first step, dark ones in the last; underlined ones were given."
    facts = {"model": model, "plan": written.plan.name, "network evaluations": steps, **asdict(written.plan.rows[0])}
    blocks: list[Block] = [
        *(Note(warning, tone="warning") for warning in written.warnings()),
        Table("Samples side by side", columns, rows, corner="", text="The same seeds and the same network."),
        TokenStrip("When each token was revealed", lines, about),
        FactList("Settings", {name: value for name, value in facts.items() if name not in ("time", "next_time")}),
    ]
    summary = f"{len(rows)} texts in {steps} network evaluations each, by {model}."
    return save_page(Page("Text in few steps", summary, blocks), path)
