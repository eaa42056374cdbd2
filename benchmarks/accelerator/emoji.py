"""A larger emoji teacher and its students, judged as the shipped ones are."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from premise import measured
from students import FULL, Student, drawn

from accelerator import Part, Setting, given_back
from fewstep.data import load_emoji
from fewstep.data.prompts import load_prompts
from fewstep.files import read_json
from fewstep.jobs import zoo
from fewstep.jobs.context import seeds_for

TEACHER = ("channels=[128,256]", "text_width=256", "batch=128", "steps=20000")
STUDENT = ("batch=128", "steps=4000")
TOY_TEACHER = ("channels=[32,32]", "text_width=32", "text_layers=1", "batch=4", "steps=2", "warmup=1")
TOY_STUDENT = ("batch=4", "steps=2", "warmup=1")
GUIDANCE = (1.5, 8.0)
STEPS = (1, 4)


def parts(setting: Setting) -> dict[str, Part]:
    """The teacher, its students, and their pictures beside those of the shipped student."""
    found: dict[str, Part] = {"teacher": partial(teacher, setting)}
    for guidance in GUIDANCE:
        found[f"student-{guidance:g}"] = partial(student, guidance, setting)
    for name in ("emoji-student", *(f"student-{guidance:g}" for guidance in GUIDANCE)):
        found[f"judged-{name}"] = partial(judged, name, setting)
    return found


def teacher(setting: Setting) -> dict[str, Any]:
    """Train it in the latents of the shipped one."""
    return trained("teacher", "teacher", (*(TOY_TEACHER if setting.toy else TEACHER), "vae=emoji-teacher"), setting)


def student(guidance: float, setting: Setting) -> dict[str, Any]:
    """Distil it by consistency, with this guidance inside."""
    told = (f"guidance={guidance:g}", f"teacher={setting.folder / 'emoji/teacher'}")
    return trained("student", f"student-{guidance:g}", (*(TOY_STUDENT if setting.toy else STUDENT), *told), setting)


def trained(stage: str, name: str, told: tuple[str, ...], setting: Setting) -> dict[str, Any]:
    """Its record; a training that was killed goes on from its last checkpoint."""
    given_back(setting.kind)
    data = (f"data={few(setting.folder / 'few.npz')}",) if setting.toy else ()
    made = zoo.run(stage, [*told, *data, f"device={setting.device}"], setting.folder / "emoji" / name)
    record: dict[str, Any] = read_json(made / "training.json")
    return record


def few(place: Path) -> Path:
    """Some pictures of the training, for the toy."""
    known = load_emoji("train")
    place.parent.mkdir(parents=True, exist_ok=True)
    np.savez(place, images=known.images[:16].permute(0, 2, 3, 1).numpy(), captions=np.array(known.captions[:16]))
    return place


def judged(name: str, setting: Setting) -> dict[str, Any]:
    """Distances to real emoji, judge and diversity on held-out prompts, in one and in four steps."""
    place = setting.folder / "emoji" / name
    given = Student(name if name == "emoji-student" else f"{name}={place}")
    count, seeds = (20, [101, 102]) if setting.toy else (250, [101, 102, 103])
    prompts = load_prompts("emoji:evaluation", count)
    reference = load_emoji("evaluation").images[: 60 if setting.toy else None]
    sampler = given.sampler(FULL)
    sampler.pipe.to(setting.device)
    row = {}
    for steps in STEPS:
        plan = given.plan(steps, sampler)
        images = [drawn(sampler, plan, prompts, seeds_for("evaluation", s, count)).cpu() for s in seeds]
        found = measured({FULL: torch.stack(images)}, prompts, reference)
        row[f"{steps} steps"] = {**found["systems"][FULL], "null": found["null"]}
    return row
