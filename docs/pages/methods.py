"""What the code and the results say of a paper of distillation: its presets, its recipe, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pages.claim_blocks import counted
from pages.formats import listed, results, table

from fewstep.distillation.method import method, options_of, presets
from fewstep.distillation.outline import outline
from fewstep.process import RectifiedFlow

Paper = dict[str, Any]
"""An entry of docs/papers.yaml."""
Lines = list[tuple[str, int, "float | None"]]
"""Method, number of steps, distance (None where a seed diverged)."""


def _toy(found: dict[str, Any]) -> Lines:
    return [(r["method"], r["steps"], r["distance"] and r["distance"]["mean"]) for r in found["rows"]]


def _digits(found: dict[str, Any]) -> Lines:
    return [(r["method"], r["steps"], r["summary"] and r["summary"][""]["frechet"]["mean"]) for r in found["rows"]]


def _mnist(found: dict[str, Any]) -> Lines:
    lines = found["summary"]
    metric = next(m for m in lines[0]["metrics"] if m.startswith("frechet:classifier"))
    return [(line["method"], line["steps"], line["metrics"][metric]["mean"]) for line in lines]


BOARDS: dict[str, tuple[str, Callable[[dict[str, Any]], Lines]]] = {
    "distillation-toy": ("eight Gaussians in the plane", _toy),
    "distillation-digits": ("8x8 digits", _digits),
    "distillation": ("`mnist-dit`", _mnist),
}


def verdicts(paper: Paper) -> str:
    """What its claims came to."""
    return counted(results(f"claim-{name}") for name in paper["claims"]) or "on the leaderboards"


def described(name: str) -> str:
    """A preset and its options."""
    known = {key: value for key, value in options_of(name).items() if key not in ("steps", "guidance", "channels")}
    told = f" Options: {listed(f'`{k}`' for k in known)}." if known else ""
    return f"`{name}`: {presets()[name]}{told}"


def written_out(name: str) -> str:
    """A preset's parts for a rectified flow."""
    return outline(method(name, RectifiedFlow()))


def recipe(paper: Paper) -> str:
    """A recipe of the first preset with the options that its page shows."""
    lead = paper["presets"][0]
    known = options_of(lead)
    lines = ["kind: distill", "model: PATH_OR_ID", f"method: {lead}"]
    lines += [f"{name}: {known[name]:g}" for name in ("steps", "guidance") if name in known]
    groups: dict[str, list[str]] = {"train": ["steps: 10000", "batch: 32"]}
    for option in paper["options"]:
        name, _, value = option.partition("=")
        group, dot, inner = name.partition(".")
        if dot:
            groups.setdefault(group, []).append(f"{inner}: {value}")
        else:
            lines = [line for line in lines if not line.startswith(f"{name}:")] + [f"{name}: {value}"]
    for group, inside in groups.items():
        lines += [f"{group}:", *(f"  {line}" for line in inside)]
    return "\n".join(lines)


def standing(paper: Paper) -> str:
    """Where the presets stand on the leaderboards."""
    boards = {name: results(name) for name in BOARDS}
    rows = [
        [f"`{name}`", BOARDS[file][0], steps, value, rank]
        for name in paper["presets"]
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
