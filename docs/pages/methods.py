"""A page for each paper of distillation: its words, its preset written out, its recipe, and what was measured."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from claim_blocks import block, counted
from paper import Paper
from parts import listed, table

from fewstep.distillation.method import method, options_of, presets
from fewstep.distillation.outline import outline
from fewstep.files import read_json
from fewstep.process import RectifiedFlow

Lines = list[tuple[str, int, "float | None"]]
"""Method, number of steps, distance (None where a seed diverged)."""
BLOCK, RESULTS = "papers", Path(__file__).parent.parent.parent / "results"


def _toy(found: dict[str, Any]) -> Lines:
    return [(r["method"], r["steps"], r["distance"] and r["distance"]["mean"]) for r in found["rows"]]


def _digits(found: dict[str, Any]) -> Lines:
    return [(r["method"], r["steps"], r["summary"] and r["summary"][""]["frechet"]["mean"]) for r in found["rows"]]


def _mnist(found: dict[str, Any]) -> Lines:
    lines = found["summary"]
    metric = next(m for m in lines[0]["metrics"] if m.startswith("frechet:classifier"))
    return [(line["method"], line["steps"], line["metrics"][metric]["mean"]) for line in lines]


BOARDS: dict[str, tuple[str, Callable[[dict[str, Any]], Lines]]] = {
    "distillation-toy.json": ("eight Gaussians in the plane", _toy),
    "distillation-digits.json": ("8x8 digits", _digits),
    "distillation.json": ("`mnist-dit`", _mnist),
}


def papers() -> list[Paper]:
    """Every paper, by name of its page."""
    found = [p for name in ("papers_score", "papers_trajectory") for p in importlib.import_module(name).PAPERS]
    return sorted(found, key=lambda paper: paper.name)


def pages() -> dict[str, str]:
    """Every page by its file name."""
    boards = {name: read_json(RESULTS / name) for name in BOARDS if (RESULTS / name).exists()}
    return {f"{paper.name}.md": page(paper, boards) for paper in papers()}


def readme() -> str:
    """Every paper with its page and what its claims came to."""
    rows = [
        [f"{paper.title} ({paper.arxiv})", f"[{paper.name}](docs/systems/{paper.name}.md)", _verdicts(paper)]
        for paper in papers()
    ]
    return table(["paper", "page", "its claims on 8x8 digits"], rows)


def _verdicts(paper: Paper) -> str:
    files = [RESULTS / f"claim-{name}.json" for name in paper.claims]
    return counted(read_json(file) for file in files if file.exists()) or "on the leaderboards"


def page(paper: Paper, boards: dict[str, Any]) -> str:
    """docs/systems/NAME.md, whole."""
    lead = paper.presets[0]
    return f"""# {paper.title} (arXiv {paper.arxiv})

Written by `docs/make_pages.py`. All methods side by side: [distillation.md](distillation.md).

{paper.idea}

    {_command(paper, lead)}

## Here

{paper.here}

{chr(10).join(f"- `{name}`: {presets()[name]} {_options(name)}" for name in paper.presets)}

`{lead}` written out for a rectified flow; parts that are not named keep their defaults:

```
{outline(method(lead, RectifiedFlow()))}
```

As a recipe (`fewstep run FILE.yaml`; learning rate, momentum and the like are the preset's unless `train` gives them):

```yaml
{_recipe(paper, lead)}
```

## Measured

{"".join(block(RESULTS / f"claim-{name}.json") for name in paper.claims)}{_standing(paper, boards)}

## What was not reproduced

{paper.missing}
"""


def _command(paper: Paper, lead: str) -> str:
    given = "".join(f" --set {option}" for option in paper.options)
    return f"fewstep distill {lead} --model PATH_OR_ID{given}"


def _recipe(paper: Paper, lead: str) -> str:
    known = options_of(lead)
    lines = ["kind: distill", "model: PATH_OR_ID", f"method: {lead}"]
    lines += [f"{name}: {known[name]:g}" for name in ("steps", "guidance") if name in known]
    groups: dict[str, list[str]] = {"train": ["steps: 10000", "batch: 32"]}
    for option in paper.options:
        name, _, value = option.partition("=")
        group, dot, inner = name.partition(".")
        if dot:
            groups.setdefault(group, []).append(f"{inner}: {value}")
        else:
            lines = [line for line in lines if not line.startswith(f"{name}:")] + [f"{name}: {value}"]
    for group, inside in groups.items():
        lines += [f"{group}:", *(f"  {line}" for line in inside)]
    return "\n".join(lines)


def _options(name: str) -> str:
    known = {key: value for key, value in options_of(name).items() if key not in ("steps", "guidance", "channels")}
    return f"Options: {listed(f'`{k}`' for k in known)}." if known else ""


def _standing(paper: Paper, boards: dict[str, Any]) -> str:
    """Where the presets stand on the leaderboards."""
    rows = [
        [f"`{name}`", BOARDS[file][0], steps, value, rank]
        for name in paper.presets
        for file, found in boards.items()
        for steps, value, rank in _places(file, found, name)
    ]
    if not rows:
        return "On no leaderboard yet."
    heads = ["preset", "on", "steps", "distance", "rank"]
    more = "Settings and all rivals: [distillation.md](distillation.md)."
    return f"### On the leaderboards\n\n{table(heads, rows)}\n\n{more}"


def _places(file: str, found: dict[str, Any], name: str) -> Iterator[tuple[int, str, str]]:
    lines = BOARDS[file][1](found)
    for steps, own in sorted((count, value) for own_name, count, value in lines if own_name == name):
        rivals = [value for _, count, value in lines if count == steps]
        if own is None:
            yield steps, "a seed diverged", f"of {len(rivals)}"
        else:
            better = sum(value is not None and value < own for value in rivals)
            yield steps, f"{own:.2f}", f"{1 + better} of {len(rivals)}"
