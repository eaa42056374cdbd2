"""Time that competing calls take, measured in turns, so that a busy moment hits none of them alone.

On CUDA, events stand around each call and are read after the last round: nothing waits for the device in between.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Call = Callable[[], Any]


def in_turn(calls: Mapping[str, Call], rounds: int, device: str = "cpu", warm_up: int = 3) -> dict[str, list[float]]:
    """Milliseconds of every call in every round; every other round runs backwards, the first ones only warm up."""
    around = _events if device.startswith("cuda") else _seconds
    with torch.no_grad():
        for _ in range(warm_up):
            for call in calls.values():
                call()
        read: dict[str, list[Callable[[], float]]] = {name: [] for name in calls}
        for turn in range(rounds):
            for name in list(calls) if turn % 2 else reversed(list(calls)):
                read[name].append(around(calls[name]))
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return {name: [mark() for mark in marks] for name, marks in read.items()}


def _events(call: Call) -> Callable[[], float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    return lambda: float(start.elapsed_time(end))


def _seconds(call: Call) -> Callable[[], float]:
    start = time.perf_counter()
    call()
    taken = 1e3 * (time.perf_counter() - start)
    return lambda: taken


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def over(times: Mapping[str, Sequence[float]], base: str) -> dict[str, dict[str, float]]:
    """How many times faster than `base` each call was, from the ratios of the rounds."""
    return {
        name: spread([before / after for before, after in zip(times[base], values, strict=True)])
        for name, values in times.items()
        if name != base
    }


def compared(times: Mapping[str, Sequence[float]], bases: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of each, and how many times faster it is than each of the bases that was measured."""
    return {
        "ms": {name: spread(values) for name, values in times.items()},
        **{f"over {base}": over(times, base) for base in bases if base in times},
    }
