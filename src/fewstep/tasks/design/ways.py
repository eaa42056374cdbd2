"""Four ways to sequences of high score from a masked model, and two that know no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from fewstep.alignment.token_policy import path_log_prob, token_policy_gradient, walk_tokens
from fewstep.data.sequences import ScoredSequences
from fewstep.discrete import TokenDenoiser, reveal_plan, sample_tokens, tilted_tokens
from fewstep.distillation.core import Loss
from fewstep.errors import FewstepError, nearest
from fewstep.tasks.design.model import SequenceModel, SequenceNetwork, fit_model
from fewstep.tasks.design.steering import steer_tokens
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import Stage, StageConfig, Turn


@dataclass(frozen=True)
class DesignSettings:
    """How sequences are proposed.

    Attributes:
        scale: of the tilt exp(scale * score / deviation of the scores); more reaches higher, and farther from data.
        steps: reveals of a sequence.
        training: updates of the model.
        updates: updates of the policy (`grpo`).
        mutations: letters that the evolutionary search changes on average.
        parents: best sequences that it breeds from.
        seed: of everything.

    Raises:
        FewstepError: a negative scale.
    """

    scale: float = 4.0
    steps: int = 4
    training: int = 300
    updates: int = 60
    mutations: float = 1.0
    parents: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise FewstepError("the scale of a tilt must not be negative", value=self.scale, hint="Use 4.")


Proposer = Callable[[ScoredSequences, int, DesignSettings, torch.Generator], tuple[Tensor, SequenceModel | None]]
"""(scored so far, how many, settings, generator) -> tokens (n, L), perhaps alike, and the model that they are from."""


def conditioning(model: SequenceModel, count: int, scale: float, steps: int, generator: torch.Generator) -> Tensor:
    """Sequences of levels drawn from the tilted law of levels: the tilt, as far as levels tell scores."""
    levels = torch.multinomial(model.tilted_levels(scale), count, replacement=True, generator=generator)
    plan, parts = reveal_plan(model.process, steps), []
    for level, size in zip(*levels.unique(return_counts=True), strict=True):
        seeds = _seeds(int(size), generator)
        parts.append(sample_tokens(plan, model.denoiser(int(level)), seeds=seeds, length=model.network.length))
    return torch.cat(parts)


def guidance(model: SequenceModel, count: int, scale: float, steps: int, generator: torch.Generator) -> Tensor:
    """Sequences of the denoiser that looks one reveal ahead, by the model's own value."""
    tilted = tilted_tokens(model.denoiser(), partial(model.value, scale=scale))
    plan, seeds = reveal_plan(model.process, steps), _seeds(count, generator)
    return sample_tokens(plan, tilted, seeds=seeds, length=model.network.length)


def smc(model: SequenceModel, count: int, scale: float, steps: int, generator: torch.Generator) -> Tensor:
    """Particles of the denoiser, resampled by the model's value: eight for each that is wanted."""
    value = partial(model.value, scale=scale)
    plan, length = reveal_plan(model.process, steps), model.network.length
    many = 8 * count
    found = steer_tokens(
        plan, model.denoiser(), value, count=many, length=length, generator=generator, value=value
    ).samples
    return found[torch.randperm(many, generator=generator)]


