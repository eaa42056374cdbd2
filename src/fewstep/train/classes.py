"""Captioned pictures as classes: every different caption is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fewstep.errors import FewstepError, nearest


def classes_of(captions: Sequence[str], most: int = 1000) -> tuple[list[str], torch.Tensor]:
    """Names of the classes in order, and the class of each picture (N,) int64.

    Raises:
        FewstepError: fewer than two classes or more than `most`: captions rather than names of classes.
    """
    names = sorted(set(captions))
    if not 2 <= len(names) <= most:
        raise FewstepError(
            f"the data has {len(names)} different captions, which are to be 2 to {most} classes",
            hint="Caption each picture with the name of its class alone, or use `fewstep train teacher`.",
        )
    place = {name: index for index, name in enumerate(names)}
    return names, torch.tensor([place[caption] for caption in captions])


def class_numbers(captions: Sequence[str], known: Mapping[str, int]) -> torch.Tensor:
    """Class (N,) int64 of each picture by the names that a class-conditional pipeline knows.

    Raises:
        FewstepError: a caption that is no class of it.
    """
    for caption in captions:
        if caption not in known:
            raise FewstepError("the pipeline has no such class", value=caption, hint=nearest(caption, known))
    return torch.tensor([known[caption] for caption in captions])
