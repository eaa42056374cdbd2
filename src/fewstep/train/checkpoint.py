"""Checkpoints of safetensors and JSON: whole or absent, so a run killed at any moment resumes from the last one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.files import read_json, read_tensors, write_folder, write_json, write_tensors
from fewstep.train.ema import EMA


def save_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    ema: EMA,
    progress: Mapping[str, Any],
) -> None:
    """Write modules, optimizer moments, averages and progress (JSON: step, history, seconds) atomically."""
    tensors: dict[str, torch.Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"module/{name}/{key}": value.clone() for key, value in module.state_dict().items()}
    tensors |= {f"ema/{key}": value for key, value in ema.shadow.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}

    def fill(draft: Path) -> None:
        write_tensors(draft / "state.safetensors", tensors)
        write_json(draft / "progress.json", {**progress, "ema_updates": ema.updates})

    write_folder(folder, fill)


def load_checkpoint(
    folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, ema: EMA
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
            module.load_state_dict(_under(tensors, f"module/{name}/"))
        ema.load(_under(tensors, "ema/"), progress.pop("ema_updates"))
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in _under(tensors, "optimizer/").items():
            index, field = key.split("/")
            state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except (KeyError, RuntimeError, ValueError) as error:
        raise FewstepError(
            f"the checkpoint {folder} belongs to another model ({error})",
            mend="Choose a new output folder, or the settings that this one was started with.",
        ) from error
    return progress


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
