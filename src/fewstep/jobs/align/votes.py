"""Votes: pairs of pictures under one prompt, of which one was liked more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import FewstepError
from fewstep.files import user_path

Votes = tuple[list[Any], Tensor, Tensor]
"""Prompts or labels (N), and the pictures that were chosen and rejected, both (N, 3, H, W) uint8."""


def read_votes(file: str, size: int) -> Votes:
    """Read a file of JSON lines `{"prompt": ..., "chosen": FILE, "rejected": FILE}`.

    Args:
        file: the file; those that it names are relative to its folder.
        size: side of the pictures in pixels, to which they are resized.

    Raises:
        FewstepError: no such file, a line that is no vote, or a picture that is missing.
    """
    place = user_path(file)
    if not place.is_file():
        raise FewstepError("there is no such file of votes", value=file, hint="Check its path.")
    prompts, pictures = list[Any](), list[list[Tensor]]()
    for number, line in enumerate(place.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            vote = json.loads(line)
            names = [vote["chosen"], vote["rejected"]]
            prompts.append(vote["prompt"])
        except (ValueError, KeyError, TypeError) as error:
            hint = 'A line is {"prompt": "cat", "chosen": "a.png", "rejected": "b.png"}.'
            raise FewstepError(f"line {number} of the votes is no vote", value=line[:80], hint=hint) from error
        pictures.append([_picture(place.parent / str(name), number, size) for name in names])
    if not prompts:
        raise FewstepError("the file of votes is empty", value=file, hint="Give one vote at least.")
    chosen, rejected = (torch.stack(part) for part in zip(*pictures, strict=True))
    return prompts, chosen, rejected


def _picture(file: Path, line: int, size: int) -> Tensor:
    """(3, size, size) uint8."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(file) as opened:
            picture = opened.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    except OSError as error:
        hint = f"It is named in line {line}; names are relative to the file of votes."
        raise FewstepError("a picture of the votes is missing or broken", value=str(file), hint=hint) from error
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
