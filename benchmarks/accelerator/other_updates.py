"""Twenty updates at true size of the methods that `updates` leaves out."""

from __future__ import annotations

from accelerator import Part, Setting, updates
from fewstep.distillation.method import presets


def parts(setting: Setting) -> dict[str, Part]:
    """A part for every method and network."""
    return updates.parts(setting, [name for name in presets() if name not in updates.FIRST])
