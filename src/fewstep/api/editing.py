"""`fewstep.edit` and `age`: pictures changed by what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from fewstep.api.generation import followed
from fewstep.api.plans import plan_of
from fewstep.pipelines import PipelineSampler
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan
from fewstep.tasks.editing import Edit, aged, edit_picture, first_row, prompt_of


def edit(
    pipe: Pipeline,
    pictures: Tensor | Sequence[Tensor],
    instruction: str,
    *,
    strength: float = 0.75,
    steps: int = 4,
    solver: str = "",
    plan: Plan | None = None,
    guidance: float | None = None,
    seeds: Sequence[int] = (0,),
    mask: Tensor | None = None,
    size: int = 0,
    batch: int = 8,
    **call: Any,
) -> list[Tensor]:
    """Edits of each picture without training, by any plan of any text-to-image pipeline; the command is `fewstep edit`.

        older = fs.edit(pipe, pictures, "make it older", strength=0.5)      # pictures: (B, 3, H, W) in [0, 1]

    The picture is noised to a row of the plan and drawn anew from there (SDEdit, arXiv 2108.01073).

    Args:
        pipe: a text-to-image pipeline with an autoencoder.
        pictures: each (3, H, W), or grey (1, H, W), in [0, 1], of any sizes: they are worked on at the model's size.
        instruction: what the result shows. The shipped emoji models also read instructions: "make the skin tone dark",
            "make it a woman", "make it older", "give it red hair", "add a rocket", "turn it to the right".
        strength: share of the plan's rows that run; 0 gives the picture back.
        steps: of a pipeline that has no plan of its own.
        solver: one of `fewstep.solvers.SOLVERS`; the pipeline's own scheduler unless given.
        plan: any plan for this network, instead of steps and solver.
        guidance: `guidance_scale`; that of the plan unless given, and 1, without, where it says none.
        seeds: of the edits of each picture.
        mask: (H, W), 1 where the pictures may change; all other pixels come back exactly.
        size: side of a square of as many pixels as are worked at, instead of the model's own.
        batch: edits per call.
        call: further arguments of the pipeline's call, such as `negative_prompt`.

    Returns:
        For each picture its edits (len(seeds), 3, H, W).

    Raises:
        FewstepError: a pipeline of another kind; a strength, picture or mask that does not fit; for an emoji model an
            unknown word, or an instruction that names nothing in the picture.
        IdentityError: the plan belongs to another network, quantization or guidance.
    """
    how = Edit(instruction, strength, size)

    def asked(picture: Tensor, used: Plan) -> Edit:
        at_all = first_row(used, strength) is not None
        return replace(how, prompt=prompt_of(pipe, picture, instruction)) if at_all else how

    return _edited(pipe, pictures, asked, (plan, steps, solver, guidance), seeds, mask, batch, call)


def age(
    pipe: Pipeline,
    pictures: Tensor | Sequence[Tensor],
    years: int,
    *,
    now: int | None = None,
    who: str = "person",
    steps: int = 4,
    solver: str = "",
    plan: Plan | None = None,
    guidance: float | None = None,
    seeds: Sequence[int] = (0,),
    mask: Tensor | None = None,
    size: int = 0,
    batch: int = 8,
    **call: Any,
) -> list[Tensor]:
    """People at another age: the further the ages are apart, the noisier the start; the command is `fewstep age`.

        old = fs.age(pipe, pictures, 60)      # pictures: (B, 3, H, W) in [0, 1]

    The first pass of Cradle2Cane (arXiv 2506.20977).

    Args:
        pipe: a text-to-image pipeline with an autoencoder.
        pictures: as in `edit`.
        years: the age that is wanted, 0 to 100.
        now: the age in the pictures; the shipped emoji models read it, and who it is.
        who: of the prompt of other models: woman, man, person.
        steps: of a pipeline that has no plan of its own.
        solver: one of `fewstep.solvers.SOLVERS`; the pipeline's own scheduler unless given.
        plan: any plan for this network, instead of steps and solver.
        guidance: `guidance_scale`, as in `edit`.
        seeds: of the results of each picture.
        mask: (H, W), 1 where the pictures may change.
        size: side of a square of as many pixels as are worked at, instead of the model's own.
        batch: results per call.
        call: further arguments of the pipeline's call.

    Returns:
        For each picture its results (len(seeds), 3, H, W).

    Raises:
        FewstepError: an age out of range or not known, or an emoji that shows nobody whose age can change.
    """

    def asked(picture: Tensor, used: Plan) -> Edit:
        return aged(pipe, picture, years, now=now, who=who, size=size)

    return _edited(pipe, pictures, asked, (plan, steps, solver, guidance), seeds, mask, batch, call)


def _edited(
    pipe: Pipeline,
    pictures: Tensor | Sequence[Tensor],
    asked: Callable[[Tensor, Plan], Edit],
    plan: tuple[Plan | None, int, str, float | None],
    seeds: Sequence[int],
    mask: Tensor | None,
    batch: int,
    call: dict[str, Any],
) -> list[Tensor]:
    """Edits by the plan that is given as (plan, steps, solver, guidance)."""
    given, steps, solver, guidance = plan
    if solver and given is None:
        given = plan_of(pipe, steps, solver=solver)
    used, scale = followed(pipe, given, steps, guidance, call)
    generate = PipelineSampler(pipe, scale, call, batch)
    every = [asked(picture, used) for picture in pictures]  # all are looked at before anything is drawn
    return [
        edit_picture(generate, used, picture, how, seeds=seeds, mask=mask)
        for picture, how in zip(pictures, every, strict=True)
    ]
