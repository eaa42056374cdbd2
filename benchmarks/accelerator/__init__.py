"""What needs an accelerator, as pieces of a queue (`benchmarks/gpu.yaml`), each of short parts.

A module here is a piece: `parts(setting)` gives its parts by name, functions without arguments that return plain
values. At toy sizes the same functions run on a CPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Part = Callable[[], dict[str, Any]]
LOST = "CUDA error"
"""What is said of a device that has failed: all that this process asks of it afterwards fails too."""


@dataclass(frozen=True)
class Setting:
    """Where and how large.

    Attributes:
        device: cuda or cpu.
        toy: whether networks and pictures are small enough for a test.
        folder: of trainings, which go on from their checkpoints.
        rounds: of a measurement of time.
        cifar: CIFAR-10 as an npz of JPEG bytes, for the piece that needs it.
    """

    device: str
    toy: bool
    folder: Path
    rounds: int = 30
    cifar: Path | None = None

    @property
    def kind(self) -> torch.device:
        """The device as torch names it."""
        return torch.device(self.device)


def given_back(device: torch.device) -> None:
    """Return what earlier parts held, and count the peak of memory from here."""
    gc.collect()
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def unmeasured(error: Exception) -> str:
    """In a line, why a part or one of its competitors gave no number."""
    told = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {told}"[:300]
