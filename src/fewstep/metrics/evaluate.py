"""All numbers of a report: every system on the same prompts and seeds, with intervals, differences and the null."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.errors import FewstepError, NonFiniteError, nearest
from fewstep.images import as_float
from fewstep.metrics import distances
from fewstep.metrics.features import CHUNK, FeatureNet
from fewstep.metrics.intervals import RESAMPLES, centred_interval, resample_counts

LABELS = {
    "mmd": ("RBF-MMD², unbiased", "lower"),
    "frechet": ("Fréchet distance", "lower"),
    "precision": ("Precision (k = 3)", "higher"),
    "recall": ("Recall (k = 3)", "higher"),
    "diversity": ("Diversity between seeds", "higher"),
    "judge": ("Judge", "higher"),
    "psnr": ("PSNR to {paired_to}, dB", "higher"),
}


class Judge(Protocol):
    """Anything with a name and a score per image; rewards have this form. Never the one that was optimised."""

    @property
    def name(self) -> str:
        """Short name for the table."""
        ...

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (B, 3, H, W) float in [0, 1] and their prompts -> (B,), higher is better."""
        ...


@dataclass(frozen=True)
class ReferenceFeatures:
    """Features (M, d) of the real images with all that costs M^2 and is the same for every system (16 M^2 bytes)."""

    features: Tensor
    kernel: distances.RbfKernel
    between: Tensor  # (M, M) distances
    gram: Tensor  # (M, M) kernel values, zero on the diagonal: a point is no evidence about itself
    radii: Tensor
    fit: tuple[Tensor, Tensor]  # mean and root of the covariance

    @classmethod
    def of(cls, features: Tensor) -> ReferenceFeatures:
        """Compute it once per feature network."""
        kernel = distances.RbfKernel.of(features)
        between = torch.cdist(features, features)
        gram = kernel.of_distances(between).fill_diagonal_(0)
        return cls(features, kernel, between, gram, distances.kth_distances(between), distances.root_fit(features))

    @cached_property
    def similarity(self) -> float:
        """Mean kernel value of two different real images."""
        return float(self.gram.sum()) / (len(self.gram) * (len(self.gram) - 1))

    def mmd2(self, left: Tensor, right: Tensor) -> float:
        """Unbiased squared MMD of two disjoint parts, by their indices."""
        parts = torch.zeros(2, len(self.gram), dtype=torch.float64)
        parts[0, left], parts[1, right] = 1, 1
        (aa, ab), (_, bb) = (parts @ self.gram @ parts.T).tolist()
        n, m = len(left), len(right)
        return aa / (n * (n - 1)) + bb / (m * (m - 1)) - 2 * ab / (n * m)

    def precision_recall(self, left: Tensor, right: Tensor) -> tuple[float, float]:
        """The left part judged as if it were generated, against the right part."""
        across = self.between[left][:, right]
        balls = [distances.kth_distances(self.between[part][:, part]) for part in (left, right)]
        inside, covered = (across <= balls[1]).any(1), (balls[0] >= across.T).any(1)
        return float(inside.double().mean()), float(covered.double().mean())


@dataclass(frozen=True)
class MetricSamples:
    """One metric of one system: a value per seed (S,) and its bootstrap draws (B,), already averaged over seeds."""

    seeds: Tensor
    draws: Tensor

    def minus(self, other: MetricSamples) -> MetricSamples:
        """The paired difference: same seeds, same resamples."""
        return MetricSamples(self.seeds - other.seeds, self.draws - other.draws)

    def as_dict(self, n: int) -> dict[str, Any]:
        """Mean over seeds, its interval over prompts, and the seeds one by one."""
        interval = centred_interval(float(self.seeds.mean()), self.draws, n)
        return {**interval.as_dict(), "seeds": self.seeds.tolist()}


