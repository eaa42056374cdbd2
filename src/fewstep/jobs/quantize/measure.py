"""What quantization did to size, memory, time and pictures, both pipelines in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.files import write_tensors
from fewstep.jobs.context import Items
from fewstep.jobs.low_bit import LowBitPart
from fewstep.jobs.quantize.context import QuantizeContext
from fewstep.pipelines import PipelineSampler
from fewstep.plan import Plan
from fewstep.quant.fidelity import mean_ssim

SHOWN = 6
"""Held-out pictures on the page."""
SEED = 101
"""Of the held-out items."""


def measure(context: QuantizeContext, parts: Mapping[str, LowBitPart], plans: Mapping[str, Plan]) -> dict[str, Any]:
    """Pictures on held-out conditions, bytes, memory and time: before, each part alone, all together.

    Args:
        context: of the job.
        parts: what was quantized.
        plans: what was made for it: `rows`, if rows have bits of their own, then corrections and searches.
    """
    settings = context.recipe.evaluation
    items = context.items("evaluation", settings.conditions, settings.items, SEED)
    models = {name: part.model for name, part in parts.items()}
    full, low = context.sampler(), context.sampler(**models)
    plain = plans.get("rows", context.plan)
    drawn, pictures = _pictures(items, full, context.plan, low, {"": plain, **plans})
    if len(models) > 1:
        alone = {name: context.sampler(**{name: model}) for name, model in models.items()}
        singles = {
            name: _fidelity(drawn["0 before"], _draw(items, made, plain if name == context.backbone else context.plan))
            for name, made in alone.items()
        }
        pictures = singles | pictures
    stacks = {
        name: (255 * images[:SHOWN].clamp(0, 1)).round().byte() for name, images in drawn.items() if images.ndim == 4
    }  # nothing for videos
    write_tensors(context.run.artifact("pictures.safetensors"), stacks)
    one = items.pick([0])
    draws = {"before": lambda: one.draw(full, context.plan), "after": lambda: one.draw(low, plain)}
    with torch.no_grad():
        peaks = {name: growth(draw, torch.device(context.recipe.place)) for name, draw in draws.items()}
    milliseconds = latency(draws, settings.rounds) if settings.rounds else {}
    rows = [row for part in parts.values() for row in part.report["rows"]]
    return {
        "pictures": pictures, "items": settings.items, "peak_growth": peaks, "milliseconds": milliseconds,
        "verdict": speed_sentence(milliseconds, rows),
    }  # fmt: skip


def _pictures(
    items: Items, full: PipelineSampler, plan: Plan, low: PipelineSampler, plans: Mapping[str, Plan]
) -> tuple[dict[str, Tensor], dict[str, dict[str, float]]]:
    """Pictures before and after, by the names that the page shows, and how far each is from full precision."""
    drawn = {"0 before": _draw(items, full, plan)}
    found = {}
    for name, made in plans.items():
        if name == "rows":
            continue  # the plan under "" already
        images = drawn[f"{len(drawn)} after{name and f' + {name}'}"] = _draw(items, low, made)
        found[f"all{name and f' + {name}'}"] = _fidelity(drawn["0 before"], images)
    return drawn, found


def _draw(items: Items, sampler: PipelineSampler, plan: Plan) -> Tensor:
    with torch.no_grad():
        return items.draw(sampler, plan)


def _fidelity(truth: Tensor, found: Tensor) -> dict[str, float]:
    error = float((truth - found).square().mean())
    psnr = -10 * torch.tensor(max(error, 1e-20)).log10()
    return {"psnr": float(psnr), "ssim": mean_ssim(truth, found)}


def latency(draws: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each; see `timings`."""
    return {name: statistics.median(taken) for name, taken in timings(draws, rounds).items()}


def timings(draws: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each in every round, taking turns; a first round only warms up."""
    times: dict[str, list[float]] = {name: [] for name in draws}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, draw in draws.items():
                _wait()
                start = time.perf_counter()
                draw()
                _wait()
                times[name] += [1000 * (time.perf_counter() - start)] if turn else []
    return times


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


def speed_sentence(milliseconds: Mapping[str, float], rows: list[Mapping[str, Any]]) -> str:
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
