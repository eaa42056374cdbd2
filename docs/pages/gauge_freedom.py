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


def verdict_dimension(results: dict[str, Any]) -> str:
    texts = []
    for shape in ("plane", "circle"):
        plain, strong = results[shape]["gauge 0"], results[shape]["gauge 1"]
        apart = strong["margin"]["high"] < plain["margin"]["low"]
        texts.append(
            f"on the {shape} a gauge of strength 1 {'lowers' if apart else 'does not lower'} the margin beyond the "
            f"seeds' range ({plain['margin']['mean']:.2f} to {strong['margin']['mean']:.2f})"
        )
    return "Statement 3: " + "; ".join(texts) + "."


def verdict_trained(parts: dict[str, Any]) -> str:
    texts = []
    for shape, kinds in parts.items():
        free, gradient = kinds["free"]["flow_margin"], kinds["gradient"]["flow_margin"]
        if gradient["low"] > free["high"]:
            words = "a gradient output separates tangent from normal better, beyond the seeds' range"
        elif free["low"] > gradient["high"]:
            words = "a free output separates tangent from normal better, beyond the seeds' range"
        else:
            words = "no difference beyond the seeds' range"
        texts.append(f"{shape}: {words}")
    return "Statement 3 on trained networks, by the margin: " + "; ".join(texts) + "."
