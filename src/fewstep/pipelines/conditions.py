"""Prompts, class labels or nothing: what a pipeline is calibrated and measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewstep.data.prompts import load_prompts
from fewstep.errors import FewstepError, nearest
from fewstep.pipelines.calls import class_count, condition_kind
from fewstep.pipelines.protocol import Pipeline


def conditions_of(pipe: Pipeline, source: str | Sequence[Any], count: int | None = None) -> list[Any] | None:
    """`count` conditions, or all there are, of the kind that the pipeline takes; None for an unconditional one.

    source: prompts, labels, or a prompt set by name (see `load_prompts`); class-conditional pipelines take every label
        in turn where a name is given.

    Raises:
        FewstepError: the prompts cannot be read, there are none, or there is no such class.
    """
    kind = condition_kind(pipe)
    if kind == "batch_size":
        return None
    if kind == "class_labels":
        labels = range(class_count(pipe)) if isinstance(source, str) else source
        labels = [class_label(pipe, label) for label in labels]
        if not labels:
            raise FewstepError("the list of class labels is empty", hint="Give at least one label.")
        return _around(labels, count)
    return _around(load_prompts(source if isinstance(source, str) else list(map(str, source)), count), count)


def class_label(pipe: Pipeline, label: int | str) -> int:
    """The number of a class, given as its number or as the name that the pipeline knows it by.

    Raises:
        FewstepError: there is no such class.
    """
    names: dict[str, int] = getattr(pipe, "labels", None) or {}
    if label in names:
        return names[str(label)]
    count = class_count(pipe)
    if isinstance(label, str) and not label.isdecimal():
        hint = nearest(label, names) if names else f"Give a number from 0 to {count - 1}."
        raise FewstepError("the pipeline knows no such class", value=label, hint=hint)
    if not 0 <= int(label) < count:
        raise FewstepError("no such class label", value=label, hint=f"Give a number from 0 to {count - 1}.")
    return int(label)


def _around(values: list[Any], count: int | None) -> list[Any]:
    """So many of the values, from the first again after the last."""
    return values if count is None else [values[i % len(values)] for i in range(count)]
