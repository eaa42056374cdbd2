"""Files of pictures, edited, and a page that shows what was kept and what changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.jobs.photo_files import change_files
from fewstep.pipelines import PipelineSampler
from fewstep.pipelines.from_pictures import starts_from_pictures
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan
from fewstep.report import Block, FactList, ImageGrid, Note, Page, save_page
from fewstep.tasks.editing import Edit, edit_picture, first_row, prompt_of
from fewstep.tasks.restoration.photos import Photo, read_photo

ARMS = (0.25, 0.5, 0.75, 1.0)
"""Strengths that a report shows beside the one that was asked for."""

Asked = Callable[[Tensor], Edit]
"""A picture (1 or 3, H, W) on white -> what is to become of it."""


def instructed(pipe: Pipeline, how: Edit) -> Asked:
    """The edit whose prompt is an instruction, for any picture (`prompt_of`)."""

    def asked(picture: Tensor) -> Edit:
        return replace(how, prompt=prompt_of(pipe, picture, how.prompt)) if how.strength else how

    return asked


def edited_photo(
    generate: PipelineSampler, plan: Plan, photo: Photo, asked: Asked, *, seed: int = 0, mask: Tensor | None = None
) -> Photo:
    """One edit of a photo; transparency is that of the photo.

    A transparent picture is edited on white. Its outline stays: what is drawn outside of it is not seen. A grey one
    gets colours, of 8 bits each.
    """
    picture = on_white(photo)
    how = asked(picture)
    if first_row(plan, how.strength) is None:
        return photo
    pixels = edit_picture(generate, plan, picture, how, seeds=[seed], mask=mask)[0]
    alpha = photo.alpha
    if alpha is not None:
        pixels = torch.where(alpha > 0, (pixels - (1 - alpha)) / alpha.clamp(min=1e-3), 1.0).clamp(0, 1)
        if mask is not None:
            pixels = torch.where(mask > 0.5, pixels, photo.pixels.expand(3, -1, -1))
    about = {name: value for name, value in photo.about.items() if len(photo.pixels) == 3 or name != "icc_profile"}
    return replace(photo, pixels=pixels, bits=8, about=about)


def edit_files(
    generate: PipelineSampler,
    plan: Plan,
    files: Sequence[Path],
    out: Path,
    asked: Asked,
    *,
    mask: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Mapping[str, str]:
    """Edit files into the folder `out`, under their own names.

    Returns:
        Why, by the name of each file that failed; the others are written.

    Raises:
        FewstepError: the pipeline or the mask can edit no picture.
    """
    starts_from_pictures(generate.pipe)
    changes = mask_of(mask)

    def change(photo: Photo) -> Photo:
        return edited_photo(generate, plan, photo, asked, seed=seed, mask=changes)

    return change_files(files, out, change, overwrite=overwrite)


def report(
    generate: PipelineSampler,
    plans: Mapping[str, Plan],
    files: Sequence[Path],
    path: Path,
    asked: Asked,
    title: str,
    *,
    truth: Path | None = None,
    mask: Path | None = None,
    seed: int = 0,
) -> Path:
    """A page with each picture, its edits, what changed, and the truth where there is one.

    Args:
        generate: of the pipeline.
        plans: by the caption of their columns: the first also at all strengths of `ARMS` that it has.
        files: the pictures given; those that cannot be read or edited are left out.
        path: of the page.
        asked: what is to become of each picture.
        title: what was asked for, in words.
        truth: a folder with the true results under the same names.
        mask: white where pictures may change.
        seed: of the edits.
    """
    strengths = [s for s in ARMS if int(s * next(iter(plans.values())).steps + 1e-9)]
    changes, rows, names = mask_of(mask), list[list[Tensor]](), list[str]()
    for file in files:
        try:
            picture = on_white(read_photo(file))
            how = asked(picture)
            arms = [(plan, how) for plan in plans.values()]
            arms += [(arms[0][0], replace(how, strength=s)) for s in strengths]
            line = [edit_picture(generate, plan, picture, one, seeds=[seed], mask=changes)[0] for plan, one in arms]
        except FewstepError:
            continue
        changed = (line[0] - picture).abs().mean(0, keepdim=True).expand(3, -1, -1)
        true = None if truth is None or not (truth / file.name).is_file() else on_white(read_photo(truth / file.name))
        ending = [] if truth is None else [torch.ones_like(line[0]) if true is None else true.expand(3, -1, -1)]
        rows.append([x.clamp(0, 1) for x in (picture.expand(3, -1, -1), *line, changed, *ending)])
        names.append(f"{file.name}: {how.prompt}, strength {how.strength:g}")
    columns = ["given", *plans, *(f"strength {s:g}" for s in strengths), "what changed"]
    facts = {"asked for": title, "model": type(generate.pipe).__name__, "seed": seed, "guidance": generate.guidance}
    blocks: list[Block] = [
        ImageGrid("Pictures", rows, names, columns + ([] if truth is None else ["truth"]), size=160),
        Note("Strength is the share of the plan's rows that run: more of them change more, and keep less."),
        FactList("Settings", {**facts, **{f"evaluations at strength 1, {name}": p.steps for name, p in plans.items()}}),
    ]
    return save_page(Page("Edited pictures", f"{len(names)} pictures: {title}.", blocks), path)


def on_white(photo: Photo) -> Tensor:
    """The pixels of a photo (1 or 3, H, W) as they are seen on white."""
    return photo.pixels if photo.alpha is None else photo.alpha * photo.pixels + 1 - photo.alpha


def mask_of(file: Path | None) -> Tensor | None:
    """The mask of a picture file (H, W), 1 where it is white."""
    return None if file is None else on_white(read_photo(file)).mean(0).gt(0.5).float()
