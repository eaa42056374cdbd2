"""Ageing in two passes: a start by need, and embeddings that keep who it is (Cradle2Cane, arXiv 2506.20977)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.data.emoji import emoji_prompts
from fewstep.data.instructions import aged_caption
from fewstep.errors import FewstepError, nearest
from fewstep.pipelines.protocol import Pipeline
from fewstep.tasks.editing.edit import Edit
from fewstep.tasks.editing.reading import caption_of, draws_emoji

OLDEST = 100
PROMPT = "a face image of a {years} years old {who}"
"""Of pass 1 (as the published code has it)."""


def strength_by_need(now: float, wanted: float, thresholds: tuple[float, float] = (5, 20)) -> float:
    """Adaptive noise injection (AdaNI): the further the ages are apart, the noisier the start.

    0.25 up to the first threshold, 0.5 up to the second, 0.75 beyond: the last one, two or three of four rows.

    Args:
        now: age in the picture.
        wanted: age of the result.
        thresholds: years; 5 and 20 as told of the paper, 5 and 30 in its published configuration.

    Raises:
        FewstepError: thresholds that fall.
    """
    first, second = thresholds
    if not 0 <= first <= second:
        raise FewstepError("the thresholds are two rising numbers of years", value=thresholds, hint="(5, 20).")
    apart = abs(wanted - now)
    return 0.25 if apart <= first else 0.5 if apart <= second else 0.75


def aged(
    pipe: Pipeline,
    picture: Tensor,
    years: int,
    *,
    now: int | None = None,
    who: str = "person",
    size: int = 0,
    thresholds: tuple[float, float] = (5, 20),
) -> Edit:
    """Pass 1: the prompt of that age, and the strength that the way there needs.

    Args:
        pipe: a text-to-image pipeline.
        picture: (3, H, W) or grey, in [0, 1], on white. A shipped emoji model reads who it shows, and their age.
        years: the age that is wanted.
        now: the age in the picture; another model must be told.
        who: of the prompt of another model.
        size: as in `Edit`.
        thresholds: of `strength_by_need`.

    Raises:
        FewstepError: an age out of range, or not known; an emoji that shows nobody whose age can change.
    """
    check_age(years)
    if not draws_emoji(pipe):
        if now is None:
            raise FewstepError("the age in the picture is not known", hint="Give it: now=30.")
        return Edit(PROMPT.format(years=years, who=who), strength_by_need(now, years, thresholds), size)
    caption = caption_of(picture)
    found = aged_caption(caption, years, set(emoji_prompts("all")))
    if found is None:
        hint = "The ages of emoji are those of a baby, a child, a grown and an old person who do nothing else."
        raise FewstepError("nobody here whose age can change", value=caption, hint=hint)
    return Edit(found[1], strength_by_need(found[0] if now is None else now, years, thresholds), size)


def check_age(years: float) -> None:
    """Refuse ages outside of 0 to 100 years.

    Raises:
        FewstepError: it is.
    """
    if not 0 <= years <= OLDEST:
        raise FewstepError("no such age", value=years, hint=f"Give 0 to {OLDEST} years.")


def reweighted_singular_values(features: Tensor, alpha: float = 0.01, beta: float = 1.1) -> Tensor:
    """Features with what they share brought out: S' = beta S exp(alpha S) of M = U S V^T.

    The columns of M are features of one person at several ages, of which the largest singular values hold what stays.

    Args:
        features: (..., d, n), n columns; the source first.
        alpha: how much more the large ones count; 0.01 in the published configuration.
        beta: factor of all of them.

    Returns:
        (..., d, n); the first column is the source's.
    """
    u, s, v = torch.linalg.svd(features, full_matrices=False)
    return u @ torch.diag_embed(beta * s * (alpha * s).exp()) @ v


def rotated_embedding(image: Tensor, now: Tensor, wanted: Tensor, mode: str = "angle") -> Tensor:
    """An image's embedding moved by the way from one text to another, in a space of both (CLIP).

        angle:   unit(i + m - t_now), m halfway on the sphere from t_now to t_wanted
        vector:  unit(i + t_wanted - t_now)

    Args:
        image: unit vectors i (B, d).
        now: those of a text that describes them (B, d).
        wanted: those of a text of what is wanted (B, d).
        mode: `angle` or `vector`.

    Raises:
        FewstepError: another mode.
    """
    if mode not in ("angle", "vector"):
        raise FewstepError("unknown mode", value=mode, hint=nearest(mode, ("angle", "vector")))
    goal = F.normalize(now + wanted, dim=-1) if mode == "angle" else wanted  # the middle of an arc is that of its chord
    return F.normalize(image + goal - now, dim=-1)
