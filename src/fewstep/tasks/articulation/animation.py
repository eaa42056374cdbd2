"""A joint as key frames of a GLB file."""

from __future__ import annotations

import torch

from fewstep.tasks.articulation.joints import RigidPart
from fewstep.tasks.meshes import Motion


def key_frames(joint: RigidPart, part: str, keys: int = 9) -> Motion:
    """Out and back; less than 180 degrees lie between two frames, and the joint is told beside them."""
    share = torch.cat([torch.linspace(0, 1, keys), torch.linspace(1, 0, keys)[1:]])
    q, axis = (joint.travel * share)[:, None], joint.direction
    about = {"type": joint.kind, "axis": axis.tolist(), "origin": joint.origin.tolist()}
    extras = {"joint": {**about, "range": [0.0, float(joint.travel)]}}
    if joint.kind == "revolute":
        turns = torch.cat([(q / 2).sin() * axis, (q / 2).cos()], 1)
        return Motion(part, joint.origin, "rotation", turns, extras=extras)
    return Motion(part, joint.origin, "translation", joint.origin + q * axis, extras=extras)
