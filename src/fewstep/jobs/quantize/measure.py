"""What quantization did to size, memory, time and pictures, both pipelines in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def latency(draws: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, taking turns; the first turn of each only warms up."""
    times: dict[str, list[float]] = {name: [] for name in draws}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, draw in draws.items():
                _wait()
                start = time.perf_counter()
                draw()
                _wait()
                times[name] += [time.perf_counter() - start] if turn else []
    return {name: 1000 * statistics.median(t) for name, t in times.items() if t}


def growth(draw: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes of tensors that live at most beside those that were there before, while `draw` runs; None if unknown."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        draw()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        draw()
    record = getattr(getattr(seen, "profiler", None), "kineto_results", None)  # no public way gives single allocations
    if record is None:
        return None
    now = peak = 0
    for event in sorted((e for e in record.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def verdict(milliseconds: Mapping[str, float], rows: list[Mapping[str, Any]]) -> str:
    """One sentence on speed; if it got slower, why and what else there is."""
    if len(milliseconds) < 2:
        return "Latency was not measured."
    before, after = milliseconds["before"], milliseconds["after"]
    if after <= before:
        return f"{before:.0f} -> {after:.0f} ms per image: {before / after:.2f}x as fast as before."
    kernels: dict[str, int] = {}
    for row in rows:
        if row["quantized"]:
            kernels[row["kernel"]] = kernels.get(row["kernel"], 0) + row["weights"]
    most = max(kernels, key=lambda kernel: kernels[kernel], default="float")
    share = kernels.get(most, 0) / max(sum(kernels.values()), 1)
    return (
        f"{before:.0f} -> {after:.0f} ms per image: {after / before:.2f}x SLOWER than before. {share:.0%} of the "
        f"weights run as '{most}': codes are turned back into floats for every product. What is won is memory. For "
        "speed use --scheme w8a8 where `fewstep doctor` shows an int8 kernel; to halve memory at no loss of time on a "
        "CPU, keep the weights in bfloat16 (diffusers: enable_layerwise_casting)."
    )


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
