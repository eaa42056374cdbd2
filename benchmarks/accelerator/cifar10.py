"""CIFAR-10: a class-conditional teacher on pixels, and students of one and four steps at equal network passes."""

from __future__ import annotations

import io
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from accelerator import Part, Setting, given_back
from fewstep.errors import FewstepError
from fewstep.files import atomic, read_json
from fewstep.jobs import zoo
from fewstep.jobs.distill.leaderboard import Leaderboard, compete

METHODS, STEPS = ("dmd2", "lcm"), (1, 4)
TEACHER = ("width=384", "layers=12", "heads=6", "patch=2", "batch=256", "steps=50000", "learning_rate=3e-4")
TOY = ("width=32", "layers=1", "heads=2", "patch=4", "batch=4", "steps=2", "warmup=1")
SMALL = (
    "teacher.steps=2", "teacher.solver=ddim", "data.count=6", "evaluation.items=20", "evaluation.reference=40",
    "evaluation.seeds=[7]", "evaluation.pictures=0", "evaluation.features=[pixels]",
)  # fmt: skip


def parts(setting: Setting) -> dict[str, Part]:
    """The teacher, then a student for each method and number of steps."""
    students = {f"{m}-{n}": partial(student, m, n, setting) for m in METHODS for n in STEPS}
    return {"teacher": partial(teacher, setting), **dict(list(students.items())[: 1 if setting.toy else None])}


def teacher(setting: Setting) -> dict[str, Any]:
    """Train it on a velocity of pixels."""
    given_back(setting.kind)
    told = (f"data={pictures(setting)}", "size=32", "vae=pixels", "objective=flow", f"device={setting.device}")
    made = zoo.run("dit", [*told, *(TOY if setting.toy else TEACHER)], setting.folder / "cifar10/teacher")
    record: dict[str, Any] = read_json(made / "training.json")
    return record


def student(method: str, steps: int, setting: Setting) -> dict[str, Any]:
    """Distil it, and measure the student beside the teacher."""
    found(setting)
    given_back(setting.kind)
    size = {"budget": 40, "batch": 2, "overrides": SMALL} if setting.toy else {"budget": 20_000_000, "batch": 128}
    model = str(setting.folder / "cifar10/teacher")
    contest = Leaderboard(model, (method,), (steps,), (0,), guidance=1.5, **size)  # type: ignore[arg-type]
    entry: dict[str, Any] = compete(contest, setting.folder / "cifar10/students", lambda line: None)["entries"][0]
    return entry | ({"why": entry["failed"]} if "failed" in entry else {})


def found(setting: Setting) -> Path:
    """The file of the data.

    Raises:
        FewstepError: none was named, or it is not there.
    """
    if setting.cifar is None or not setting.cifar.exists():
        hint = "Give --cifar FILE, an npz with train_jpeg (bytes), train_offsets, train_labels and class_names."
        raise FewstepError("skipped: there is no CIFAR-10 here", value=str(setting.cifar), hint=hint)
    return setting.cifar


def pictures(setting: Setting) -> Path:
    """The training pictures as an npz of pixels and names of classes, unpacked once."""
    from PIL import Image

    source, place = found(setting), setting.folder / "cifar10/pictures.npz"
    if place.exists():
        return place
    with np.load(source) as given:
        bytes_, offsets, names = given["train_jpeg"], given["train_offsets"], given["class_names"]
        labels = given["train_labels"][: 16 if setting.toy else None]
    parts = [bytes_[start:end].tobytes() for start, end in itertools.pairwise(offsets)][: len(labels)]
    images = np.stack([np.asarray(Image.open(io.BytesIO(part)).convert("RGB")) for part in parts])
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic(place, over="all") as draft, draft.open("wb") as file:
        np.savez(file, images=images, captions=np.array([str(names[label]) for label in labels]))
    return place
