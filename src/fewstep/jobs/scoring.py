"""Scores of picture files by several rewards, with everything that a score depends on beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.captioned import captioned_files
from fewstep.data.captions import caption_beside, table_column
from fewstep.data.pictures import ENDINGS, read_picture, read_whole
from fewstep.errors import FewstepError
from fewstep.images import as_float
from fewstep.metrics import FeatureNet, distances
from fewstep.metrics.intervals import mean_interval
from fewstep.rewards import Reward
from fewstep.runs import environment

BATCH = 16
SIDE = 299
"""Pixels of the squares that pictures of different sizes are compared in, unless another side is asked for."""


@dataclass(frozen=True)
class Picture:
    """A picture file, what it was drawn from, and its seed where the folder's table says it."""

    file: Path
    prompt: str
    seed: Any = None

    def facts(self) -> dict[str, Any]:
        """Plain values, with the SHA-256 of the file."""
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        return {"file": str(self.file), "sha256": digest, "prompt": self.prompt, "seed": self.seed}


def pictures_of(places: Sequence[Path], prompts: Sequence[str] = ()) -> list[Picture]:
    """Pictures of files and folders in their order; prompts from a folder's table, text files or names unless given.

    Raises:
        FewstepError: nothing there, no picture there, or another number of prompts.
    """
    found: list[Picture] = []
    for place in places:
        if place.is_dir():
            seeds = table_column(place, "seed")
            found += [Picture(file, text, seeds.get(file)) for file, text in captioned_files(place).items()]
        elif place.suffix.lower() in ENDINGS and place.is_file():
            found.append(Picture(place, caption_beside(place)))
        else:
            raise FewstepError("no picture and no folder of pictures", value=str(place), hint="Check the path.")
    if not prompts:
        return found
    if len(prompts) not in (1, len(found)):
        hint = "Give one for all, or one for each in their order."
        raise FewstepError(f"{len(found)} pictures need as many prompts", value=len(prompts), hint=hint)
    told = list(prompts) * (len(found) if len(prompts) == 1 else 1)
    return [Picture(p.file, text, p.seed) for p, text in zip(found, told, strict=True)]


@torch.no_grad()
def scored(pictures: Sequence[Picture], rewards: Mapping[str, Reward]) -> dict[str, Any]:
    """By spec: a number per picture, their mean with its interval over prompts, and the facts of the scorer.

    Raises:
        FewstepError: a file that is no picture, or a scorer that fails.
    """
    values: dict[str, list[Tensor]] = {spec: [] for spec in rewards}
    for images, prompts in _batches(pictures):
        for spec, reward in rewards.items():
            values[spec].append(reward.score(images, prompts).double().cpu())
    return {
        spec: {
            **mean_interval(by_prompt(torch.cat(values[spec]), [p.prompt for p in pictures])).as_dict(),
            "values": torch.cat(values[spec]).tolist(), "scorer": reward.name,
            "facts": dict(getattr(reward, "facts", {})),
        }
        for spec, reward in rewards.items()
    }  # fmt: skip


def by_prompt(values: Tensor, prompts: Sequence[str]) -> Tensor:
    """Means (P,) of values (N,) over the pictures of each different prompt: these are what an interval is over."""
    groups: dict[str, list[float]] = {}
    for value, prompt in zip(values.tolist(), prompts, strict=True):
        groups.setdefault(prompt, []).append(value)
    return torch.tensor([sum(some) / len(some) for some in groups.values()], dtype=torch.float64)


def compared(
    pictures: Sequence[Picture], reference: Sequence[Picture], features: Mapping[str, FeatureNet], side: int = SIDE
) -> dict[str, Any]:
    """By feature network: Frechet and kernel distance to reference pictures, all cropped and resized to squares.

    The statistics of the reference are told by their digest: two numbers are comparable where it is the same.
    """
    found = {}
    for spec, network in features.items():
        ours, theirs = (network(_squares(some, side)) for some in (pictures, reference))
        found[spec] = {
            "frechet": distances.frechet(ours, theirs), "kid": distances.kid(ours, theirs),
            "pictures": len(ours), "reference": len(theirs), "width": theirs.shape[1],
            "reference_sha256": hashlib.sha256(theirs.numpy().tobytes()).hexdigest(),
            "resize": f"centre square, Lanczos to {side} x {side}, 8 bits",
        }  # fmt: skip
    return found


def protocol(pictures: Sequence[Picture]) -> dict[str, Any]:
    """What a number was measured on and with: pictures, prompts, seeds, packages."""
    return {"pictures": [picture.facts() for picture in pictures], "environment": environment()}


def _batches(pictures: Sequence[Picture]) -> list[tuple[Tensor, list[str]]]:
    """Neighbours of equal size together, in [0, 1]."""
    found: list[tuple[list[Tensor], list[str]]] = []
    for picture in pictures:
        image = torch.from_numpy(read_whole(picture.file).copy()).permute(2, 0, 1)
        if not found or len(found[-1][0]) == BATCH or found[-1][0][0].shape != image.shape:
            found.append(([], []))
        found[-1][0].append(image)
        found[-1][1].append(picture.prompt)
    return [(as_float(torch.stack(images)), prompts) for images, prompts in found]


def _squares(pictures: Sequence[Picture], side: int) -> Tensor:
    return torch.stack([torch.from_numpy(read_picture(p.file, side).copy()).permute(2, 0, 1) for p in pictures])
