"""Digits that are edited: plain, inverted or bold, judges of the kind and of the digit, a teacher of the kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.alignment.judged import answer_log_odds
from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Batch
from fewstep.metrics.distances import frechet
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.tasks.editing import without
from fewstep.testing.digits import DigitNetwork
from fewstep.testing.fit import fit_network

PROCESS, PREDICTION, KINDS, BATCH = RectifiedFlow(), Prediction("velocity"), 3, 128
ANY = KINDS  # the class of no class


def as_kind(digits: Tensor, kinds: Tensor) -> Tensor:
    """Plain digits (B, 64) in [-1, 1] as those kinds (B,)."""
    bold = F.max_pool2d(digits.reshape(-1, 1, 8, 8), 3, 1, 1).flatten(1)
    return torch.stack([digits, -digits, bold])[kinds, torch.arange(len(digits))]


class KindJudge(nn.Module):
    """(B, 64) -> logits of the kinds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, 32), nn.SiLU())
        self.head = nn.Linear(32, KINDS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class SameJudge(nn.Module):
    """Two pictures (B, 64) -> logit of "the same digit, whatever its kind"."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                                  nn.Linear(width, 32))  # fmt: skip
        self.scale, self.shift = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(4.0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.shift - self.scale.exp() * (self.body(x) - self.body(y)).square().mean(1)


@dataclass(frozen=True, eq=False)
class Judges:
    """What is asked: is it of this kind, is it the same digit."""

    kind: KindJudge
    same: SameJudge

    def logits(self, x: Tensor, kinds: Tensor, source: Tensor) -> Tensor:
        """Logits (B, 2, 2) of no and yes."""
        said = self.kind(x)
        yes = said.gather(1, kinds[:, None])[:, 0]
        no = said.scatter(1, kinds[:, None], -torch.inf).logsumexp(1)
        same = self.same(x, source)
        return torch.stack([torch.stack([no, yes], 1), torch.stack([0 * same, same], 1)], 1)


def train_judges(digits: Tensor, width: int, seed: int, steps: int) -> Judges:
    """Judges of these digits, at a little noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind, same = KindJudge(width), SameJudge(width)

    def drawn(rows: Tensor) -> tuple[Tensor, Tensor]:
        kinds = torch.randint(KINDS, (len(rows),), generator=generator)
        return as_kind(digits[rows], kinds) + 0.2 * torch.randn(len(rows), 64, generator=generator), kinds

    def kind_loss() -> Tensor:
        x, kinds = drawn(torch.randint(len(digits), (BATCH,), generator=generator))
        return F.cross_entropy(kind(x), kinds, label_smoothing=0.02)

    def same_loss() -> Tensor:
        rows = torch.randint(len(digits), (BATCH,), generator=generator)
        shift = torch.randint(1, len(digits), (BATCH,), generator=generator)
        alike = torch.rand(BATCH, generator=generator) < 0.5
        (x, _), (y, _) = drawn(rows), drawn(torch.where(alike, rows, (rows + shift) % len(digits)))
        return F.binary_cross_entropy_with_logits(same(x, y), alike.float())

    fit_network(kind, kind_loss, steps, rate=2e-3)
    fit_network(same, same_loss, 2 * steps, rate=2e-3)
    return Judges(kind.eval().requires_grad_(False), same.eval().requires_grad_(False))


@dataclass(frozen=True, eq=False)
class World:
    """Digits of the generators, of the judges that train and of those that measure, held-out ones, and the teacher."""

    own: Tensor
    held: Tensor
    training: Judges
    measuring: Judges
    network: DigitNetwork

    def teacher(self) -> Denoiser:
        return Denoiser(without(self.network), PROCESS, PREDICTION)

    def edits(self, digits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Sources, wanted kinds and the truth of random edits."""
        before = torch.randint(KINDS, (len(digits),), generator=generator)
        after = (before + torch.randint(1, KINDS, (len(digits),), generator=generator)) % KINDS
        return as_kind(digits, before), after, as_kind(digits, after)

    def batches(self, clean: str, size: int = BATCH) -> Callable[[torch.Generator], Batch]:
        """Edits of the generators' digits; `clean`: `source`, `truth`, or nothing."""

        def draw(generator: torch.Generator) -> Batch:
            rows = torch.randint(len(self.own), (size,), generator=generator)
            source, kinds, truth = self.edits(self.own[rows], generator)
            target = {"source": source, "truth": truth}.get(clean)
            return Batch(size, (64,), target, {"class_labels": kinds, "source": source})

        return draw

    def judge(self, x: Tensor, batch: Batch) -> Tensor:
        """Logits of the judges that train."""
        given = batch.condition or {}
        return self.training.logits(x, given["class_labels"], given["source"])

    @torch.no_grad()
    def measures(self, edit: Callable[[Tensor, Tensor, torch.Generator], Tensor]) -> dict[str, float]:
        """Of held-out digits: right kind, same digit, both as `score`, distance from the truth and from real ones."""
        generator = torch.Generator().manual_seed(7)
        source, kinds, truth = self.edits(self.held.repeat(2, 1), generator)
        found = edit(source, kinds, generator)
        said = answer_log_odds(self.measuring.logits(found, kinds, source), (True, True))
        trained = answer_log_odds(self.training.logits(found, kinds, source), (True, True))
        right, same = (float((said[:, k] > 0).float().mean()) for k in (0, 1))
        features = self.measuring.kind.body
        return {
            "right": right, "same": same, "score": 2 * right * same / max(right + same, 1e-9),
            "truth": float((found - truth).square().mean().sqrt()),
            "frechet": frechet(features(found), features(truth)),
            "trained on": float((trained > 0).all(1).float().mean()),
        }  # fmt: skip


def made_world(steps: int) -> World:
    raw = torch.tensor(load_digits().data, dtype=torch.float32)[
        torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    ]
    own, first, second, held = (raw / 8 - 1).split([736, 368, 368, 325])
    network, generator = DigitNetwork(classes=KINDS), torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        rows, kinds = (torch.randint(n, (256,), generator=generator) for n in (len(own), KINDS))
        clean = as_kind(own[rows], kinds)
        kinds = kinds.masked_fill(torch.rand(256, generator=generator) < 0.2, ANY)
        noise, t = torch.randn(clean.shape, generator=generator), torch.rand(256, 1, generator=generator)
        found = network((1 - t) * clean + t * noise, 1000 * t[:, 0], class_labels=kinds)
        return (found - (noise - clean)).square().mean()

    fit_network(network, loss, steps, rate=1e-3, average=0.998)
    judges = train_judges(first, 128, 1, max(steps // 2, 20)), train_judges(second, 96, 2, max(steps // 2, 20))
    return World(own, held, *judges, network.eval().requires_grad_(False))
