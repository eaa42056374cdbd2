"""Sentences of the page of MixDQ."""

from __future__ import annotations

import statistics
from typing import Any


def random(block: dict[str, Any]) -> str:
    """The line of the random orders of layers."""
    rows = [row for name, row in block["rows"].items() if name.startswith("random")]
    means = [row["psnr"]["mean"] for row in rows]
    return (
        f"| a random order of layers ({len(rows)} draws) | {max(row['bytes'] for row in rows):,} | "
        f"{statistics.mean(means):.2f} ({min(means):.2f} to {max(means):.2f}) | | |"
    )


def verdict(results: dict[str, Any]) -> str:
    """Which claims the tables bear out and which they do not, by their intervals."""
    lines = []
    for other, claim in (("uniform", "mixed precision beats uniform"), ("SQNR only", "two metrics beat SQNR alone")):
        gains = [g for b in results["blocks"] for n, g in b["gains"].items() if n.startswith(other)]
        held = all(g["low"] > 0 for g in gains)
        lines.append(f"- {'Reproduced' if held else 'NOT reproduced'} at small scale (PSNR): {claim} at equal bytes.")
    first = results["first_token"]
    pairs = [(r["psnr"], first[f"{n}, first token apart"]["psnr"]) for n, r in first.items() if ", first" not in n]
    held = all(b["low"] > a["high"] for a, b in pairs)
    lines.append(f"- {'Reproduced' if held else 'NOT reproduced'} at small scale: a first token apart gains clearly.")
    return "\n".join(lines)
