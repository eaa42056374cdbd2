"""The network of a pipeline as a function of state and time, with the pipeline's own conditions and guidance."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError, Stop
from fewstep.executor import Network
from fewstep.pipelines.generate import Conditions, PipelineSampler, PlanRunner
from fewstep.plan import Plan, Row
from fewstep.prediction import Prediction


def pipeline_network(generate: PipelineSampler, conditions: Sequence[Any] | None, seeds: Sequence[int]) -> Network:
    """(states (B, ...) as the pipeline holds them, network time) -> raw output after guidance, of the shape of states.

    Runs the pipeline up to its first call of `scheduler.step`, so that every family works as it does for users. With
    gradients and forward derivatives in the states. A pipeline that takes no `latents` (DiT, DDPM) spends a second
    evaluation per call: one to be handed the state.

    Args:
        generate: of the pipeline.
        conditions: prompts or class labels, one per seed, or None; fixed, so that B = len(seeds).
        seeds: of the noise that the pipeline draws beside.
    """

    def network(x: Tensor, time: Tensor) -> Tensor:
        if len(x) != len(seeds):
            raise FewstepError("this network is bound to its conditions", value=len(x), hint=f"Give {len(seeds)}.")
        parts, done = [], 0
        for given, some in generate.batches(conditions, seeds):
            parts.append(_asked(generate, x[done : done + len(some)], float(time), given, some))
            done += len(some)
        return torch.cat(parts).to(x.dtype)

    return network


def _asked(generate: PipelineSampler, x: Tensor, time: float, conditions: Conditions, seeds: Sequence[int]) -> Tensor:
    """The output for the states of one call."""
    takes = "latents" in inspect.signature(type(generate.pipe).__call__).parameters
    rows = (_row(0, time),) if takes else (_row(0, time), _row(1, time))

    def watch(k: int, state: Tensor, output: Tensor) -> Tensor:
        if k + 1 < len(rows):  # the pipeline is handed the state for its next row
            return x
        # a learned variance stands behind the prediction
        raise Stop(output[:, : state.shape[1]] if state.ndim > 3 else output)

    if takes:
        generate = generate.changed(call={**generate.call, "latents": x})
    runner = PlanRunner.following(Plan(rows, Prediction(), 1.0, 0.0), seeds, latent=True, watch=watch)
    return generate.run(runner, conditions, seeds)


def _row(k: int, time: float) -> Row:
    return Row(time, time, alpha=1.0, sigma=0.0, state={k: 1.0}, output={})
