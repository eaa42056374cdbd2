"""Trackers of accelerate (TensorBoard, Weights & Biases, MLflow, ...): what the history holds, while it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from fewstep.errors import FewstepError, nearest

PROJECT = "fewstep"


Log = Callable[[Mapping[str, float]], None]
"""Takes the means of some steps, with the step they end at."""


@contextmanager
def tracking(
    accelerator: Accelerator, names: tuple[str, ...], settings: Mapping[str, Any], out: Path | None
) -> Iterator[Log]:
    """Start these trackers, and end them whatever happens; without names nothing is imported or written.

    Args:
        settings: shown by the tracker beside the curves.
        out: where those that write files put them.

    Raises:
        FewstepError: a name that accelerate does not know, or whose package is absent.
    """
    if not names:
        yield lambda numbers: None
        return
    accelerator.log_with = [known_tracker(name) for name in names]
    accelerator.project_configuration.logging_dir = str(out or ".")
    plain = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in settings.items()}
    accelerator.init_trackers(PROJECT, config=plain)

    def log(numbers: Mapping[str, float]) -> None:
        accelerator.log({k: v for k, v in numbers.items() if k != "step"}, step=int(numbers["step"]))

    try:
        yield log
    finally:
        accelerator.end_training()


def known_tracker(name: str) -> str:
    """The name of a tracker, if accelerate knows it and its package is installed.

    Raises:
        FewstepError: one of the two is not so.
    """
    known = [str(one) for one in LOGGER_TYPE_TO_CLASS]
    if name not in known:
        raise FewstepError("unknown tracker", value=name, hint=nearest(name, known))
    if name not in [str(one) for one in get_available_trackers()]:
        raise FewstepError("this tracker's package is not installed", value=name, hint=f"pip install {name}")
    return name
