"""How a verb runs a job on a pipeline that is open already."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import nn

from fewstep import recipes
from fewstep.jobs.context import JobContext
from fewstep.pipelines import backbone_of, identity_of
from fewstep.pipelines.protocol import Pipeline
from fewstep.runs import Run
from fewstep.zoo import SHIPPED, shipped

C = TypeVar("C", bound=JobContext[Any])


@contextmanager
def job(
    kind: str,
    context: Callable[..., C],
    pipe: Pipeline,
    given: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    progress: bool = True,
    fuse: bool = False,
) -> Iterator[C]:
    """The context of a job on this pipeline, inside its run directory.

    Args:
        kind: of the recipe.
        context: `open` of its context's class.
        pipe: the pipeline; it is not changed.
        given: values of the recipe by dotted name.
        settings: further ones, of the caller.
        out: the run directory, which a later call with the same arguments goes on in; none is kept unless given.
        progress: show progress.
        fuse: see `JobContext.open`.

    Raises:
        FewstepError: a value that the recipe refuses, or a run directory of something else.
    """
    recipe: Any = recipes.resolve({"kind": kind}, (), {**description(pipe), **given, **(settings or {})})
    recipe.check()
    with run_about(pipe, recipe.plain(), out, progress) as run:
        yield context(recipe.resolved(), run, pipe=pipe, fuse=fuse)


@contextmanager
def run_about(pipe: Pipeline, recipe: Mapping[str, Any], out: str | Path | None, progress: bool) -> Iterator[Run]:
    """A run directory for work on an open pipeline, whose weights are frozen meanwhile.

    Args:
        pipe: the pipeline.
        recipe: plain values of what is done.
        out: the directory; a temporary one unless given.
        progress: show progress.
    """
    with ExitStack() as stack:
        folder = Path(out) if out else Path(stack.enter_context(TemporaryDirectory(prefix="fewstep-"))) / "run"
        stack.enter_context(frozen(*(part for part in pipe.components.values() if isinstance(part, nn.Module))))
        # the weights are part of what a run is about: another network in the same folder is another run
        about = {**recipe, "network": dataclasses.asdict(identity_of(pipe))}
        yield stack.enter_context(Run(folder, about, quiet=not progress))


def description(pipe: Pipeline) -> dict[str, Any]:
    """What a recipe says of a pipeline that is open: its name, where its network lies and in which type."""
    network = next(backbone_of(pipe).parameters(), torch.zeros(0))
    place = str(getattr(pipe, "name_or_path", "") or type(pipe).__name__)
    named = {str(shipped(name)): name for name in SHIPPED}.get(place, place)
    known = [t for t in (torch.float32, torch.bfloat16, torch.float16) if t == network.dtype] or [torch.float32]
    return {"model": named, "device": str(network.device), "dtype": str(known[0]).removeprefix("torch.")}


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """No weight of the modules takes a gradient inside; afterwards each does as before, and trains as before."""
    flags = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    training = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        for module in modules:
            module.eval()
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for part, flag in training:
            part.training = flag
