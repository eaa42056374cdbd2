"""What the numbers say of the three statements of arXiv 2402.03845."""

from __future__ import annotations

from typing import Any


def verdict_samples(parts: dict[str, Any]) -> str:
    """Statement 1 holds where gauges stay as close to data as other data are, and rotations do not."""
    null = parts["data"]["largest_of_8"]["high"]
    gauges = {n: row["energy_distance"]["mean"] for n, row in parts.items() if n.startswith("gauge")}
    rotations = {n: row["energy_distance"]["mean"] for n, row in parts.items() if n.startswith("rotation")}
    return (
        f"Fresh data sets reach {null:.4f}; on average, {sum(v <= null for v in gauges.values())} of {len(gauges)} "
        f"fields with the true conservative part stay below; {sum(v > null for v in rotations.values())} of "
        f"{len(rotations)} rotations that break the gauge condition lie above."
    )


def verdict_fields(parts: dict[str, Any]) -> str:
    floor = max(row["weak_floor"]["high"] for row in parts.values())
    seen = [name for name, row in parts.items() if row["weak"]["low"] > floor]
    blind = [name for name in parts if name not in seen]
    return f"Above the sampling floor: {', '.join(seen) or 'none'}; not: {', '.join(blind) or 'none'}."
