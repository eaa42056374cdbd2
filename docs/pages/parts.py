"""What several pages of benchmarks share: numbers with their interval, tables, and where they came from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fewstep.metrics.intervals import seed_interval


def shown(entry: dict[str, Any], digits: int = 4) -> str:
    """Mean, plus or minus half of the interval over seeds."""
    return f"{entry['mean']:.{digits}f} ± {(entry['high'] - entry['low']) / 2:.{digits}f}"


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
    return typed if typed.startswith("python ") else f"python benchmarks/{typed}"


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