def evaluate(
    systems: Mapping[str, Tensor],
    reference: Tensor,
    prompts: Sequence[str],
    features: Sequence[FeatureNet],
    judge: Judge | None = None,
    paired_to: str | None = None,
    *,
    compare: Sequence[tuple[str, str]] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Compare systems with real images and with one another; plain JSON values.

    systems: name -> images (S, P, 3, H, W), bytes or float in [0, 1], S seeds of the P prompts.
    reference: real images (M, 3, H, W) that nothing was optimised on. paired_to: the system that PSNR and
    `differences` refer to, the first one unless given. compare: further pairs (a, b), reported in
    `comparisons` under "a - b". Intervals are over prompts; `seeds` holds each seed's value.
    The null compares two disjoint random parts of the reference, one of them as large as a system if M >= 2 P.

    Raises:
        FewstepError: shapes that do not fit, an unknown system to compare, too few prompts or reference images.
    """
    anchor = _check(systems, reference, prompts, features, paired_to, compare)
    count = next(iter(systems.values())).shape[0]
    counts = resample_counts(len(prompts), resamples, seed)
    rows: dict[str, dict[str, MetricSamples]] = {name: {} for name in systems}
    null: dict[str, Any] = {}
    halves = _halves(len(reference), len(prompts), max(count, 3), seed)
    for net in features:
        if progress:
            progress(f"features {net.name}")
        real = net(reference)
        target = ReferenceFeatures.of(real)
        for name, images in systems.items():
            found = net(images.flatten(0, 1)).unflatten(0, images.shape[:2])
            rows[name] |= _compared(found, target, counts, net.name)
        null |= _null(target, halves, net.name)
    for name, images in systems.items():
        if judge is not None:
            if progress:
                progress(f"judge on {name}")
            rows[name][f"judge:{judge.name}"] = _averaged(_judged(judge, images, prompts), counts)
        if name != anchor:
            twins = distances.psnr(as_float(images).flatten(0, 1), as_float(systems[anchor]).flatten(0, 1))
            rows[name]["psnr"] = _averaged(twins.unflatten(0, images.shape[:2]), counts)
    return {
        "prompts": len(prompts),
        "seeds": count,
        "reference": len(reference),
        "resamples": resamples,
        "paired_to": anchor,
        "metrics": _described(rows, anchor),
        "systems": {name: _as_dict(row, len(prompts)) for name, row in rows.items()},
        "differences": {name: _differences(rows, name, anchor, len(prompts)) for name in rows if name != anchor},
        "comparisons": {f"{a} - {b}": _differences(rows, a, b, len(prompts)) for a, b in compare},
        "null": null,
        "null_sizes": [len(part) for part in halves[0]],
    }


def check_sizes(prompts: int, reference: int) -> None:
    """Refuse an evaluation that is too small to have neighbours.

    Raises:
        FewstepError: too few prompts, or too few images in the reference.
    """
    if prompts <= distances.NEIGHBOURS:
        hint = "Give at least four held-out prompts; some hundreds give useful intervals."
        raise FewstepError("an evaluation needs more than three prompts", value=prompts, hint=hint)
    if reference < 2 * (distances.NEIGHBOURS + 1):
        hint = "Give at least eight, better 500."
        raise FewstepError("too few reference images", value=reference, hint=hint)


def _check(
    systems: Mapping[str, Tensor],
    reference: Tensor,
    prompts: Sequence[str],
    features: Sequence[FeatureNet],
    paired_to: str | None,
    compare: Sequence[tuple[str, str]],
) -> str:
    """The name that others are paired to, once all sizes and names fit."""
    check_sizes(len(prompts), len(reference))
    if not systems or not features:
        what = "an evaluation needs a system and a feature network"
        raise FewstepError(what, value=(len(systems), len(features)))
    first = next(iter(systems.values()))
    for name, images in systems.items():
        if images.ndim != 5 or images.shape[1] != len(prompts) or images.shape != first.shape:
            raise FewstepError(
                f"images of system {name!r} must be (seeds, {len(prompts)} prompts, 3, H, W), alike for all systems",
                value=tuple(images.shape),
                hint="Generate every system with the same prompts, seeds and size.",
            )
    names = [net.name for net in features]
    if len(set(names)) < len(names):
        raise FewstepError("two feature networks have one name", value=names, hint="Rename one: numbers would mix.")
    for asked in filter(None, (paired_to, *(name for pair in compare for name in pair))):
        if asked not in systems:
            raise FewstepError("a comparison names no system", value=asked, hint=nearest(asked, systems))
    return paired_to or next(iter(systems))


def _compared(found: Tensor, target: ReferenceFeatures, counts: Tensor, net: str) -> dict[str, MetricSamples]:
    """Distances, precision, recall and diversity of features (S, P, d) against real ones."""
    per_seed = [_distances(seed, target, counts) for seed in found]
    rows = {
        f"{key}:{net}": MetricSamples(
            torch.tensor([seed[key][0] for seed in per_seed], dtype=torch.float64),
            torch.stack([seed[key][1] for seed in per_seed]).mean(0),
        )
        for key in per_seed[0]
    }
    if len(found) > 1:  # one number from all seeds together, hence a single "seed"
        rows[f"diversity:{net}"] = _averaged(distances.diversity(found)[None], counts)
    return rows


def _distances(found: Tensor, target: ReferenceFeatures, counts: Tensor) -> dict[str, tuple[float, Tensor]]:
    """Estimate and bootstrap draws of each distance for one seed: found (P, d), counts (B, P)."""
    n, real = len(found), target.features
    inside, covers = distances.ball_matrices(found, real, radii_y=target.radii)
    precise, recall = inside.any(1).double(), float(covers.any(1).double().mean())
    # Balls keep their radii: a real image stays covered while one of the images whose ball it lies in is drawn.
    covered = (counts.float() @ covers.T.float() > 0).float().mean(1).double()
    return {
        "mmd": distances.mmd2_draws(found, real, target.kernel, counts, target.similarity),
        "frechet": distances.frechet_draws(found, real, counts, target.fit),
        "precision": (float(precise.mean()), counts @ precise / n),
        "recall": (recall, covered),
    }


def _null(target: ReferenceFeatures, halves: Sequence[tuple[Tensor, Tensor]], net: str) -> dict[str, Any]:
    """The same distances for real images against other real images: mean and range over random splits."""
    values: dict[str, list[float]] = {key: [] for key in ("mmd", "frechet", "precision", "recall")}
    for left, right in halves:
        precision, recall = target.precision_recall(left, right)
        values["mmd"].append(target.mmd2(left, right))
        values["frechet"].append(distances.frechet(target.features[left], target.features[right]))
        values["precision"].append(precision)
        values["recall"].append(recall)
    return {
        f"{key}:{net}": {"mean": sum(v) / len(v), "low": min(v), "high": max(v), "n": len(halves[0][0]), "seeds": v}
        for key, v in values.items()
    }


def _halves(total: int, prompts: int, repeats: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Disjoint random index sets: the first as large as a system (half the reference at most), the second the rest."""
    generator = torch.Generator().manual_seed(seed)
    size = max(distances.NEIGHBOURS + 1, min(prompts, total // 2))
    orders = [torch.randperm(total, generator=generator) for _ in range(repeats)]
    return [(order[:size], order[size:]) for order in orders]


def _averaged(values: Tensor, counts: Tensor) -> MetricSamples:
    """Metric that is a mean over prompts: values (S, P)."""
    values = values.double()
    return MetricSamples(values.mean(1), counts @ values.mean(0) / values.shape[1])


@torch.no_grad()
def _judged(judge: Judge, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Scores (S, P) of images (S, P, 3, H, W).

    Raises:
        NonFiniteError: a score is none.
    """
    scores = [
        judge.score(as_float(seed[start : start + CHUNK]), prompts[start : start + CHUNK]).double().cpu()
        for seed in images
        for start in range(0, len(prompts), CHUNK)
    ]
    found = torch.cat(scores)
    if not found.isfinite().all():
        raise NonFiniteError(f"scores of {judge.name} are not finite", hint="Look at this judge's weights.")
    return found.unflatten(0, images.shape[:2])


def _differences(rows: Mapping[str, Mapping[str, MetricSamples]], name: str, anchor: str, n: int) -> dict[str, Any]:
    """System minus anchor, for every metric that both have."""
    shared = [metric for metric in rows[name] if metric in rows[anchor]]
    return _as_dict({metric: rows[name][metric].minus(rows[anchor][metric]) for metric in shared}, n)


def _as_dict(row: Mapping[str, MetricSamples], n: int) -> dict[str, Any]:
    return {metric: measured.as_dict(n) for metric, measured in row.items()}


def _described(rows: Mapping[str, Mapping[str, MetricSamples]], anchor: str) -> dict[str, dict[str, str]]:
    """Label and direction of each metric, in the order of the table."""
    metrics = dict.fromkeys(metric for row in rows.values() for metric in row)
    found = {}
    for metric in metrics:
        kind, _, of = metric.partition(":")
        label, better = LABELS[kind]
        label = label.format(paired_to=anchor) + (f" ({of})" if of else "")
        found[metric] = {"label": label, "better": better, "kind": kind, "of": of}
    return found
