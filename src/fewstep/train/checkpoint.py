"""Checkpoints of safetensors and JSON: whole or absent, so a run killed at any moment resumes from the last one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.files import read_json, read_tensors, write_folder, write_json, write_tensors
from fewstep.ownership import MARKER
from fewstep.runs import processes
from fewstep.train.ema import EMA
from fewstep.train.power_ema import PowerEMA
from fewstep.train.shards import like, load_whole, whole


def save_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    ema: EMA,
    progress: Mapping[str, Any],
    power: PowerEMA | None = None,
) -> None:
    """Write modules, optimizer moments, averages and progress (JSON: step, history, seconds) atomically.

    Of several processes the first one writes; all must call, because what lies in parts is put together. The file is
    the same whether it did or not.
    """
    leads = processes.leads()
    tensors: dict[str, torch.Tensor] = {}

    def keep(name: str, tensor: torch.Tensor) -> None:
        full = whole(tensor)
        if leads:
            tensors.update(_parts(name, full))

    for name, module in modules.items():
        for key, value in module.state_dict().items():
            keep(f"module/{name}/{key}", value.clone())  # tied weights, which safetensors refuses
    for key, value in ema.shadow.items():
        keep(f"ema/{key}", value)
    for key, value in (power.state() if power else {}).items():
        keep(f"power/{key}", value)
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                keep(f"optimizer/{name}/{index}/{key}", torch.as_tensor(value))
    if not leads:
        return

    def fill(draft: Path) -> None:
        write_tensors(draft / "state.safetensors", tensors)
        write_json(draft / "progress.json", {**progress, "ema_updates": ema.updates})

    known = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    write_folder(folder, fill, over="all" if known <= {"state.safetensors", "progress.json", MARKER} else "ours")


class Pace:
    """When a checkpoint is due by time, so that no limit of a queue can cost more than a few minutes of work.

    Args:
        minutes: between two checkpoints. Where writing one is slow they come less often: a twentieth of the time at
            most goes into them.
        clock: in seconds; of several processes the first one's counts.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._least, self._clock = 60 * minutes, clock
        self._wait, self._last = self._least, clock()

    def due(self) -> bool:
        """Whether one should be written now; all processes must ask together."""
        return processes.first_says(self._clock() - self._last >= self._wait)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around the writing of one."""
        began = self._clock()
        yield
        self._last = self._clock()
        self._wait = max(self._least, 20 * (self._last - began))


def load_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    ema: EMA,
    power: PowerEMA | None = None,
) -> dict[str, Any] | None:
    """Restore everything in place and return the progress, or None where there is no checkpoint.

    Raises:
        FewstepError: the checkpoint belongs to another model.
    """
    if not (folder / "progress.json").exists():
        return None
    tensors, progress = read_tensors(folder / "state.safetensors"), read_json(folder / "progress.json")
    try:
        for name, module in modules.items():
            load_whole(module, _under(tensors, f"module/{name}/"))
        ema.load(_under(tensors, "ema/"), progress.pop("ema_updates"))
        if power is not None:
            power.load(_under(tensors, "power/"), progress["step"])
        for name, optimizer in optimizers.items():
            _load_optimizer(optimizer, _under(tensors, f"optimizer/{name}/"))
    except (KeyError, RuntimeError, ValueError) as error:
        raise FewstepError(
            f"the checkpoint {folder} belongs to another model ({error})",
            hint="Choose a new output folder, or the settings that this one was started with.",
        ) from error
    return progress


def _load_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, torch.Tensor]) -> None:
    """Moments by the number of their parameter; 8-bit moments are put together from the tensors inside."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in stored.items():
        index, field, *inner = key.split("/")
        if not inner:
            moment = value if value.ndim == 0 else like(value, parameters[int(index)])
            state.setdefault(int(index), {})[field] = moment
        elif field not in state.setdefault(int(index), {}):
            inside = {k.split("/")[2]: v for k, v in stored.items() if k.startswith(f"{index}/{field}/")}
            state[int(index)][field] = _eight_bit(inside, parameters[int(index)], signed=field == "exp_avg")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _parts(name: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """A plain tensor, or the tensors inside one of torchao's 8-bit moments."""
    if not hasattr(value, "__tensor_flatten__"):
        return {name: value}
    names, _ = value.__tensor_flatten__()
    return {f"{name}/{inner}": getattr(value, inner) for inner in names}


def _eight_bit(inside: Mapping[str, torch.Tensor], parameter: torch.Tensor, signed: bool) -> torch.Tensor:
    from torchao.optim.subclass_8bit import OptimState8bit

    state: torch.Tensor = OptimState8bit.__tensor_unflatten__(dict(inside), [signed, parameter.dtype], None, None)
    return state


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
