"""How much memory a training will take, told before it starts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fewstep.train.optimizers import BYTES
from fewstep.train.stage import Stage, StageConfig


def estimate(stage: Stage, config: StageConfig, base: Mapping[str, nn.Module] | None = None) -> dict[str, float]:
    """Bytes by name: weights, gradients, optimizer moments and averages of every party, and of what stays frozen.

    Activations come on top: they grow with the batch and are measured only by running.

    base: further modules that lie in memory (the teacher, a text encoder, an autoencoder).
    """
    told: dict[str, float] = {}
    for name, party in stage.all_parties().items():
        modules = list(party.modules.values())
        trained = sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad)
        held = sum(t.nbytes for m in modules for t in m.state_dict().values())
        width = next((p.element_size() for m in modules for p in m.parameters()), 4)
        told[f"{name}: weights"] = held
        told[f"{name}: gradients"] = trained * width
        told[f"{name}: {config.optimizer} moments"] = trained * BYTES[config.optimizer]
        if party.averaged:
            told[f"{name}: average"] = held
    for name, module in {**stage.state, **stage.frozen, **(base or {})}.items():
        told[f"{name}: frozen"] = sum(t.nbytes for t in module.state_dict().values())
    return told


def described(told: Mapping[str, float]) -> str:
    """One line: the sum, and the largest parts."""
    largest = sorted(told.items(), key=lambda item: -item[1])[:4]
    parts = ", ".join(f"{name} {shown(size)}" for name, size in largest)
    return f"Memory before activations: {shown(sum(told.values()))} ({parts})."


def shown(size: float) -> str:
    """Bytes as text."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
