"""What is wrong with a video: how much moves, flicker, drift, seams between chunks, copies of the first frame.

Clips are (B, frames, H, W) in [-1, 1]; every measure gives one number per clip, so that intervals are over clips.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import FewstepError


def dynamic_degree(clips: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring frames (B,): 0 where nothing moves."""
    return (clips[:, 1:] - clips[:, :-1]).abs().flatten(1).mean(1)


def flicker(clips: Tensor) -> Tensor:
    """Change of the mean brightness from frame to frame (B,), over that of the pixels: moving things keep theirs."""
    brightness = clips.flatten(2).mean(2)
    return (brightness[:, 1:] - brightness[:, :-1]).abs().mean(1) / dynamic_degree(clips).clamp(min=1e-6)


def seam_jump(clips: Tensor, chunk: int) -> Tensor:
    """Mean change from one chunk to the next over that between other neighbours (B,): 1 where seams do not show.

    Args:
        clips: (B, frames, H, W).
        chunk: frames of a chunk.

    Raises:
        FewstepError: chunks of one frame, or a clip of one chunk: there is nothing to compare.
    """
    if chunk < 2 or clips.shape[1] <= chunk:
        raise FewstepError("seams need several chunks of several frames", value=(clips.shape[1], chunk))
    change = (clips[:, 1:] - clips[:, :-1]).abs().flatten(2).mean(2)
    seam = torch.arange(1, clips.shape[1]) % chunk == 0
    return change[:, seam].mean(1) / change[:, ~seam].mean(1).clamp(min=1e-6)


def first_frame_copying(clips: Tensor, after: int) -> Tensor:
    """Greatest correlation of the first frame with a frame from number `after` on (B,): 1 where it comes back."""
    flat = clips.flatten(2)
    return F.cosine_similarity(_centred(flat[:, :1]), _centred(flat[:, after:]), dim=2).amax(1)


def segments(clips: Tensor, length: int) -> Tensor:
    """Whole segments (B, count, length, H, W) of clips; a rest is left out."""
    count = clips.shape[1] // length
    if not count:
        raise FewstepError("a clip is shorter than one segment", value=clips.shape[1], hint=f"Make {length} frames.")
    return clips[:, : count * length].unflatten(1, (count, length))


def drift(scores: Tensor) -> Tensor:
    """Standard deviation (B,) of a quality score over the segments of a clip (B, count), as VBench-Long has it."""
    return scores.std(1, correction=0)


def _centred(flat: Tensor) -> Tensor:
    return flat - flat.mean(-1, keepdim=True)


SEGMENT = 8
"""Frames that the networks below look at."""


class ClipNetwork(nn.Module):
    """Clips (B, 8, 16, 16) to logits (B, outputs), by convolutions over space and time; `features` are compared.

    Args:
        outputs: numbers it gives.
        width: channels of the first layer.
    """

    def __init__(self, outputs: int, width: int = 24) -> None:
        super().__init__()
        sizes = (1, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(
            nn.Conv3d(a, b, 3, stride=(1, 2, 2) if k == 0 else 2, padding=1)
            for k, (a, b) in enumerate(itertools.pairwise(sizes))
        )
        self.wide = nn.Linear(4 * width * 2 * 2 * 2, 64)
        self.head = nn.Linear(64, outputs)

    def features(self, clips: Tensor) -> Tensor:
        """(B, 64)."""
        hidden = clips[:, None]
        for layer in self.layers:
            hidden = F.silu(layer(hidden))
        return F.silu(self.wide(hidden.flatten(1)))

    def forward(self, clips: Tensor) -> Tensor:
        """Logits (B, outputs)."""
        return self.head(self.features(clips))


OUTPUTS = 10 + 3
"""Of the judge: which digits are there, and the speed."""


def judge_loss(judge: ClipNetwork, clips: Tensor, prompts: Tensor) -> Tensor:
    """Which digits (each yes or no) and which speed, on clips with a little noise."""
    seen = judge(clips + 0.1 * torch.randn_like(clips))
    there = torch.zeros(len(clips), 10, device=clips.device).scatter(1, prompts[:, :2], 1.0)
    return F.binary_cross_entropy_with_logits(seen[:, :10], there) + F.cross_entropy(seen[:, 10:], prompts[:, 2])


def agreement(judge: ClipNetwork, clips: Tensor, prompts: Tensor) -> Tensor:
    """Probability that the judge gives to the prompt's digits and speed, averaged over the three (B,)."""
    seen = judge(clips)
    digits = seen[:, :10].sigmoid().gather(1, prompts[:, :2]).mean(1)
    speed = seen[:, 10:].softmax(1).gather(1, prompts[:, 2:])[:, 0]
    return (2 * digits + speed) / 3


def motion_loss(network: ClipNetwork, clips: Tensor, pixels: Tensor) -> Tensor:
    """Regression of the speed in pixels per frame (B,): the network behind the reward, which is not the judge."""
    return (network(clips + 0.1 * torch.randn_like(clips))[:, 0] - pixels).square().mean()
