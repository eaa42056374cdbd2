"""What several pages of benchmarks share: numbers with their interval, tables, and where they came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


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


def made_by(results: dict[str, Any]) -> str:
    """Command, commit, device and seconds."""
    e = results["environment"]
    return (
        f"Command: `python benchmarks/{e['command']}`, commit `{e['commit']}`, {e['device']}, {e['threads']} thread(s),"
        f"\n{results['seconds']:.0f} s."
    )


def apart(a: dict[str, Any], b: dict[str, Any]) -> int:
    """-1 where the interval of a lies below that of b, 1 where above, 0 where they overlap."""
    return -1 if a["high"] < b["low"] else int(a["low"] > b["high"])


def than(
    a: dict[str, Any], b: dict[str, Any], less: str, more: str, alike: str = "no difference beyond the intervals"
) -> str:
    """The words for `apart`."""
    return {-1: less, 1: more, 0: alike}[apart(a, b)]
