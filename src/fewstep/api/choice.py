"""`fewstep.auto`: everything that needs no training, chosen under budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.api.open_pipelines import job
from fewstep.jobs.auto.context import AutoContext
from fewstep.jobs.auto.job import finish
from fewstep.pipelines.protocol import Pipeline


def auto(
    pipe: Pipeline,
    *,
    memory: str = "",
    latency: str = "",
    prompts: str | Sequence[Any] = "auto",
    steps: int = 4,
    guidance: float = 1.0,
    items: int = 16,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    **call: Any,
) -> Any:
    """Choose steps, solver, times, bits and Q-Sched for a pipeline; the command is `fewstep auto`.

        best = fs.auto(pipe, memory="2GB", latency="200ms", out="runs/auto")     # runs/auto/report.html has the front

    Args:
        pipe: a diffusers pipeline in full precision; it is not changed.
        memory: bytes of all weights, such as `2GB`; no limit unless given.
        latency: time per picture on this device, such as `200ms`; no limit unless given.
        prompts: prompts or class labels that candidates are compared on.
        steps: what the pipeline's own plan is asked for.
        guidance: `guidance_scale` of the calls.
        items: pairs of prompt and seed.
        settings: further settings of the recipe by dotted name, such as `{"space.schemes": ["none", "w4a8"]}`.
        out: a run directory to keep, with the report of the front; a call that was killed goes on there.
        progress: print as it goes.
        call: further arguments of the pipeline's call, such as `height`.

    Returns:
        A new pipeline at the knee of the front within the budgets; it follows its plan.

    Raises:
        FewstepError: nothing meets the budgets (the message has the nearest that can be met), or timings are too noisy
            for a budget of time.
    """
    given = {
        "memory": memory, "latency": latency, "steps": steps, "guidance": guidance, "call": call, "search.items": items,
        "search.conditions": prompts if isinstance(prompts, str) else list(prompts),
    }  # fmt: skip
    with job("auto", AutoContext.open, pipe, given, settings, out=out, progress=progress, fuse=True) as context:
        return finish(context)[0]
