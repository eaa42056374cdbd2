"""A small structure predictor after AlphaFold 3: a trunk that reads the sequence once, a denoiser that is called often.

The trunk makes a single and a pair representation. What of them the denoiser needs at every call, its pair biases, does
not depend on the noise: `StructureNetwork.read` computes it once, for all steps and samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.data.proteins import LETTERS
from fewstep.tasks.proteins.scores import distances

RADII = 12
"""Distances of the noisy structure are told by so many Gaussians."""


@dataclass(frozen=True)
class NetworkSize:
    """Widths and depths of a `StructureNetwork`.

    Attributes:
        single: width of the single representation.
        pair: width of the pair representation.
        trunk_blocks: pair blocks of the trunk.
        width: of the denoiser.
        heads: of its attention, and of the trunk's.
        blocks: of the denoiser.
        embedding: width of the residue embeddings that may be given (alignment statistics, a language model).
        restraint_bins: into which given distances are sorted.
        clip: largest distance along the chain that is told apart.
    """

    single: int = 48
    pair: int = 16
    trunk_blocks: int = 1
    width: int = 48
    heads: int = 4
    blocks: int = 3
    embedding: int = 21
    restraint_bins: int = 16
    clip: int = 32


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What a trunk has read: all that the denoiser is told of a sequence.

    Attributes:
        single: (B, L, single), the input of every block's modulation.
        bias: pair biases (B, blocks, heads, L, L) of the denoiser's attention.
        forces: for each pair by how much it draws or pushes at each distance, (B, L, L, RADII).
        distogram: log probabilities (B, L, L, bins) of the distances.
    """

    single: Tensor
    bias: Tensor
    forces: Tensor
    distogram: Tensor

    def repeated(self, samples: int) -> Conditioning:
        """For `samples` structures of each sequence, side by side; that of one sequence serves any number as it is."""
        return Conditioning(*(_repeated(value, samples) for value in vars(self).values()))


def _repeated(value: Tensor, samples: int) -> Tensor:
    return value if samples == 1 else value.unsqueeze(1).expand(-1, samples, *value.shape[1:]).flatten(0, 1)


