"""Joints of an object's parts, found by score distillation through a renderer (ATOP, arXiv 2502.07278)."""

from fewstep.tasks.articulation.inflation import InflatedNetwork, inflate, train_only
from fewstep.tasks.articulation.joints import RigidPart, axis_error, moved, origin_error, rotation
from fewstep.tasks.articulation.points import read_parts, sampled
from fewstep.tasks.articulation.recovery import NoiseRange, Recovery, misfits, recover, starts_for
from fewstep.tasks.articulation.rendering import PointCloud, orbit, part_mask, render, video

__all__ = [
    "InflatedNetwork",
    "NoiseRange",
    "PointCloud",
    "Recovery",
    "RigidPart",
    "axis_error",
    "inflate",
    "misfits",
    "moved",
    "orbit",
    "origin_error",
    "part_mask",
    "read_parts",
    "recover",
    "render",
    "rotation",
    "sampled",
    "starts_for",
    "train_only",
    "video",
]
