"""What a pipeline's network sees and gives along a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.pipelines.generate import PipelineSampler, PlanRunner, Watch
from fewstep.plan import Plan


@dataclass
class Trace:
    """Per row, the state the network saw and its raw output after guidance, each (K, B, ...); and the end (B, ...)."""

    states: Tensor
    outputs: Tensor
    final: Tensor


def trace(
    generate: PipelineSampler,
    plan: Plan,
    conditions: Sequence[Any] | None,
    seeds: Sequence[int],
    along: Trace | None = None,
) -> Trace:
    """States and outputs along a plan; with `along`, the outputs at those states instead of the plan's own.

    Giving the trace of a quantized pipeline to the full-precision one shows the quantization error at every row.
    """
    parts, done = [], 0
    for given, some in generate.batches(conditions, seeds):
        states: list[Tensor] = []
        outputs: list[Tensor] = []
        forced = None if along is None else along.states[:, done : done + len(some)]
        runner = PlanRunner.following(plan, some, latent=True, watch=_noting(states, outputs, forced))
        with torch.no_grad():
            final = generate.run(runner, given, some)
        parts.append((torch.stack(states), torch.stack(outputs), final))
        done += len(some)
    all_states, all_outputs, finals = zip(*parts, strict=True)
    return Trace(torch.cat(all_states, 1), torch.cat(all_outputs, 1), torch.cat(finals))


def _noting(states: list[Tensor], outputs: list[Tensor], forced: Tensor | None) -> Watch:
    """Adds states and outputs to the lists; forces the states (K, B, ...) if given."""

    def note(k: int, state: Tensor, output: Tensor) -> Tensor | None:
        states.append(state.float())
        outputs.append(output.float())
        return None if forced is None or k + 1 >= len(forced) else forced[k + 1]

    return note