def tuned_policy(
    model: SequenceModel,
    reward: Callable[[Tensor], Tensor],
    *,
    steps: int,
    updates: int,
    kl: float,
    size: int = 128,
    rate: float = 2e-3,
    normalise: bool = False,
    seed: int = 0,
) -> SequenceNetwork:
    """The model's network, tuned by a reward (B, L) -> (B,) through its own reveals; walks per update: `size`.

    Without normalisation the optimum is the law tilted by exp(reward / kl).
    """
    network = SequenceNetwork(*_shape(model.network), width=model.network.level.embedding_dim)
    network.load_state_dict(model.network.state_dict())
    student, plan = TokenDenoiser(network, model.process), reveal_plan(model.process, steps)

    def turns(step: int, generator: torch.Generator) -> Iterator[Turn]:
        def loss() -> Loss:
            states = walk_tokens(plan, student, size, network.length, generator)
            with torch.no_grad():
                reference = path_log_prob(plan, model.denoiser(), states)
            log_prob = path_log_prob(plan, student, states)
            return token_policy_gradient(log_prob, reward(states[-1]), reference=reference, kl=kl, normalise=normalise)

        yield ("model",), loss

    config = StageConfig(steps=updates, batch=size, learning_rate=rate, seed=seed, device="cpu", ema=0.9, warmup=5)
    stage = Stage({"network": network}, lambda g: {}, lambda b, g: (torch.zeros(()), {}), lambda f: None, turns=turns)
    fit(stage, config, None, accelerator_for(config), quiet=True)
    return network.eval().requires_grad_(False)


def grpo(
    model: SequenceModel, count: int, settings: DesignSettings, scale: float, generator: torch.Generator
) -> Tensor:
    """Sequences of the model tuned by its own expected score."""
    network = tuned_policy(
        model, model.score, steps=settings.steps, updates=settings.updates, kl=1 / max(scale, 1e-6), seed=settings.seed
    )
    tuned = replace(model, network=network).denoiser()
    plan = reveal_plan(model.process, settings.steps)
    return sample_tokens(plan, tuned, seeds=_seeds(count, generator), length=model.network.length)


def random_search(
    scored: ScoredSequences, count: int, settings: DesignSettings, generator: torch.Generator
) -> tuple[Tensor, None]:
    """Sequences without any law."""
    return torch.randint(len(scored.alphabet), (count, scored.length), generator=generator), None


def evolution(
    scored: ScoredSequences, count: int, settings: DesignSettings, generator: torch.Generator
) -> tuple[Tensor, None]:
    """Children of the best: letters of two parents, some of them changed."""
    finite = scored.scores.nan_to_num(nan=-torch.inf)
    best = scored.tokens[finite.topk(min(settings.parents, len(scored))).indices]
    pairs = best[torch.randint(len(best), (2, count), generator=generator)]
    child = torch.where(torch.rand(count, scored.length, generator=generator) < 0.5, pairs[0], pairs[1])
    changed = torch.rand(count, scored.length, generator=generator) < settings.mutations / scored.length
    letters = torch.randint(len(scored.alphabet), (count, scored.length), generator=generator)
    return torch.where(changed, letters, child), None


def by_model(
    way: str, scored: ScoredSequences, count: int, settings: DesignSettings, generator: torch.Generator
) -> tuple[Tensor, SequenceModel]:
    """Fit a model to what was scored, and propose by one of its ways."""
    model = fit_model(scored, steps=settings.training, seed=settings.seed)
    scale = settings.scale / float(scored.scores[scored.scores.isfinite()].std().clamp(min=1e-6))
    if way == "grpo":
        return grpo(model, count, settings, scale, generator), model
    return _BY_MODEL[way](model, count, scale, settings.steps, generator), model


_BY_MODEL: Mapping[str, Callable[[SequenceModel, int, float, int, torch.Generator], Tensor]] = {
    "conditioning": conditioning,
    "guidance": guidance,
    "smc": smc,
}
WAYS: Mapping[str, Proposer] = {
    **{way: partial(by_model, way) for way in (*_BY_MODEL, "grpo")},
    "evolution": evolution,
    "random": random_search,
}
"""By name: scored sequences, count, settings, generator -> proposals."""


def way_named(name: str) -> Proposer:
    """A way by its name.

    Raises:
        FewstepError: an unknown one.
    """
    if name not in WAYS:
        raise FewstepError("unknown way of design", value=name, hint=nearest(name, WAYS))
    return WAYS[name]


def _seeds(count: int, generator: torch.Generator) -> list[int]:
    return torch.randint(2**31, (count,), generator=generator).tolist()


def _shape(network: SequenceNetwork) -> tuple[int, int, int]:
    return network.length, network.symbols, network.levels
