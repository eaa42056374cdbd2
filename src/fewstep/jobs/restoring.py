"""Files of pictures, restored, and a page that shows what was invented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Backbone, Denoiser
from fewstep.errors import FewstepError
from fewstep.jobs.photo_files import change_files
from fewstep.pipelines import process_of
from fewstep.pipelines.calls import backbone_of, condition_kind
from fewstep.pipelines.protocol import Pipeline
from fewstep.plan import Plan
from fewstep.report import Block, FactList, ImageGrid, Note, Page, save_page
from fewstep.tasks.restoration.photos import Photo, read_photo
from fewstep.tasks.restoration.restore import Restoration, parse_operator, restore_picture

DRAWS, ZOOM = 4, 48
"""Draws whose spread a report shows, and side of its close-up in pixels."""


def pixel_network(pipe: Pipeline) -> tuple[Denoiser, int, int]:
    """The denoiser of an unconditional pipeline of pixels, its channels, and the side of its pictures.

    Raises:
        FewstepError: a pipeline that draws from prompts or labels, or works in latents.
    """
    network = backbone_of(pipe)
    if condition_kind(pipe) != "batch_size" or getattr(pipe, "vae", None) is not None:
        hint = "Use an unconditional pipeline of pixels, such as a DDPMPipeline; operators act on pixels."
        raise FewstepError("this pipeline does not restore pictures", value=type(pipe).__name__, hint=hint)
    process, prediction = process_of(pipe)
    config: Any = network.config
    size = config.sample_size if isinstance(config.sample_size, int) else min(config.sample_size)
    return Denoiser(Backbone(network), process, prediction), int(config.in_channels), int(size)


def restored_photo(
    denoiser: Denoiser, plan: Plan, photo: Photo, how: Restoration, *, channels: int, seed: int, **options: Any
) -> Photo:
    """One draw, with the grey, depth, transparency and description of the photo given."""
    pixels = restore_picture(denoiser, plan, photo.pixels, how, channels=channels, seeds=[seed], **options)[0]
    if len(photo.pixels) == 1 and parse_operator(how.operator)[0] != "grey":
        pixels = pixels.mean(0, keepdim=True)
    alpha = photo.alpha
    if alpha is not None:
        alpha = torch.nn.functional.interpolate(alpha[None], tuple(pixels.shape[-2:]), mode="bilinear")[0]
    return replace(photo, pixels=pixels.clamp(0, 1), alpha=alpha)


def restore_files(
    pipe: Pipeline,
    plan: Plan,
    files: Sequence[Path],
    out: Path,
    how: Restoration,
    *,
    mask: Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Mapping[str, str]:
    """Restore files into the folder `out`, under their own names.

    Returns:
        Why, by the name of each file that failed; the others are written.

    Raises:
        FewstepError: the pipeline or the operator can restore no picture.
    """
    parse_operator(how.operator)
    denoiser, how, options = _opened(pipe, how, mask)

    def change(photo: Photo) -> Photo:
        return restored_photo(denoiser, plan, photo, how, seed=seed, **options)

    return change_files(files, out, change, overwrite=overwrite)


def report(
    pipe: Pipeline,
    plans: Mapping[str, Plan],
    files: Sequence[Path],
    path: Path,
    how: Restoration,
    *,
    truth: Path | None = None,
    mask: Path | None = None,
    seed: int = 0,
) -> Path:
    """A page with the picture given, each plan's result, the spread of draws, and the truth where there is one.

    Args:
        pipe: the pipeline.
        plans: by the caption of their column; the spread is that of the first.
        files: the pictures given; those that cannot be read are left out.
        path: of the page.
        how: the operator and how it is undone.
        truth: a folder with the true pictures under the same names.
        mask: of inpainting.
        seed: of the first draw.
    """
    denoiser, how, options = _opened(pipe, how, mask)
    spread = f"spread of {DRAWS} draws, times 4"
    rows: list[list[Tensor]] = []
    names: list[str] = []
    for file in files:
        try:
            photo = read_photo(file)
            draws = {
                caption: restore_picture(
                    denoiser, plan, photo.pixels, how, seeds=range(seed, seed + (DRAWS if k == 0 else 1)), **options
                )
                for k, (caption, plan) in enumerate(plans.items())
            }
        except FewstepError:
            continue
        first = next(iter(draws.values()))
        line = [_enlarged(photo.pixels, how.factor), *(d[0] for d in draws.values()), 4 * first.std(0)]
        true = None if truth is None or not (truth / file.name).is_file() else read_photo(truth / file.name).pixels
        line += [] if truth is None else [torch.ones_like(first[0]) if true is None else true]
        rows += [[_three(x) for x in line], [_close(_three(x)) for x in line]]
        names += [file.name, "its middle"]
    columns = ["given", *plans, spread, *([] if truth is None else ["truth"])]
    facts = {"operator": how.operator, "noise": how.noise, "model": type(pipe).__name__, "tile": how.tile}
    blocks: list[Block] = [
        ImageGrid("Pictures", rows, names, columns, size=192),
        Note("Where the draws differ, the picture given does not decide: what is seen there was invented."),
        FactList("Settings", {**facts, **{f"evaluations, {c}": p.steps for c, p in plans.items()}}),
    ]
    return save_page(Page("Restored pictures", f"{len(names) // 2} pictures, {how.operator}.", blocks), path)


def _opened(pipe: Pipeline, how: Restoration, mask: Path | None) -> tuple[Denoiser, Restoration, dict[str, Any]]:
    """The denoiser, the restoration with the network's own side as its tile, and further arguments of `restore`."""
    denoiser, channels, size = pixel_network(pipe)
    known = None if mask is None else read_photo(mask).pixels.mean(0).gt(0.5)
    device = next(backbone_of(pipe).parameters()).device
    return denoiser, replace(how, tile=how.tile or size), {"channels": channels, "mask": known, "device": device}


def _enlarged(x: Tensor, factor: int) -> Tensor:
    return x.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def _three(x: Tensor) -> Tensor:
    return x.expand(3, -1, -1).clamp(0, 1).cpu()


def _close(x: Tensor) -> Tensor:
    """The middle, enlarged."""
    side = min(ZOOM, *x.shape[-2:])
    top, left = ((n - side) // 2 for n in x.shape[-2:])
    return _enlarged(x[:, top : top + side, left : left + side], 4)
