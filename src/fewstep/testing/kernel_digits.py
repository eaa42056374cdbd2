"""A network on real images without training: the exact denoiser of scikit-learn's digits, as two Linear layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.process import RectifiedFlow

TRAIN, TEST = 1472, 325


@dataclass(frozen=True, eq=False)
class Digits:
    """Standardised 8x8 digits, float32: train (1472, 64), test (325, 64), and their classes 0..9."""

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor


def load_digits(seed: int = 0, least_std: float = 2.0) -> Digits:
    """The 1,797 bundled digits, split at random; pixels minus their mean over their deviation, those of the train part.

    `least_std`, in the file's 16 grey levels, bounds the deviation from below (border pixels are almost constant).
    """
    from sklearn.datasets import load_digits as bundled

    raw = bundled()
    order = torch.randperm(len(raw.target), generator=torch.Generator().manual_seed(seed))
    pixels, labels = torch.tensor(raw.data)[order], torch.tensor(raw.target)[order]
    mean, std = pixels[:TRAIN].mean(0), pixels[:TRAIN].std(0).clamp(min=least_std)
    pixels = ((pixels - mean) / std).float()
    return Digits(pixels[:TRAIN], pixels[TRAIN:], labels[:TRAIN], labels[TRAIN:])


class KernelDenoiser(nn.Module):
    """The exact flow velocity of images smoothed by a Gaussian of this bandwidth: softmax attention over all of them.

    `keys` (D -> N) compares a state with the N images, `values` (N -> D) averages those; both are plain bias-free
    Linear layers, so that quantizers treat this module as any network. Rectified flow: x_t = (1 - t) x0 + t eps, raw
    output eps - x0, network time 1000 t.
    """

    def __init__(self, images: Tensor, bandwidth: float = 0.35) -> None:
        super().__init__()
        count, size = images.shape
        self.bandwidth, self.process = bandwidth, RectifiedFlow()
        self.keys = nn.Linear(size, count, bias=False)
        self.values = nn.Linear(count, size, bias=False)
        with torch.no_grad():
            self.keys.weight.copy_(images)
            self.values.weight.copy_(images.T)
        self.norms: Tensor
        self.register_buffer("norms", images.float().square().sum(1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Velocity eps - x0 (B, ...) of states of D numbers each, at network time, 0-dim or (B,)."""
        t = torch.as_tensor(time).to(x).reshape(-1, 1) / self.process.network_scale
        alpha, state = 1 - t, x.flatten(1)
        variance = (alpha * self.bandwidth) ** 2 + t**2
        closeness = (alpha * self.keys(state) - alpha**2 * self.norms / 2) / variance
        centre = self.values(closeness.softmax(1))
        away = (state - alpha * centre) / variance
        return (t * away - centre - alpha * self.bandwidth**2 * away).reshape(x.shape)
