"""How far the arms of guided decoupled DMD end from their stationary points."""

from __future__ import annotations

from typing import Any


def said(found: dict[str, Any]) -> str:
    """What the numbers say about the three suspects."""
    arms, wanted = found["arms"], [call["std"] for call in found["fixed_points"][f"{found['settings']['guidance']:g}"]]

    def away(name: str) -> float:
        return max(
            abs(call["std"]["mean"] - w) / w if w else call["std"]["mean"]
            for call, w in zip(arms[name], wanted, strict=True)
        )

    lines = [
        f"- *{name}*: its spread is up to {away(name):.0%} from that of the stationary point."
        for name in arms
        if "no guidance" not in name
    ]
    return "How far each arm ends from the stationary point of its own calls:\n\n" + "\n".join(lines)
