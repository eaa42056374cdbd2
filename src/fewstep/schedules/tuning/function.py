"""Any function of a plan as an objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.plan import Plan

PlanFunction = Callable[[Plan], float | Sequence[float] | Tensor]
"""A plan -> its score, or its score on each of n items, shape (n,); higher is better. A tensor keeps its gradient."""


@dataclass(frozen=True)
class FunctionObjective:
    """What a function says of a plan. It is asked for all items at once, whichever are wanted.

    Args:
        function: a plan -> its score, or one per item (n,), always of the same number and on the same items.
        size: n, or 1 for a single score.
        per_item: whether it gives a list.
        known: a plan, and its scores.
    """

    function: PlanFunction
    size: int
    per_item: bool
    known: tuple[Plan, Tensor] = field(repr=False)

    @classmethod
    def of(cls, function: PlanFunction, plan: Plan) -> FunctionObjective:
        """The objective; the function is called once, with `plan`, to see what it gives.

        Raises:
            FewstepError: it gives neither a number nor a list of numbers.
        """
        with torch.no_grad():
            scores = _scores(function(plan))
        return cls(function, max(1, scores.numel()), scores.ndim == 1, (plan, scores))

    def __call__(self, plan: Plan, items: Sequence[int]) -> Tensor:
        """Scores of these items (n,), or the only one ().

        Raises:
            FewstepError: the function gives something else than it gave before.
        """
        before, known = self.known
        scores = known if plan is before and not torch.is_grad_enabled() else _scores(self.function(plan))
        if scores.shape != known.shape:
            what = "the scores of plans differ in number"
            raise FewstepError(what, value=(tuple(known.shape), tuple(scores.shape)), hint="Score the same items.")
        return scores[list(items)] if self.per_item else scores


def _scores(value: Any) -> Tensor:
    """() or (n,) with n > 0; numbers become float64."""
    try:
        scores = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        scores = None
    if scores is None or scores.ndim > 1 or not scores.numel() or scores.is_complex():
        hint = "Return a float, or one float per item, the higher the better."
        raise FewstepError("a function of a plan must give a number, or a list of numbers", value=value, hint=hint)
    return scores
