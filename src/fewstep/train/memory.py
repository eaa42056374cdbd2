"""How much memory a training will take, estimated before it starts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fewstep.train.optimizers import BYTES
from fewstep.train.stage import Stage, StageConfig


def memory_of(stage: Stage, config: StageConfig, base: Mapping[str, nn.Module] | None = None) -> dict[str, float]:
    """Bytes by name: weights, gradients, optimizer moments and averages of each optimizer group, and what is frozen.

    Activations come on top: they grow with the batch and are measured only by running.

    base: further modules that lie in memory (the teacher, a text encoder, an autoencoder).
    """
    sizes: dict[str, float] = {}
    for name, group in stage.all_groups().items():
        modules = list(group.modules.values())
        trained = sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad)
        held = sum(t.nbytes for m in modules for t in m.state_dict().values())
        width = next((p.element_size() for m in modules for p in m.parameters()), 4)
        sizes[f"{name}: weights"] = held
        sizes[f"{name}: gradients"] = trained * width
        sizes[f"{name}: {config.optimizer} moments"] = trained * BYTES[config.optimizer]
        if group.averaged:
            sizes[f"{name}: average"] = held
    for name, module in {**stage.state, **stage.frozen, **(base or {})}.items():
        sizes[f"{name}: frozen"] = sum(t.nbytes for t in module.state_dict().values())
    return sizes


def described(sizes: Mapping[str, float]) -> str:
    """One line: the sum, and the largest parts."""
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:4]
    parts = ", ".join(f"{name} {shown(size)}" for name, size in largest)
    return f"Memory before activations: {shown(sum(sizes.values()))} ({parts})."


def shown(size: float) -> str:
    """Bytes as text."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
