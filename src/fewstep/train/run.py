"""Run one stage from settings to a finished folder."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from fewstep.errors import FewstepError, RecipeError, nearest
from fewstep.files import write_folder, write_json
from fewstep.train.loop import Progress, accelerator_for, fit
from fewstep.train.shards import wanted as sharded
from fewstep.train.stage import StageConfig
from fewstep.written import fitted, read

STAGES = ("vae", "clip", "judge", "teacher", "student", "quality", "dit", "classifier", "oms", "encoder", "rae", "svg")


def run(stage: str, overrides: Sequence[str], out: str | Path) -> Path:
    """Train `stage` with `key=value` overrides and write the result (weights, `training.json`) to `out`.

    A run that was stopped, even by `kill -9`, goes on from its last checkpoint when called again.

    Raises:
        FewstepError: unknown stage or key, a value out of range, or missing data.
    """
    if stage not in STAGES:
        raise FewstepError("unknown training stage", value=stage, mend=nearest(stage, STAGES))
    module = importlib.import_module(f"fewstep.train.stages.{stage}")
    config, out = settings(module.Config, overrides), Path(out)
    accelerator = accelerator_for(config)
    if sharded(config.shard):
        raise FewstepError(
            "the small models of `fewstep train` are not sharded", mend="Leave shard=false and FSDP out of the launch."
        )
    built = module.build(config)
    progress = fit(built, config, out, accelerator)
    if accelerator.is_main_process:
        for part in (*built.modules.values(), *built.frozen.values(), *built.state.values()):
            part.cpu()
        record = _record(stage, overrides, config, progress, str(accelerator.device))

        def fill(draft: Path) -> None:
            built.save(draft)
            write_json(draft / "training.json", record)

        write_folder(out / "result", fill)
        for item in (out / "result").iterdir():  # beside the checkpoint, so that the folder itself is the model
            target = out / item.name
            shutil.rmtree(target) if target.is_dir() else None
            item.replace(target)
        (out / "result").rmdir()
    return out


def settings(kind: type[StageConfig], overrides: Sequence[str]) -> StageConfig:
    """Settings with `key=value` overrides; values as `fewstep.written` reads them.

    Raises:
        RecipeError: an unknown key (with the nearest known one), a value out of range, or no "=".
    """
    values: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise RecipeError("an override needs the form key=value", value=item)
        if key not in kind.model_fields:
            raise RecipeError("unknown training setting", value=key, mend=nearest(key, kind.model_fields))
        values[key] = fitted(read(text), (kind.model_fields[key].annotation,))
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise RecipeError(f"training setting {name}: {first['msg']}", value=first["input"]) from error


def _record(
    stage: str, overrides: Sequence[str], config: StageConfig, progress: Progress, device: str
) -> dict[str, Any]:
    command = " ".join(["fewstep train", stage, *(f"--set {item}" for item in overrides)])
    return {
        "stage": stage,
        "command": command,
        "settings": config.model_dump(mode="json"),
        "seed": config.seed,
        "steps": progress.step,
        "seconds": round(progress.seconds, 1),
        "device": device,
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "commit": _commit(),
        "losses": progress.history[:: max(1, len(progress.history) // 40)] + progress.history[-1:],
    }


def _commit() -> str | None:
    """Commit of the code, where it runs from a git checkout."""
    asked = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or None
