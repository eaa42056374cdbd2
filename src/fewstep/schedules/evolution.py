"""Evolutionary searches over schedules: AutoDiffusion's, and S3, which asks a predictor before it asks the model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from fewstep.schedules.candidate import Candidate
from fewstep.schedules.pool import EvaluationPool
from fewstep.schedules.predictor import Predictor
from fewstep.schedules.space import ScheduleSpace

Propose = Callable[[ScheduleSpace, EvaluationPool, random.Random], Candidate]
"""The next candidate, decided from what the pool holds."""


def random_search(
    space: ScheduleSpace, pool: EvaluationPool, budget: int, *, seed: int = 0, starts: Sequence[Candidate] = ()
) -> None:
    """The control: hand-made schedules, then draws from the whole space."""
    _search(space, pool, budget, seed, starts, lambda s, p, rng: s.draw(rng), "random")


def autodiffusion(
    space: ScheduleSpace,
    pool: EvaluationPool,
    budget: int,
    *,
    seed: int = 0,
    starts: Sequence[Candidate] = (),
    parents: int = 10,
) -> None:
    """Evolutionary search of times and skipped blocks (arXiv 2309.10438, algorithm 1).

    The ten best ever seen are parents; of the children, half are mutations, a quarter crossed, the rest random. The
    published generations of 50 are one at a time here, so that any number of workers can share them.
    """

    def propose(space: ScheduleSpace, pool: EvaluationPool, rng: random.Random) -> Candidate:
        elders = [entry.candidate for entry in pool.best(parents)]
        luck = rng.random()
        if luck < 0.5:
            return space.mutate(rng.choice(elders), rng)
        if luck < 0.75 and len(elders) > 1:
            mother, father = rng.sample(elders, 2)
            return space.cross(mother, father, rng)
        return space.draw(rng)

    _search(space, pool, budget, seed, starts, propose, "autodiffusion")


def s3(
    space: ScheduleSpace,
    pool: EvaluationPool,
    budget: int,
    *,
    seed: int = 0,
    starts: Sequence[Candidate] = (),
    parents: int = 15,
    stage: int = 24,
    offspring: int = 96,
) -> None:
    """S3, the predictor-guided search of solver schedules (arXiv 2312.07243, section 4).

    In stages: train the predictor on all evaluations by pairwise ranking, let it choose the best of many offspring of
    the best parents, evaluate those truly. Every fourth child is taken without asking, so that the predictor also
    learns where it is wrong. The published code holds no predictor; this one follows the paper's description.

    Args:
        stage: evaluations between two trainings.
        offspring: children among which the predictor chooses one.
    """
    predictor: tuple[int, Predictor] | None = None

    def propose(space: ScheduleSpace, pool: EvaluationPool, rng: random.Random) -> Candidate:
        nonlocal predictor
        entries = pool.entries()
        now = len(entries) // stage
        if predictor is None or predictor[0] != now:
            seen = entries[: now * stage]
            predictor = (now, Predictor.trained(space, seen, seed)) if len(seen) >= stage else None
        elders = [entry.candidate for entry in pool.best(parents)]

        def child() -> Candidate:
            if rng.random() < 0.3 and len(elders) > 1:
                mother, father = rng.sample(elders, 2)
                return space.cross(mother, father, rng)
            return space.mutate(_early(elders, rng), rng)

        if predictor is None or rng.random() < 0.25:
            return child()
        children = predictor[1].ranked([child() for _ in range(offspring)])
        return next((c for c in children if not pool.knows(c)), None) or space.draw(rng)

    _search(space, pool, budget, seed, starts, propose, "s3")


def _search(
    space: ScheduleSpace,
    pool: EvaluationPool,
    budget: int,
    seed: int,
    starts: Sequence[Candidate],
    propose: Propose,
    name: str,
) -> None:
    """Fill the pool: first the designs, then proposals, each from a stream of its own number."""
    for candidate in [*starts, *space.designs()]:
        if len(pool) >= budget:
            return
        pool.score(candidate, "design")
    misses = 0
    while len(pool) < budget:
        rng = random.Random(f"{seed}/{len(pool)}/{misses}")
        candidate = propose(space, pool, rng)
        if pool.knows(candidate):
            misses += 1
            candidate = space.draw(rng) if misses < 50 else space.mutate(space.draw(rng), rng)
            if misses > 200:  # the space holds no more than this
                return
            if pool.knows(candidate):
                continue
        misses = 0
        pool.score(candidate, name)


def _early(elders: Sequence[Candidate], rng: random.Random) -> Candidate:
    """One of the best, the very best more often."""
    return elders[min(rng.randrange(len(elders)), rng.randrange(len(elders)))]
