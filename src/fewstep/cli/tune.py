"""`fewstep tune`: Q-Sched, a sampler that is adapted to low bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from fewstep.cli import known
from fewstep.cli.fields import RecipeFields
from fewstep.cli.run import add_recipe_command
from fewstep.cli.shell import SMALLER
from fewstep.errors import FewstepError

FIELDS = RecipeFields(
    "q-sched",
    arguments=("model",),
    options=(
        "scheme", "steps", "guidance", "search.prompts", "search.count", "search.seeds", "rewards.alignment",
        "rewards.quality", "search.family", "search.searcher", "search.budget", "search.seed",
    ),
    named={"search.seeds": "blocks"},
    complete={"model": known.models, "scheme": known.schemes, "search.searcher": known.searchers},
)  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    add_recipe_command(
        app, "tune", FIELDS, SMALLER, place,
        "fewstep tune emoji-student --scheme w4a8",
        "fewstep tune runs/quantize-my-pipeline-w4a8/artifacts/pipeline --prompts my-prompts.txt",
        "fewstep tune my-pipeline --scheme w8a8 --alignment none --quality sharpness --set evaluation.judge=none",
    )  # fmt: skip


def place(context: typer.Context, given: dict[str, Any]) -> Path:
    """Adapt the sampler of MODEL to its rounding: two scalars per step, found by search, free at inference (Q-Sched).

    A model in full precision is quantized first, and every system is measured on held-out prompts beside the null
    (`fewstep run q-sched`): report.html, results.json, plan files and artifacts/pipeline. A model that is in low bits
    already, by `fewstep quantize`, is tuned as it is: its plan and artifacts/pipeline, nothing measured.
    """
    if _in_low_bits(given["model"]):
        if _given(context, "scheme") and given["scheme"] != "none":
            hint = "Leave --scheme out: its sampler is tuned to the bits that it has."
            raise FewstepError("this pipeline is in low bits already", value=given["model"], hint=hint)
        given["scheme"] = "none"
    return Path("runs") / f"tune-{Path(given['model']).name}-{given['scheme']}"


def _given(context: Any, name: str) -> bool:
    """Whether somebody wrote the option, rather than left it at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _in_low_bits(model: str) -> bool:
    """Whether the folder of a pipeline says that its network is quantized."""
    from fewstep.files import read_json
    from fewstep.pipelines.places import place_of

    networks = ("unet", "transformer", "transformer_2")
    found = [place_of(model) / name / "config.json" for name in networks]
    return any(file.is_file() and "quantization_config" in read_json(file) for file in found)
