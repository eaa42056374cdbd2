"""From a mesh with a named part and a text to the part's joint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Condition, Denoiser
from fewstep.errors import FewstepError
from fewstep.tasks.articulation.beliefs import as_prior, beliefs_of
from fewstep.tasks.articulation.joints import KINDS, RigidPart
from fewstep.tasks.articulation.objects import out_of_frame
from fewstep.tasks.articulation.points import frame_of, named_part, sampled
from fewstep.tasks.articulation.prior import (
    PriorSettings,
    clips,
    condition_of,
    family_of,
    without_family,
)
from fewstep.tasks.articulation.recovery import NoiseRange, Recovery, misfits, picked, recover, starts_for, together
from fewstep.tasks.articulation.rendering import PointCloud, part_mask
from fewstep.tasks.meshes import Mesh

UNSEEN = 2.0
"""Pixels, over all views, below which nobody can tell what a part does."""
TRAVEL = {"revolute": 1.4, "prismatic": 0.5}
"""Where a search begins: radians, and shares of the object's size."""

COLLIDES = 0.04
"""Share of standing points that a motion may run into before it is warned of."""
FIRST_LOOK = (0.35, 0.6, 0.85)
"""Noise levels by which starts are chosen, shares of the process's range."""


@dataclass(frozen=True)
class Search:
    """How a joint is looked for.

    Attributes:
        steps: updates of each candidate.
        kept: candidates of each kind that are worth the updates.
        rate: of the updates.
        noise: see `NoiseRange`.
        guidance: of the prior by the text.
        kinds: of joints that are tried.
        points: of the object.
        seed: of points and noise.
    """

    steps: int = 100
    kept: int = 4
    rate: float = 0.03
    noise: NoiseRange = field(default_factory=NoiseRange)
    guidance: float = 1.0
    kinds: tuple[str, ...] = KINDS
    points: int = 500
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Articulation:
    """What was found.

    Attributes:
        joint: in the mesh's units and frame.
        misfit: of the best candidate of each kind, the prior's; the smaller one decides.
        warnings: what a reader must not overlook, in words.
        family: of the text.
    """

    joint: RigidPart
    misfit: Mapping[str, float]
    warnings: tuple[str, ...]
    family: str


def articulate(
    parts: Mapping[str, Mesh],
    part: str,
    text: str,
    *,
    prior: tuple[Denoiser, PriorSettings] | None = None,
    search: Search = Search(),
) -> Articulation:
    """The joint of a part, such that the text happens.

    Args:
        parts: meshes by name, z up.
        part: name of the one that moves, or a piece of it.
        text: such as "the door opens".
        prior: a trained generator of motions; a mixture of what procedural furniture does unless given (`beliefs_of`).
        search: how.

    Raises:
        FewstepError: no such part, or one that no view shows.
    """
    name = named_part(parts, part)
    settings = PriorSettings() if prior is None else prior[1]
    cloud, family = sampled(parts, name, search.points, search.seed), family_of(text)
    if float(part_mask(cloud, settings.views, settings.side).sum()) < UNSEEN:
        hint = "Is it hidden inside, or tiny beside the rest?"
        raise FewstepError("no view shows this part", value=name, hint=hint)
    if prior is None:
        believed = beliefs_of(cloud, family)
        denoiser, known = as_prior(cloud, believed, settings), believed.joints
    else:
        denoiser, known = prior[0], ()
    condition = {} if prior is None else condition_of(cloud, family, settings)
    found = {kind: search_joint(kind, cloud, denoiser, settings, condition, search, known) for kind in search.kinds}
    misfit = {kind: float(each.misfit[0]) for kind, each in found.items()}
    best = found[min(misfit, key=lambda kind: misfit[kind])].best
    warnings = [] if family != "any" else ["The text names no kind of part that the prior knows."]
    warnings += doubts(cloud, best, settings)
    return Articulation(out_of_frame(best, *frame_of(parts)), misfit, tuple(warnings), family)


def search_joint(
    kind: str,
    cloud: PointCloud,
    denoiser: Denoiser,
    settings: PriorSettings,
    condition: Condition,
    search: Search = Search(),
    known: Sequence[RigidPart] = (),
) -> Recovery:
    """The likeliest joints of one kind, in the points' frame: many starts, the best of which are moved.

    known: joints that are starts as well, beside those around the part's box.
    """
    draw = partial(drawn, cloud, settings)
    negative = None if search.guidance == 1 else without_family(condition)
    how: dict[str, Any] = {"condition": condition, "negative": negative, "guidance": search.guidance}
    where = cloud.positions[cloud.moving]
    starts = starts_for(kind, torch.stack([where.amin(0), where.amax(0)]), TRAVEL[kind])
    starts = together(starts, [joint for joint in known if joint.kind == kind])
    likely = picked(starts, misfits(draw, starts, denoiser, levels=FIRST_LOOK, seed=search.seed, **how), search.kept)
    updates: dict[str, Any] = {"steps": search.steps, "rate": search.rate, "noise": search.noise}
    return recover(draw, likely, denoiser, seed=search.seed, **updates, **how)


def drawn(cloud: PointCloud, settings: PriorSettings, part: RigidPart) -> Tensor:
    """What the prior sees of candidates (B): (B, V, F, 3, side, side)."""
    return clips(cloud, part, settings)


@torch.no_grad()
def doubts(cloud: PointCloud, joint: RigidPart, settings: PriorSettings) -> list[str]:
    """What is odd about a motion: nobody sees it, or the part runs into what stands still."""
    moving, found = clips(cloud, joint, settings), []
    if float((moving[:, -1] - moving[:, 0]).abs().mean()) < 1e-3:
        found.append("No view shows that the part moves: look at the axis, the travel may be 0.")
    share = collision(cloud, joint)
    if share > COLLIDES:
        found.append(f"The motion collides: it runs into {share:.0%} of what stands still.")
    return found


def collision(cloud: PointCloud, joint: RigidPart, near: float = 0.05) -> float:
    """Share of the standing points that the part comes within `near` of, having been twice as far from them at rest."""
    shares = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    still = cloud.positions[~cloud.moving].expand(len(shares), -1, -1)
    gap = torch.cdist(still, cloud.posed(joint, shares)[:, cloud.moving]).amin(-1)
    return float(((gap[1:].amin(0) < near) & (gap[0] > 2 * near)).float().mean())
