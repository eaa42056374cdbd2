"""Cards of the shipped models: words by hand, every number read from `training.json`, weights and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.files import read_json, write_text

STAGES = {
    "emoji": ("vae", "teacher", "student", "student-guided", "clip", "judge", "quality"),
    "mnist": ("vae", "dit", "features"),
}
"""Stages of each family, by folder; a VAE lies inside the pipeline that comes next."""


def write_card(folder: str | Path) -> None:
    """Write `README.md` into the folder of a family of models (named like the family), from `card.txt` there.

    Raises:
        FewstepError: a stage's record, or the evaluation that the card quotes, is missing or broken.
    """
    folder = Path(folder)
    stages = STAGES[folder.name]
    records = {stage: read_json(_record(folder, stage)) for stage in stages}
    head = "| stage | parameters | steps x batch | minutes | threads, device | precision | final loss |"
    rows = [_row(folder, stage, record) for stage, record in records.items()]
    template = (folder / "card.txt").read_text(encoding="utf-8")
    numbers: dict[str, Any] = {}
    if "student" in records:
        numbers["guidance"] = records["student"]["settings"]["guidance"]
    if (folder / "evaluation.json").exists():
        numbers["evaluation"] = read_json(folder / "evaluation.json")
        numbers["quality"] = _quality(numbers["evaluation"]["samples"])
    minutes = sum(record["seconds"] for record in records.values()) / 60
    table = "\n".join([head, "|---" * 7 + "|", *rows])
    text = template.format(table=table, minutes=minutes, **numbers)
    write_text(folder / "README.md", text, over="all")


def _quality(samples: list[dict[str, Any]]) -> str:
    """One row per guidance and number of steps."""
    rows = [f"| {s['guidance']:g} | {s['steps']} | {s['accuracy']:.4f} | {s['frechet']:.3f} |" for s in samples]
    return "\n".join(["| guidance | DDIM steps | accuracy | Fréchet |", "|---" * 4 + "|", *rows])


def _record(folder: Path, stage: str) -> Path:
    return folder / "vae.json" if stage == "vae" else folder / stage / "training.json"


def _row(folder: Path, stage: str, record: dict[str, Any]) -> str:
    settings = record["settings"]
    where = f"{STAGES[folder.name][1]}/vae" if stage == "vae" else stage
    count = sum(_parameters(file) for file in (folder / where).rglob("*.safetensors"))
    last = record["losses"][-max(1, len(record["losses"]) // 10) :]
    loss = sum(item["loss"] for item in last) / len(last)
    precision = {"auto": "float32" if record["device"] == "cpu" else "bfloat16"}.get(
        settings["precision"], settings["precision"]
    )
    return (
        f"| `{stage}` | {count / 1e6:.2f} M | {record['steps']} x {settings['batch']} | {record['seconds'] / 60:.1f} "
        f"| {record['threads']}, {record['device']} | {precision} | {loss:.4f} |"
    )


def _parameters(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    total = 0
    for shape in shapes:
        size = 1
        for side in shape:
            size *= side
        total += size
    return total
