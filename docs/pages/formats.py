"""What several pages of benchmarks share: numbers with their interval, tables, and where they came from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from fewstep.files import read_json
from fewstep.metrics.intervals import seed_interval

DOCS = Path(__file__).parent.parent
RESULTS = DOCS.parent / "results"


@cache
def results(name: str) -> Any:
    """What a command wrote to results/NAME.json."""
    return read_json(RESULTS / f"{name}.json")


def has(name: str) -> bool:
    """Whether results/NAME.json was written yet."""
    return (RESULTS / f"{name}.json").exists()


@cache
def words(name: str) -> Any:
    """What docs/NAME.yaml says."""
    return yaml.safe_load((DOCS / f"{name}.yaml").read_text(encoding="utf-8"))


def shown(entry: dict[str, Any], digits: int = 4) -> str:
    """Mean, plus or minus half of the interval over seeds."""
    return f"{entry['mean']:.{digits}f} ± {(entry['high'] - entry['low']) / 2:.{digits}f}"


def interval(entry: dict[str, Any] | None, digits: int = 2) -> str:
    """Mean with the ends of its interval; a dash for none."""
    if entry is None:
        return "–"
    return f"{entry['mean']:.{digits}f} ({entry['low']:.{digits}f} to {entry['high']:.{digits}f})"


def percent(entry: dict[str, float]) -> str:
    """A share with its interval in per cent."""
    return f"{100 * entry['mean']:.0f} % ({100 * entry['low']:.0f} to {100 * entry['high']:.0f})"


def means(entries: Iterable[dict[str, float]], digits: int = 2) -> str:
    """The means of several entries."""
    return ", ".join(f"{entry['mean']:.{digits}f}" for entry in entries)


def numbers(values: Iterable[float], digits: int = 4) -> str:
    """Numbers with so many decimals."""
    return ", ".join(f"{value:.{digits}f}" for value in values)


def all(values: Iterable[object], spec: str) -> str:
    """Values in Python's format, in a sentence."""
    return listed(format(value, spec) for value in values)


def f(value: object, spec: str) -> str:
    """A value in Python's format, for templates."""
    return format(value, spec)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def listed(values: Iterable[object]) -> str:
    """Values in a sentence; `none` for none."""
    words = [str(v) for v in values]
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words) or "none"


def command(environment: dict[str, Any]) -> str:
    """The command of a benchmark as it is typed; older results name the script and its arguments alone."""
    typed: str = environment["command"]
    return typed if typed.startswith(("python ", "fewstep ")) else f"python benchmarks/{typed}"


def commits(entries: Iterable[dict[str, Any]], default: str = "") -> str:
    """The commits that entries were measured at."""
    found = {entry.get("commit", default) for entry in entries} - {""}
    return listed(f"`{commit}`" for commit in sorted(found))


def made_by(results: dict[str, Any]) -> str:
    """Command, commit, device and seconds."""
    e = results["environment"]
    return (
        f"Command: `{command(e)}`, commit `{e['commit']}`, {e['device']}, {e['threads']} thread(s),"
        f"\n{results['seconds']:.0f} s."
    )


def apart(a: dict[str, Any], b: dict[str, Any]) -> int:
    """-1 where a lies below b outside the 95 % interval of the difference, paired by seed; 1 above; 0 neither."""
    difference = torch.tensor(a["values"], dtype=torch.float64) - torch.tensor(b["values"], dtype=torch.float64)
    found = seed_interval(difference)
    return -1 if found.high < 0 else int(found.low > 0)


def than(a: dict[str, Any], b: dict[str, Any], less: str, more: str, alike: str = "not told apart") -> str:
    """The words for `apart`."""
    return {-1: less, 1: more, 0: alike}[apart(a, b)]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Geometric mean of paired errors' ratios with its 95 % interval, and what it says of ours."""
    logs = torch.tensor([math.log(a / b) for a, b in zip(ours, theirs, strict=True)], dtype=torch.float64)
    found = seed_interval(logs)
    said = "better" if found.high < 0 else "worse" if found.low > 0 else "not told apart"
    return f"{math.exp(found.mean):.2f} ({math.exp(found.low):.2f} to {math.exp(found.high):.2f}), {said}"


PAIRED = "Compared by differences paired by seed: outside their 95 % interval, or not told apart."
