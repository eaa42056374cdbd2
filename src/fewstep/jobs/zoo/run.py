"""Run one stage from settings to a finished folder."""

from __future__ import annotations

import importlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ValidationError

from fewstep.errors import FewstepError, nearest
from fewstep.files import make_folders, read_json, user_path, write_folder, write_json
from fewstep.ownership import MARKER, check_over, read_marker, write_marker
from fewstep.train.loop import TrainingProgress, accelerator_for, fit
from fewstep.train.shards import wanted as sharded
from fewstep.train.stage import StageConfig
from fewstep.written import fitted, read_value

RECORD, RESULT, KIND = "training.json", "result", "training"
STAGES = (
    "vae", "clip", "judge", "teacher", "student", "quality", "dit", "classifier", "oms", "encoder", "rae", "svg",
    "text", "video",
)  # fmt: skip


def run(stage: str, overrides: Sequence[str], out: str | Path) -> Path:
    """Train `stage` with `key=value` overrides and write the result (weights, `training.json`) to `out`.

    A run that was stopped, even by `kill -9`, goes on from its last checkpoint when called again.

    Raises:
        FewstepError: unknown stage or key, a value out of range, or missing data.
    """
    if stage not in STAGES:
        raise FewstepError("unknown training stage", value=stage, hint=nearest(stage, STAGES))
    module = importlib.import_module(f"fewstep.jobs.zoo.{stage}")
    config, out = settings(config_of(stage), overrides), user_path(out)
    accelerator = accelerator_for(config)
    if sharded(config.shard):
        raise FewstepError(
            "the small models of `fewstep train` are not sharded", hint="Leave shard=false and FSDP out of the launch."
        )
    older = _check_place(out)
    built = module.build(config)
    if accelerator.is_main_process:
        _begin(out)
    progress = fit(built, config, out, accelerator)
    if accelerator.is_main_process:
        for part in (*built.modules.values(), *built.frozen.values(), *built.state.values()):
            part.cpu()
        record = _record(stage, overrides, config, progress, str(accelerator.device))

        def fill(draft: Path) -> None:
            built.save(draft)
            write_json(draft / RECORD, record)

        write_folder(out / RESULT, fill)
        _move_up(out, older)
    return out


def _check_place(out: Path) -> bool:
    """Whether an older version, which left no marker, trained here.

    Raises:
        FewstepError: the folder holds what is no training.
    """
    if read_marker(out).get("kind") == KIND or not out.exists():
        return False
    for name, key in ((RECORD, "stage"), ("checkpoint/progress.json", "ema_updates")):
        found = read_json(out / name) if (out / name).is_file() else None
        if isinstance(found, dict) and key in found:
            return True
    strangers = sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) if out.is_dir() else [out.name]
    if strangers:
        raise FewstepError(
            f"{out} holds files that are no training of fewstep", value=strangers[:5], hint="Choose a new folder."
        )
    return False


def _begin(out: Path) -> None:
    """Mark the folder as a training's."""
    make_folders(out)
    if read_marker(out).get("kind") != KIND:
        write_marker(out, {"kind": KIND, "files": {}})


def _move_up(out: Path, older: bool) -> None:
    """Put the result beside the checkpoint, so that the folder itself is the model, in place of an earlier result."""
    made = out / RESULT
    for item in made.iterdir():
        if item.name != MARKER:
            check_over(out / item.name, "all" if older else "ours")
    files = {**read_marker(made)["files"], RECORD: None}  # a record may have another length when this was cut short
    write_marker(out, {"kind": KIND, "files": files})
    for item in made.iterdir():
        target = out / item.name
        if item.name == MARKER:
            continue
        shutil.rmtree(target) if target.is_dir() else None
        item.replace(target)
    shutil.rmtree(made)


def config_of(stage: str) -> type[StageConfig]:
    """The class of a stage's settings: what its `build` takes."""
    build = importlib.import_module(f"fewstep.jobs.zoo.{stage}").build
    found: type[StageConfig] = get_type_hints(build)["config"]
    return found


def settings(kind: type[StageConfig], overrides: Sequence[str]) -> StageConfig:
    """Settings with `key=value` overrides; values as `fewstep.written` reads them.

    Raises:
        FewstepError: an unknown key (with the nearest known one), a value out of range, or no "=".
    """
    values: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise FewstepError("an override needs the form key=value", value=item)
        if key not in kind.model_fields:
            raise FewstepError("unknown training setting", value=key, hint=nearest(key, kind.model_fields))
        values[key] = fitted(read_value(text), (kind.model_fields[key].annotation,))
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise FewstepError(f"training setting {name}: {first['msg']}", value=first["input"]) from error


def _record(
    stage: str, overrides: Sequence[str], config: StageConfig, progress: TrainingProgress, device: str
) -> dict[str, Any]:
    command = shlex.join(["fewstep", "train", stage, *(word for item in overrides for word in ("--set", item))])
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
