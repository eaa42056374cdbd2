"""A prior without training: how procedural furniture moves, carried over to the parts of the object at hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import Cosine
from fewstep.tasks.articulation.joints import RigidPart
from fewstep.tasks.articulation.objects import FAMILIES, random_object
from fewstep.tasks.articulation.prior import PriorSettings, clips
from fewstep.tasks.articulation.rendering import PointCloud
from fewstep.testing.mixture import Mixture

PER_FAMILY, POINTS, STD = 80, 200, 0.25
"""Objects of a family, points of each, and deviation of pixels around a believed video."""


@dataclass(frozen=True, eq=False)
class Beliefs:
    """Joints that are believed of an object, and how much.

    Attributes:
        joints: in the object's points' frame.
        weights: (K,), which sum to 1.
    """

    joints: tuple[RigidPart, ...]
    weights: Tensor


@cache
def _library(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Features (N, 18), axes (N, 3), places of origins within the part's box (N, 3), travels (N,), families."""
    generator, rows, families = torch.Generator().manual_seed(seed), [], []
    for family in FAMILIES:
        for k in range(PER_FAMILY):
            made = random_object(family, generator, jitter=0.0)
            cloud, joint = made.points(POINTS, seed=seed + k)
            low, high = _box(cloud.positions[cloud.moving])
            place = (joint.origin - low) / (high - low).clamp(min=1e-3)
            rows.append(torch.cat([features(cloud), joint.direction, place, joint.travel[None]]))
            families.append(family)
    table = torch.stack(rows)
    return table[:, :-7], table[:, -7:-4], table[:, -4:-1], table[:, -1], tuple(families)


def features(cloud: PointCloud) -> Tensor:
    """What objects are compared by (18,): boxes of the part and of the rest, where the part's points lie in its box."""
    part, rest = cloud.positions[cloud.moving], cloud.positions[~cloud.moving]
    return torch.cat([*_box(part), *_box(rest), 2 * (part.mean(0) - torch.stack(_box(part)).mean(0)), part.std(0)])


def beliefs_of(cloud: PointCloud, family: str, count: int = 16, width: float = 0.25) -> Beliefs:
    """Joints of the procedural objects most like this one, at the same places of its part's box.

    Args:
        cloud: the object.
        family: of the text; `any` looks through all.
        count: of the beliefs.
        width: of the Gaussian kernel over features.

    Raises:
        FewstepError: another family.
    """
    if family not in (*FAMILIES, "any"):
        raise FewstepError("unknown family", value=family, hint=f"Use {', '.join(FAMILIES)} or any.")
    known, axes, places, travels, families = _library()
    mine = torch.tensor([family in (name, "any") for name in families])
    far = (known - features(cloud)).square().sum(1).masked_fill(~mine, math.inf)
    rows = far.argsort()[:count]
    weights = (-(far[rows] - far[rows[0]]).double() / (2 * width**2)).softmax(0)
    low, high = _box(cloud.positions[cloud.moving])
    kinds = ["prismatic" if families[k] == "drawer" else "revolute" for k in rows.tolist()]
    origins = low + places[rows] * (high - low)
    joints = [RigidPart(kind, axes[k], o, travels[k]) for kind, k, o in zip(kinds, rows, origins, strict=True)]
    return Beliefs(tuple(joints), weights)


def as_prior(cloud: PointCloud, beliefs: Beliefs, settings: PriorSettings, std: float = STD) -> Denoiser:
    """The mixture of the believed videos, each with this deviation of pixels: its score is exact."""
    means = torch.stack([clips(cloud, joint, settings).flatten() for joint in beliefs.joints])
    process, prediction = Cosine(), Prediction("epsilon")
    mixture = Mixture(beliefs.weights.clamp(min=1e-9), means, torch.full_like(means, std**2))
    network = mixture.network(process, prediction)
    return Denoiser(lambda x, time, **told: network(x, time), process, prediction)


def _box(points: Tensor) -> tuple[Tensor, Tensor]:
    return points.amin(0), points.amax(0)