class PairBlock(nn.Module):
    """One block of the trunk: triangle update and transition of the pairs, attention and transition of the singles."""

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        s, z = size.single, size.pair
        self.heads = size.heads
        self.z_norm, self.z_in, self.z_gate = nn.LayerNorm(z), nn.Linear(z, 4 * z), nn.Linear(z, z)
        self.z_mixed, self.z_out = nn.LayerNorm(z), zero(nn.Linear(z, z))
        self.z_transition = transition(z)
        self.s_norm, self.qkv, self.bias = nn.LayerNorm(s), nn.Linear(s, 3 * s), nn.Linear(z, size.heads)
        self.s_out, self.s_transition = zero(nn.Linear(s, s)), transition(s)

    def forward(self, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Single (B, L, single) and pair (B, L, L, pair) representations, updated."""
        normed = self.z_norm(z)
        a, b, c, d = self.z_in(normed).chunk(4, -1)
        mixed = torch.einsum("bikc,bjkc->bijc", a * c.sigmoid(), b * d.sigmoid()) / math.sqrt(z.shape[1])
        z = z + self.z_gate(normed).sigmoid() * self.z_out(self.z_mixed(mixed))
        z = z + self.z_transition(z)
        q, k, v = by_head(self.qkv(self.s_norm(s)), self.heads)
        told = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(z).permute(0, 3, 1, 2))
        s = s + self.s_out(told.transpose(1, 2).flatten(2))
        return s + self.s_transition(s), z


class Trunk(nn.Module):
    """Sequence and optional conditions to single and pair representations; called again with its own result to recycle.

    Both conditions enter by linear layers that begin at zero, so that a network is the same before it has learned of
    them, and either can be left out.
    """

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.size = size
        self.letters = nn.Embedding(len(LETTERS) + 1, size.single)
        self.place = nn.Embedding(2 * size.clip + 1, size.pair)
        self.left, self.right = nn.Linear(size.single, size.pair), nn.Linear(size.single, size.pair)
        self.embedding = zero(nn.Linear(size.embedding, size.single, bias=False))
        self.restraints = zero(nn.Linear(size.restraint_bins, size.pair, bias=False))
        self.again_s, self.again_z = (
            nn.Sequential(nn.LayerNorm(n), zero(nn.Linear(n, n))) for n in (size.single, size.pair)
        )
        self.blocks = nn.ModuleList(PairBlock(size) for _ in range(size.trunk_blocks))

    def forward(
        self, letters: Tensor, embedding: Tensor | None = None, restraints: Tensor | None = None, recycles: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Representations (B, L, single) and (B, L, L, pair).

        Args:
            letters: indices (B, L) of amino acids.
            embedding: (B, L, embedding); rows of zeros say nothing.
            restraints: known distances (B, L, L) in angstrom, 0 where unknown.
            recycles: passes through the blocks.
        """
        first = self.letters(letters)
        if embedding is not None:
            first = first + self.embedding(embedding.to(first.dtype))
        place = torch.arange(letters.shape[1], device=letters.device)
        apart = (place[:, None] - place).clamp(-self.size.clip, self.size.clip) + self.size.clip
        pairs = self.left(first).unsqueeze(2) + self.right(first).unsqueeze(1) + self.place(apart)
        if restraints is not None:
            sorted_in = F.one_hot(distance_bins(restraints, self.size.restraint_bins), self.size.restraint_bins)
            pairs = pairs + self.restraints(sorted_in.to(first.dtype) * (restraints > 0).unsqueeze(-1))
        s, z = first, pairs
        for turn in range(recycles):
            if turn:
                s, z = first + self.again_s(s), pairs + self.again_z(z)
            for block in self.blocks:
                s, z = block(s, z)
        return s, z


class DenoiserBlock(nn.Module):
    """Attention with a pair bias and a transition, modulated by noise level and sequence; attention also moves points.

    That each head draws a point along the differences to those that it attends to and sees their distances, and that
    the trunk says by how much each pair draws at each distance, are departures: AlphaFold 3 leaves both to its size.
    """

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        n, self.heads = size.width, size.heads
        self.modulation = zero(nn.Linear(n, 6 * n))
        self.qkv, self.out = nn.Linear(n, 3 * n), nn.Linear(n, n)
        self.springs = zero(nn.Linear(n, RADII))
        self.radii, self.pull = nn.Linear(RADII, size.heads, bias=False), zero(nn.Linear(n, size.heads))
        self.transition = nn.Sequential(nn.Linear(n, 3 * n), nn.SiLU(), nn.Linear(3 * n, n))

    def forward(self, a: Tensor, told: Tensor, bias: Tensor, forces: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, width) updated, and the displacement (B, L, 3) of the points."""
        seen = radial(points)
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(told).chunk(6, -1)
        normed = F.layer_norm(a, a.shape[-1:]) * (1 + scale1) + shift1
        q, k, v = by_head(self.qkv(normed), self.heads)
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
        share = (logits + self.radii(seen).permute(0, 3, 1, 2)).softmax(-1)
        a = a + (1 + gate1) * self.out((share @ v).transpose(1, 2).flatten(2))
        away = points.unsqueeze(1) - share @ points.unsqueeze(1)
        moved = (self.pull(a).transpose(1, 2).unsqueeze(-1) * away).sum(1)
        drawn = (seen * forces * (1 + self.springs(told)).unsqueeze(2)).sum(-1)
        moved = moved + drawn.sum(2, keepdim=True) * points - drawn @ points
        normed = F.layer_norm(a, a.shape[-1:]) * (1 + scale2) + shift2
        return a + (1 + gate2) * self.transition(normed), moved


class StructureNetwork(nn.Module):
    """Trunk, residue denoiser with EDM's output (`Prediction("edm", sigma_data=16)`), and a head of confidence."""

    def __init__(self, size: NetworkSize | None = None) -> None:
        super().__init__()
        self.size = size = size or NetworkSize()
        self.trunk = Trunk(size)
        self.bias_norm, self.bias = nn.LayerNorm(size.pair), nn.Linear(size.pair, size.blocks * size.heads, bias=False)
        self.forces = zero(nn.Linear(size.pair, RADII, bias=False))
        self.distogram = nn.Linear(size.pair, size.restraint_bins)
        self.from_single, self.from_points = nn.Linear(size.single, size.width), nn.Linear(3, size.width, bias=False)
        self.level = nn.Sequential(nn.Linear(32, size.width), nn.SiLU(), nn.Linear(size.width, size.width))
        self.blocks = nn.ModuleList(DenoiserBlock(size) for _ in range(size.blocks))
        self.to_points = nn.Sequential(nn.LayerNorm(size.width), zero(nn.Linear(size.width, 3)))
        self.confidence = nn.Sequential(
            nn.Linear(size.single + 2 * RADII, size.width), nn.SiLU(), zero(nn.Linear(size.width, 1))
        )

    def read(
        self, letters: Tensor, embedding: Tensor | None = None, restraints: Tensor | None = None, recycles: int = 1
    ) -> Conditioning:
        """What the denoiser is told, for all its calls; arguments as `Trunk.forward`."""
        s, z = self.trunk(letters, embedding, restraints, recycles)
        normed = self.bias_norm(z)
        bias = self.bias(normed).permute(0, 3, 1, 2).unflatten(1, (self.size.blocks, self.size.heads))
        return Conditioning(
            s, bias, self.forces(normed), (self.distogram(z) + self.distogram(z.transpose(1, 2))).log_softmax(-1)
        )

    def forward(self, x: Tensor, time: Tensor, read: Conditioning) -> Tensor:
        """Raw output (B, L, 3) at scaled structures (B, L, 3) and network times log(sigma / 16) / 4, 0-dim or (B,)."""
        time = time.to(x.dtype).reshape(-1, 1, 1).expand(len(x), 1, 1)
        single = self.from_single(read.single)
        told = F.silu(single + self.level(waves(time)))
        a = single + self.from_points(x)
        points = x
        for k, block in enumerate(self.blocks):
            a, moved = block(a, told, read.bias[:, k], read.forces, points)
            points = points + moved
        # what a point has to move by, in units of the output, is 16 / sigma times what it is in those of the input
        return self.to_points(a) + (points - x) * torch.exp(-4 * time).clamp(max=8)

    def sure(self, x: Tensor, read: Conditioning) -> Tensor:
        """The LDDT (B,) that structures (B, L, 3) in angstrom are expected to have."""
        seen = radial(x.detach() / 16)
        bins = read.distogram.exp().detach()
        agreed = (bins * F.one_hot(distance_bins(distances(x.detach()), bins.shape[-1]), bins.shape[-1])).sum(-1)
        single = read.single.detach().expand(len(x), -1, -1)
        features = [single, seen.mean(2), (agreed.unsqueeze(-1) * seen).mean(2)]
        return self.confidence(torch.cat(features, -1)).mean((1, 2)).sigmoid()


def distance_bins(distance: Tensor, count: int) -> Tensor:
    """Index of the bin of each distance in angstrom: equal steps from 4 to 20, and what lies beyond."""
    return ((distance - 4) * (count - 2) / 16 + 1).floor().clamp(0, count - 1).long()


def radial(points: Tensor) -> Tensor:
    """Distances (B, L, L, RADII) of points (B, L, 3), in units of 16 angstrom, by Gaussians up to 40 angstrom."""
    centres = torch.linspace(0, 1, RADII, device=points.device, dtype=points.dtype).square() * 2.5
    widths = torch.linspace(0.06, 0.4, RADII, device=points.device, dtype=points.dtype)
    return torch.exp(-(((distances(points).unsqueeze(-1) - centres) / widths).square()))


def waves(time: Tensor) -> Tensor:
    """Sines and cosines (B, 1, 32) of network times (B, 1, 1)."""
    rates = torch.exp(torch.linspace(0, math.log(30.0), 16, device=time.device, dtype=time.dtype))
    return torch.cat([(time * rates).sin(), (time * rates).cos()], -1)


def by_head(qkv: Tensor, heads: int) -> list[Tensor]:
    """Queries, keys and values, each (B, heads, L, width / heads), of (B, L, 3 width)."""
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1)]


def transition(width: int) -> nn.Module:
    """A normalised two-layer network whose last layer begins at zero."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), zero(nn.Linear(2 * width, width)))


def zero(layer: nn.Linear) -> nn.Linear:
    """The layer with weights and bias of zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
