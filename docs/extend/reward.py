"""A reward: how symmetric a picture is, left against right."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.registry import no_argument
from fewstep.rewards import REWARDS, Reward, load_reward


@dataclass(frozen=True)
class Symmetry:
    """One minus the mean difference to the mirrored picture; gradients are exact."""

    name: str = "symmetry"
    differentiable: bool = True

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) float in [0, 1] -> (B,), 1 for a symmetric one."""
        return 1 - (images - images.flip(3)).abs().mean((1, 2, 3))


@REWARDS.register("symmetry")
def symmetry(argument: str) -> Reward:
    """The kind `symmetry` in recipes, on the command line and in `load_reward`."""
    no_argument("symmetry", argument)
    return Symmetry()


half = torch.rand(1, 3, 8, 4, generator=torch.Generator().manual_seed(0))
pictures = torch.cat([torch.cat([half, half.flip(3)], 3), torch.cat([half, 1 - half.flip(3)], 3)])
print(load_reward("symmetry").score(pictures, ["mirrored", "inverted"]))
