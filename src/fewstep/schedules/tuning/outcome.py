"""What a search of few numbers looked at, and what it found."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.shown import html_table


@dataclass(frozen=True)
class CandidateScore:
    """One candidate looked at: its numbers, mean score over the first `items` items, and the cost so far."""

    theta: tuple[float, ...]
    value: float
    items: int
    spent: float


@dataclass(frozen=True)
class SearchOutcome:
    """The best candidate that was scored on all items.

    gain: paired differences to the identity per item (n,), or None for a set-level objective.
    spent: network calls, in units of one candidate on all items.
    """

    theta: tuple[float, ...]
    value: float
    identity_value: float
    spent: float
    on_boundary: bool
    gain: tuple[float, ...] | None
    history: tuple[CandidateScore, ...]

    def __repr__(self) -> str:
        """What was found, a line each."""
        return "\n".join(["SearchOutcome", *(f"  {name}: {value}" for name, value in self._facts())])

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return html_table(["", "found"], self._facts(), "SearchOutcome")

    def _facts(self) -> list[list[str]]:
        numbers = ", ".join(f"{v:.4g}" for v in self.theta[:8]) + (", ..." if len(self.theta) > 8 else "")
        better = [] if self.gain is None else [f"{sum(g > 0 for g in self.gain)} of {len(self.gain)}"]
        return [
            ["value", f"{self.value:.5g} (unchanged plan: {self.identity_value:.5g})"],
            *(["better items", text] for text in better),
            ["spent", f"{self.spent:.4g} on {len(self.history)} looks"],
            ["numbers", f"({numbers}){', on the edge of the box' if self.on_boundary else ''}"],
        ]
