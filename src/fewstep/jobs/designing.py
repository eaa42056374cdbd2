"""`fewstep design`: sequences from a table of scores, or the search on GB1 with its regret."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.sequences import AMINO_ACIDS, ScoredSequences, gb1_landscape, read_scored
from fewstep.errors import FewstepError
from fewstep.files import write_folder, write_text
from fewstep.report import Block, Column, FactList, Figure, Note, Page, Table, TableRow, save_page
from fewstep.report.curves import lines
from fewstep.tasks.design import DesignSettings, Proposals, best_so_far, design, propose

Round = tuple[Proposals, Tensor, int]
"""Proposals, what was measured of them, and the number of the round."""
COLUMNS = ("sequence", "expected", "measured", "nearest", "round")


def gb1_start(count: int, seed: int) -> ScoredSequences:
    """Measured variants of GB1, drawn at random."""
    landscape = gb1_landscape().flatten()
    known = landscape.isfinite().nonzero().squeeze(1)
    rows = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:count]]
    return ScoredSequences(tokens_of_places(rows), landscape[rows], AMINO_ACIDS)


def tokens_of_places(places: Tensor) -> Tensor:
    """Tokens (N, 4) of places (N,) in the flattened landscape."""
    return torch.stack(torch.unravel_index(places, (20,) * 4), 1)


def gb1_measure(tokens: Tensor) -> Tensor:
    """Fitness (n,) of tokens (n, 4); NaN where it was not measured."""
    return gb1_landscape()[tuple(tokens.T)]


def scorer_of(spec: str, alphabet: str) -> Callable[[Tensor], Tensor]:
    """A measurement by the user's own function `FILE.py:NAME`, of a list of sequences.

    Raises:
        FewstepError: no such file or function; at a call, no list of one number each.
    """
    file, colon, name = spec.rpartition(":")
    if not colon or not Path(file).is_file():
        raise FewstepError("no such scorer", value=spec, hint="Write FILE.py:FUNCTION.")
    found = importlib.util.spec_from_file_location("fewstep_scorer", file)
    if found is None or found.loader is None:
        raise FewstepError("a scorer is a file of Python", value=file)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise FewstepError(f"{file} has no function {name}", hint="It takes a list of sequences, and returns scores.")

    def measure(tokens: Tensor) -> Tensor:
        words = ScoredSequences(tokens, torch.zeros(len(tokens)), alphabet).words()
        scores = function(words)
        if not isinstance(scores, Sequence) or len(scores) != len(words):
            raise FewstepError("a scorer must return a list of one number per sequence", value=scores)
        return torch.tensor([float(score) for score in scores], dtype=torch.float32)

    return measure


def run_design(
    data: str,
    way: str,
    out: Path,
    *,
    count: int,
    rounds: int,
    settings: DesignSettings,
    scorer: str = "",
    start: int = 200,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Propose sequences, and measure them where there is a measurement; the folder OUT has a table and a page.

    It is written anew after every round: nothing that was measured is lost if a later one fails.

    Returns:
        `best` before and after, `warnings`, `failed` (measurements that gave NaN).

    Raises:
        FewstepError: data, way or scorer that cannot be used; every measurement of the table is NaN.
    """
    scored = gb1_start(start, settings.seed) if data == "gb1" else read_scored(data)
    measure = gb1_measure if data == "gb1" else scorer_of(scorer, scored.alphabet) if scorer else None
    written: list[Round] = []
    found: dict[str, Any] = {"best": [float(best_so_far(scored.scores)[-1])], "warnings": [], "failed": 0}

    def seen(round: int, made: Proposals, scores: Tensor) -> None:
        written.append((made, scores, round))
        found["warnings"] = list(dict.fromkeys(w for proposals, _, _ in written for w in proposals.warnings(scored)))
        if measure is not None:
            measured = torch.cat([scores for _, scores, _ in written])
            found["failed"] = int((~measured.isfinite()).sum())
            found["best"][1:] = [max(found["best"][0], float(best_so_far(measured)[-1]))]

        def fill(draft: Path) -> None:
            _table(scored, written, draft / "proposals.csv")
            _report(data, way, scored, written, found, settings, draft / "report.html")

        write_folder(out, fill, "ours" if overwrite or round else "nothing")

    if measure is None:
        seen(0, propose(scored, way, count, settings), torch.full((count,), torch.nan))
    else:
        design(scored, measure, way, rounds=rounds, count=count, settings=settings, seen=seen)
    return found


def _table(scored: ScoredSequences, written: list[Round], path: Path) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for made, scores, round in written:
        words = ScoredSequences(made.tokens, scores, scored.alphabet).words()
        for word, expected, score, near in zip(words, made.expected, scores, made.nearest, strict=True):
            table.writerow([word, _plain(expected), _plain(score), int(near), round])
    write_text(path, text.getvalue())


def _plain(value: Tensor) -> str:
    return f"{float(value):.5g}" if bool(value.isfinite()) else ""


def _report(
    data: str,
    way: str,
    scored: ScoredSequences,
    written: list[Round],
    found: dict[str, Any],
    settings: DesignSettings,
    path: Path,
) -> None:
    rows = []
    for made, scores, round in written:
        words = ScoredSequences(made.tokens, scores, scored.alphabet).words()
        values = zip(words, made.expected.tolist(), scores.tolist(), made.nearest.tolist(), strict=True)
        rows += [TableRow(word, [expected, score, near, round]) for word, expected, score, near in values]
    columns = [
        Column("expected", digits=3), Column("measured", digits=3), Column("letters from the nearest", digits=0),
        Column("round", digits=0),
    ]  # fmt: skip
    blocks: list[Block] = [Note(w, tone="warning") for w in found["warnings"]]
    if len(found["best"]) > 1:
        measured = torch.cat([scored.scores, *(scores for _, scores, _ in written)])
        curve, best = best_so_far(measured), float(gb1_landscape().nan_to_num(nan=0).max()) if data == "gb1" else None
        drawn = [(best - b if best else b) for b in curve[len(scored) - 1 :].tolist()]
        name = "regret" if best else "best score"
        blocks.append(
            Figure(
                "What the measurements found",
                lines({way: (range(len(drawn)), drawn)}, xlabel="measurements", ylabel=name),
            )
        )
    blocks.append(Table("Proposals", columns, rows, corner="sequence"))
    facts = {"data": data, "way": way, "scored before": len(scored), "measurements that failed": found["failed"]}
    blocks.append(FactList("Settings", {**facts, **asdict(settings)}))
    count = sum(len(made.tokens) for made, _, _ in written)
    best_said = " then ".join(f"{value:.3g}" for value in found["best"])
    save_page(Page("Designed sequences", f"{count} sequences by {way}; best score {best_said}.", blocks), path)
