"""The model card of the shipped emoji models: words by hand, every number read from `training.json` and the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewstep.files import read_json, write_text

STAGES = ("vae", "teacher", "student", "clip", "judge", "quality")


def write_card(folder: str | Path) -> None:
    """Write `README.md` into the folder of the emoji models, from `card.txt` there.

    Raises:
        FewstepError: a stage's record is missing or broken.
    """
    folder = Path(folder)
    records = {stage: read_json(_record(folder, stage)) for stage in STAGES}
    head = "| stage | parameters | steps x batch | minutes | threads, device | precision | final loss |"
    rows = [_row(folder, stage, record) for stage, record in records.items()]
    template = (folder / "card.txt").read_text(encoding="utf-8")
    guidance = records["student"]["settings"]["guidance"]
    minutes = sum(record["seconds"] for record in records.values()) / 60
    table = "\n".join([head, "|---" * 7 + "|", *rows])
    text = template.format(table=table, guidance=guidance, minutes=minutes)
    write_text(folder / "README.md", text)


def _record(folder: Path, stage: str) -> Path:
    return folder / "vae.json" if stage == "vae" else folder / stage / "training.json"


def _row(folder: Path, stage: str, record: dict[str, Any]) -> str:
    settings = record["settings"]
    where = {"vae": "teacher/vae"}.get(stage, stage)
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
