"""Parts of a pipeline in low bits, read back from their files: what is measured is what was saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.files import read_json, write_json
from fewstep.jobs.context import JobContext
from fewstep.quant.calls import Call, replay
from fewstep.quant.fidelity import sqnr
from fewstep.quant.outliers import layer_sqnr
from fewstep.runs import Run

_REPORT = "quantization.json"
BROKEN = 6.0
"""Signal over noise of a network's output, in dB, below which half of it is lost."""


@dataclass(frozen=True, eq=False)
class LowBitPart:
    """A quantized part and what is to be told about it, as JSON values."""

    model: nn.Module
    report: dict[str, Any]


def low_bit_part(
    context: JobContext[Any],
    source: nn.Module,
    make: Callable[[], LowBitPart],
    *,
    unit: str,
    artifact: str,
    shared: bool = False,
) -> LowBitPart:
    """Quantize a part of the pipeline in a unit of its own.

    Args:
        context: of the job.
        source: the part in full precision.
        make: quantizes a copy of it.
        unit: name of the unit.
        artifact: the folder that keeps the part.
        shared: see `Run.unit`.

    Returns:
        The part as its folder holds it, on the job's device, with the bytes of its files in its report.

    Raises:
        FewstepError: the part cannot be saved.
    """
    kind: Any = type(source)
    if not hasattr(kind, "save_pretrained"):
        what = f"{artifact.rpartition('/')[2]} cannot be saved"
        raise FewstepError(what, value=kind.__name__, hint="Leave this part out.")

    def save(part: LowBitPart, draft: Path) -> None:
        model: Any = part.model
        model.save_pretrained(draft)
        write_json(draft / _REPORT, part.report)

    def load(folder: Path) -> LowBitPart:
        model = kind.from_pretrained(folder, dtype=getattr(torch, context.recipe.dtype))
        model = model.to(context.recipe.place).eval().requires_grad_(False)
        return LowBitPart(model, {**read_json(folder / _REPORT), "file_bytes": file_bytes(folder)})

    return context.run.unit(unit, make, save=save, load=load, artifact=artifact, shared=shared)


@torch.no_grad()
def output_left(run: Run, name: str, source: nn.Module, low: nn.Module, calls: Sequence[Call]) -> float | None:
    """How much of the float network's output is left of the call that keeps least, in dB; says loudly where it is too
    little, and which layers lose most.

    Args:
        run: where it is said.
        name: of the network.
        source: in float.
        low: in low bits.
        calls: to compare them on; without any nothing is known.
    """
    left = {k: sqnr(replay(source, [call]), replay(low, [call])) for k, call in enumerate(calls)}
    if not left:
        return None
    worst_call = min(left, key=lambda k: left[k])
    if left[worst_call] < BROKEN:
        found = list(layer_sqnr(source, low, [calls[worst_call]]).items())[:5]
        worst = ", ".join(f"{layer} ({db:.0f} dB)" for layer, db in found)
        run.say(
            f"[bold red]The quantized {name} is broken: its output keeps {left[worst_call]:.1f} dB of the original's."
            f"[/bold red] The layers that lose most: {worst}. Give more bits (w8a16, w4a16), or another method "
            "(svdquant:16)."
        )
    return left[worst_call]


def file_bytes(folder: Path) -> int:
    """Bytes of the weight files in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
