"""The executor beside the loops of diffusers, and with the network recorded as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from clock import compared, in_turn
from distillation_true_size import MODELS
from executor import SCHEDULERS, overhead
from torch import Tensor

from accelerator import Part, Setting, given_back, unmeasured
from accelerator.generation import STEPS, bound, module_of, run_of
from fewstep.executor import Network


def parts(setting: Setting) -> dict[str, Part]:
    """One for every scheduler of diffusers, then graphs on a network that is small enough to wait for the host."""
    names = list(SCHEDULERS)[: 2 if setting.toy else None]
    loops: dict[str, Part] = {name: partial(overhead, name, setting.rounds, setting.device) for name in names}
    kinds = ("pixart",) if setting.toy else ("sd15", "sdxl", "pixart")
    return loops | {f"graph-{kind}": partial(graphs, kind, setting) for kind in kinds}


def graphs(kind: str, setting: Setting) -> dict[str, Any]:
    """A row: the executor around a network as it is and around its graph, in one and in four steps."""
    given_back(setting.kind)
    network = bound(kind, module_of(kind, setting), setting)
    ways: dict[str, Network] = {"eager": network}
    row: dict[str, Any] = {"why": {}}
    try:
        ways["CUDA graph"] = graphed(
            network, torch.zeros(1, *MODELS[kind].shape(setting.toy), device=setting.device), setting.kind
        )
    except RuntimeError as error:  # something in the network cannot be recorded
        row["why"]["CUDA graph"] = unmeasured(error)
    for steps in STEPS:
        run = run_of(kind, steps, setting)
        times = in_turn({name: partial(run, way) for name, way in ways.items()}, setting.rounds, setting.device)
        row[f"{steps} steps"] = compared(times, ("eager",))
    return row


def graphed(network: Network, state: Tensor, device: torch.device) -> Network:
    """The network recorded once and replayed; on a CPU, which has no graphs, the network called with copied inputs."""
    time = torch.zeros((), device=device)
    replay = recorded(network, state, time) if device.type == "cuda" else lambda: network(state, time)

    def call(x: Tensor, t: Tensor) -> Tensor:
        state.copy_(x)
        time.copy_(t)
        return replay().clone()  # later rows may read it, when the next call has overwritten it

    return call


@torch.no_grad()
def recorded(network: Network, state: Tensor, time: Tensor) -> Callable[[], Tensor]:
    """Replays the network on what these tensors hold then (CUDA)."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what is made at a first call must not be recorded
        for _ in range(3):
            network(state, time)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = network(state, time)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
