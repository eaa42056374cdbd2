"""What to do with what a job left: the next sensible commands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path


def after(kind: str, out: Path) -> list[str]:
    """The commands that may follow a job of this kind, where it left a pipeline.

    Args:
        kind: of its recipe.
        out: its run directory.
    """
    pipeline = out / "artifacts" / "pipeline"
    index = pipeline / "model_index.json"
    if not index.is_file():
        return []
    generate = generating(pipeline)
    if kind == "quantize" and "--prompt" in generate:
        return [f"fewstep tune {shlex.quote(str(pipeline))}", generate]
    if kind in ("align", "schedule", "distill"):
        return [generate, f"fewstep quantize {shlex.quote(str(pipeline))} --scheme w8a8"]
    return [generate]


def after_stage(stage: str, made: Path) -> list[str]:
    """The commands that may follow a stage of `fewstep train`: drawing, or the stage that builds on it."""
    if (made / "model_index.json").is_file():
        return [generating(made)]
    then = {"vae": "teacher", "clip": "judge", "teacher": "student", "encoder": "rae", "rae": "dit"}.get(stage)
    return [f"fewstep train {then}"] if then else []


def generating(pipeline: Path) -> str:
    """The command that draws from a pipeline folder, with the conditions that it takes."""
    index = json.loads((pipeline / "model_index.json").read_text(encoding="utf-8"))
    asked = " --label 0" if "id2label" in index else ' --prompt "cat face"' if "tokenizer" in index else ""
    return f"fewstep generate --model {shlex.quote(str(pipeline))}{asked}"
