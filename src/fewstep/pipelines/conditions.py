"""Prompts, class labels or nothing: what a pipeline is calibrated and measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewstep.data.prompts import load_prompts
from fewstep.errors import FewstepError
from fewstep.pipelines.calls import class_count, condition_kind


def conditions_of(pipe: Any, source: str | Sequence[Any], count: int | None = None) -> list[Any] | None:
    """`count` conditions, or all there are, of the kind that the pipeline takes; None for an unconditional one.

    source: prompts, labels, or a prompt set by name (see `load_prompts`); class-conditional pipelines take every label
        in turn where a name is given.

    Raises:
        FewstepError: the prompts cannot be read, or there are none.
    """
    kind = condition_kind(pipe)
    if kind == "batch_size":
        return None
    if kind == "class_labels":
        labels = list(range(class_count(pipe))) if isinstance(source, str) else list(map(int, source))
        if not labels:
            raise FewstepError("the list of class labels is empty", mend="Give at least one label.")
        return _around(labels, count)
    return _around(load_prompts(source if isinstance(source, str) else list(map(str, source)), count), count)


def _around(values: list[Any], count: int | None) -> list[Any]:
    """So many of the values, from the first again after the last."""
    return values if count is None else [values[i % len(values)] for i in range(count)]
