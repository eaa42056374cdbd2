"""`fewstep.load`, `attach` and `save`, and what a trained torch network is kept as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import Backbone, Denoiser, fingerprint
from fewstep.errors import FewstepError
from fewstep.files import check_free, read_json, read_tensors, user_path, write_folder, write_json, write_tensors
from fewstep.pipelines import attach as attach
from fewstep.pipelines import exchanged, load_pipeline, save_pipeline
from fewstep.plan import Identity, Plan
from fewstep.shown import html_table
from fewstep.transition import jump_end

WEIGHTS, PLAN, ABOUT = "network.safetensors", "plan.json", "student.json"


@dataclass(frozen=True, eq=False)
class Student:
    """A few-step torch network with the plan that it is run by.

    Attributes:
        network: the module; takes (x, network time, **condition).
        plan: its steps.
        shape: of one sample.
        jumps: of a network with two times, by network time the time that it is told as `target_time`.
        denoiser: the network with its process and prediction, at process times; None where it was read from a folder.
        history: of the training, a record every twenty updates.
    """

    network: nn.Module
    plan: Plan
    shape: tuple[int, ...]
    jumps: Mapping[float, float] = field(default_factory=dict)
    denoiser: Denoiser | None = None
    history: tuple[Mapping[str, float], ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        return f"Student({type(self.network).__name__}, samples {self.shape})\n{self.plan!r}"

    def _repr_html_(self) -> str:
        """The network's kind and the plan, for notebooks."""
        facts = [["network", type(self.network).__name__], ["samples", str(self.shape)]]
        return html_table(["", ""], facts, "Student") + self.plan._repr_html_()

    def __call__(self, x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        """The network's raw output (B, ...) in one of its steps, at network time () or (B,)."""
        if self.jumps:
            time = time.expand(len(x))
            condition["target_time"] = jump_end(list(self.jumps.items()), time).to(time)
        return self.network(x, time, **condition)


def load(model: str | Path, *, network: nn.Module | None = None, **options: Any) -> Any:
    """Open a pipeline, or a student of an own torch network.

    Args:
        model: a shipped name (`emoji-student`), a diffusers folder, a run directory, or a hub id.
        network: a module of the student's architecture, into which the weights of its folder go.
        options: passed to `DiffusionPipeline.from_pretrained`. `scheme="w4a8"` rounds the network that denoises layer
            by layer while its file is read, so that its full precision is never in memory.

    Returns:
        A diffusers pipeline, whose stored plan is checked against its network; a `Student` with `network`.

    Raises:
        FewstepError: nothing can be opened there, pickled weights, or weights of another architecture.
        IdentityError: the stored plan belongs to another network.
    """
    if network is None:
        if (user_path(model) / ABOUT).is_file():
            hint = "fs.load(folder, network=MyNetwork()) puts its weights into a module of yours."
            raise FewstepError("this folder holds a torch network", value=str(model), hint=hint)
        return load_pipeline(model, **options)
    folder = user_path(model)
    about = read_json(folder / ABOUT)
    try:
        network.load_state_dict(read_tensors(folder / WEIGHTS))
    except RuntimeError as error:
        hint = "Give a module made with the arguments that the student was made with."
        raise FewstepError(
            f"the weights do not fit: {str(error).splitlines()[0]}", value=str(model), hint=hint
        ) from error
    plan = Plan.load(folder / PLAN)
    student = Student(network.eval(), plan, tuple(about["shape"]), dict(about["jumps"]))
    plan.check(identity(student.network))
    return student


def save(target: Any, folder: str | Path, *, plan: Plan | None = None, overwrite: bool = False) -> Path:
    """Write a pipeline as a diffusers folder that plain diffusers opens after `import fewstep`; or a `Student`.

    Args:
        target: a pipeline, which stays as it is, or a student.
        folder: where to; made whole or not at all.
        plan: what the saved pipeline follows; what it follows now unless given.
        overwrite: replace what fewstep wrote there; files of others are never replaced.

    Returns:
        The folder.

    Raises:
        FewstepError: something is there already, or a part cannot be saved.
        IdentityError: the plan belongs to another network.
    """
    if isinstance(target, Student):
        return _save_student(target, plan or target.plan, folder, overwrite)
    if plan is not None:
        target = exchanged(target, {})
        attach(target, plan)
    save_pipeline(target, folder, overwrite)
    return user_path(folder)


def _save_student(student: Student, plan: Plan, folder: str | Path, overwrite: bool) -> Path:
    found = identity(student.network)
    plan.check(found)
    check_free(folder, overwrite)

    def fill(draft: Path) -> None:
        write_tensors(draft / WEIGHTS, {k: v.contiguous() for k, v in student.network.state_dict().items()})
        plan.replace(identity=found).save(draft / PLAN)
        about = {
            "shape": student.shape,
            "jumps": list(student.jumps.items()),
            "network": type(student.network).__name__,
        }
        write_json(draft / ABOUT, about)

    write_folder(user_path(folder), fill, over="ours" if overwrite else "nothing")
    return user_path(folder)


def network_device(network: Any) -> torch.device:
    """Where a network lies; the CPU, if it has no weights."""
    module = network.model if isinstance(network, Backbone) else network
    parameter = next(module.parameters(), None) if isinstance(module, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def identity(network: nn.Module) -> Identity:
    """What a plan for a torch network belongs to."""
    return Identity(model=fingerprint(network))
