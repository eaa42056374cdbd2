"""A masked model of scored sequences: one network for p(letters | letters, level) and p(level | letters).

Scores are cut into levels. The joint law of letters and level makes all of reward-directed generation closed: with
exp(scale * score) written per level, the tilted law is p(x) sum_k p(k | x) w_k, its value at a masked state z is
h(z) = sum_k p(k | z) w_k, and it can be drawn by drawing the level from p(k) w_k first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.data.sequences import ScoredSequences
from fewstep.discrete import MaskedDiffusion, TokenDenoiser
from fewstep.errors import FewstepError
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import Stage, StageBatch, StageConfig


class SequenceNetwork(nn.Module):
    """A residual perceptron over the letters of short sequences of one length, and a level.

    Args:
        length: L, of a sequence.
        symbols: V, letters with the mask, which is the last.
        levels: K; 0 makes one output per position instead of V, a discriminator.
        width: of its layers.
        layers: residual ones.
    """

    def __init__(self, length: int, symbols: int, levels: int, width: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.length, self.symbols, self.levels = length, symbols, levels
        self.letters = nn.Parameter(0.3 * torch.randn(length * symbols, width))
        self.level = nn.Embedding(levels + 1, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(layers)
        )
        self.last = nn.LayerNorm(width)
        self.token_head = nn.Linear(width, length * (symbols if levels else 1))
        self.level_head = nn.Linear(width, max(levels, 1))

    def features(self, z: Tensor, level: Tensor | None = None) -> Tensor:
        """(B, width) of sequences (B, L) and levels (B,); no level is one of its own."""
        place = z + self.symbols * torch.arange(self.length, device=z.device)
        told = torch.full_like(z[:, 0], self.levels) if level is None else level.expand(len(z))
        x = F.embedding_bag(place, self.letters, mode="sum") + self.level(told)
        for layer in self.layers:
            x = x + layer(x)
        return self.last(x)

    def forward(self, z: Tensor, level: Tensor | None = None) -> Tensor:
        """Logits (B, L, V) of the letters; of a discriminator (B, L)."""
        found: Tensor = self.token_head(self.features(z, level))
        return found.view(len(z), self.length, -1) if self.levels else found

    def level_logits(self, z: Tensor) -> Tensor:
        """Logits (B, K) of the level."""
        found: Tensor = self.level_head(self.features(z))
        return found


@dataclass(frozen=True, eq=False)
class SequenceModel:
    """The trained network with what its levels mean.

    Attributes:
        network: of letters and levels.
        means: mean score of each level (K,), rising.
        shares: part of the sequences in each level (K,).
    """

    network: SequenceNetwork
    means: Tensor
    shares: Tensor

    @property
    def process(self) -> MaskedDiffusion:
        """Of the letters."""
        return MaskedDiffusion(self.network.symbols, self.network.symbols - 1)

    def denoiser(self, level: int | None = None) -> TokenDenoiser:
        """Of sequences of a level, or of all."""
        condition = {} if level is None else {"level": torch.tensor(level)}
        return TokenDenoiser(self.network, self.process, condition)

    def score(self, z: Tensor) -> Tensor:
        """Expected score (B,) of sequences, masked ones too."""
        with torch.no_grad():
            return self.network.level_logits(z).softmax(1) @ self.means.float()

    def value(self, z: Tensor, scale: float) -> Tensor:
        """log E[exp(scale * score) | z] (B,)."""
        with torch.no_grad():
            return (self.network.level_logits(z).log_softmax(1) + scale * self.means.float()).logsumexp(1)

    def tilted_levels(self, scale: float) -> Tensor:
        """Probability of each level (K,) under the law tilted by exp(scale * score)."""
        return (self.shares.log() + scale * self.means).softmax(0)


def levels_of(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Level (N,) of each finite score, and the levels' mean scores (count,).

    The lowest holds half, the next half of the rest and so on: the few best ones are told apart.

    Raises:
        FewstepError: too few different scores.
    """
    if len(scores.unique()) < 2 * count:
        hint = "Give more sequences, or fewer levels."
        raise FewstepError(f"{count} levels need more different scores", value=len(scores.unique()), hint=hint)
    while scores.numel() < 4 * 2 ** (count - 1) and count > 2:
        count -= 1  # at least some four in the highest
    edges = torch.quantile(scores.double(), torch.tensor([1 - 0.5**k for k in range(1, count)], dtype=torch.float64))
    level = torch.bucketize(scores.double(), edges.unique(), right=True)
    found = [scores[level == k] for k in range(int(level.max()) + 1)]
    means = torch.stack([part.double().mean() for part in found])
    return level, means


def fit_model(
    data: ScoredSequences,
    *,
    weights: Tensor | None = None,
    levels: int = 6,
    steps: int = 1000,
    batch: int = 128,
    rate: float = 3e-3,
    width: int = 96,
    seed: int = 0,
    start: SequenceNetwork | None = None,
) -> SequenceModel:
    """Train a masked model of scored sequences; those whose score is NaN are left out.

    The loss is the evidence bound's cross-entropy of masked letters, w(t) = 1/t (arXiv 2406.07524), with the level told
    in half of the cases, and the cross-entropy of the level given part of the letters.

    Args:
        data: the sequences.
        weights: of each (N,); alike unless given.
        levels: that scores are cut into; fewer where there are few sequences.
        steps: of training.
        batch: sequences per step.
        rate: of Adam, with a cosine to zero.
        width: of the network.
        seed: of start and training.
        start: a network to go on from.

    Raises:
        FewstepError: no finite scores, or too few different ones.
    """
    kept = data.scores.isfinite()
    if not bool(kept.any()):
        raise FewstepError("no sequence has a finite score", value=len(data))
    tokens, scores = data.tokens[kept], data.scores[kept]
    level, means = levels_of(scores, levels)
    law = torch.ones(len(tokens)) if weights is None else weights[kept].float()
    shares = torch.zeros(len(means), dtype=torch.float64).index_add(0, level, law.double())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SequenceNetwork(data.length, len(data.alphabet) + 1, len(means), width)
    if start is not None:
        network.load_state_dict(start.state_dict())
    cumulative, mask = law.double().cumsum(0), len(data.alphabet)

    def draw(generator: torch.Generator) -> StageBatch:
        places = torch.rand(batch, generator=generator, dtype=torch.float64) * cumulative[-1]
        rows = torch.searchsorted(cumulative, places).clamp(max=len(tokens) - 1)
        t = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        hidden = torch.rand(batch, data.length, generator=generator) < t[:, None]
        told = torch.arange(batch) % 2 == 0
        return {"x": tokens[rows], "level": level[rows], "hidden": hidden, "t": t, "told": told}

    def loss(given: StageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        z = given["x"].masked_fill(given["hidden"], mask)
        told = given["told"]
        features = network.features(z, torch.where(told, given["level"], len(means)))
        logits = network.token_head(features).view(batch, data.length, -1)
        each = F.cross_entropy(logits[..., :mask].transpose(1, 2), given["x"], reduction="none")
        tokens_loss = ((each * given["hidden"]).sum(1) / given["t"].clamp(min=0.05)).mean() / data.length
        return tokens_loss + F.cross_entropy(network.level_head(features[~told]), given["level"][~told]), {}

    config = StageConfig(
        steps=steps, batch=batch, learning_rate=rate, seed=seed, device="cpu", ema=0.99, warmup=min(50, steps // 4)
    )
    fit(Stage({"network": network}, draw, loss, lambda folder: None), config, None, accelerator_for(config), quiet=True)
    return SequenceModel(network.eval().requires_grad_(False), means, shares / shares.sum())
