"""`fewstep quantize`: a pipeline in low bits, every layer accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from fewstep.cli import known
from fewstep.cli.fields import RecipeFields
from fewstep.cli.run import add_recipe_command
from fewstep.cli.shell import SMALLER

FIELDS = RecipeFields(
    "quantize",
    arguments=("model",),
    options=(
        "scheme", "budget", "effective_bits", "method", "parts", "calibration.conditions", "calibration.items",
        "steps", "guidance", "q_sched", "corrections", "per_step", "resident",
    ),
    complete={"model": known.models, "scheme": known.schemes, "method": known.rounding_methods},
)  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    add_recipe_command(
        app, "quantize", FIELDS, SMALLER, place,
        "fewstep quantize emoji-student --scheme w4a8",
        "fewstep quantize my-pipeline --effective-bits 4.5 --out runs/four-and-a-half",
        "fewstep quantize my-pipeline --scheme w4a8 --method svdquant --per-step --corrections ptqd,stepbaq",
        "fewstep quantize my-pipeline --budget 2.5GB --parts backbone,text,vae --q-sched 60",
    )  # fmt: skip


def place(context: typer.Context, given: dict[str, Any]) -> Path:
    """Quantize MODEL after training: obey a scheme (w4a8 unless given), or choose bits layer by layer under a budget.

    Prints what every block got; every layer with its bits, kernel, sensitivity and the reason stands in report.html and
    artifacts/layers.csv. Measures size, memory, time and pictures before and after in one process, and says so when the
    result is slower. Leaves artifacts/pipeline, a diffusers folder that loads again in one line. MODEL itself is never
    changed. Bits under a budget are chosen by MixDQ (arXiv 2405.17873).
    """
    if not (given["scheme"] or given["budget"] or given["effective_bits"]):
        given["scheme"] = "w4a8"
    aim = given["scheme"] or given["budget"] or f"{given['effective_bits']:g}bits"
    return Path("runs") / f"quantize-{Path(given['model']).name}-{aim}"
