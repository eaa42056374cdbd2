"""What may vary in a schedule, and how candidates are drawn, mutated and crossed; every product is feasible."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.errors import FewstepError, nearest
from fewstep.schedules.candidate import Candidate, ModelInfo
from fewstep.solvers import Decision, grids

PARTS = ("times", "strategy", "first", "skips", "scales")
DESIGNS = {
    "ddim": Decision(order=1),
    "2m": Decision(order=2),
    "3m": Decision(order=3),
    "unipc": Decision(order=2, corrector=True),
    "noise 2": Decision(order=2, form="noise"),
    "noise 3": Decision(order=3, form="noise"),
}
"""Hand-made solvers, the same decision in every step: where searches begin."""


@dataclass(frozen=True)
class ScheduleSpace:
    """A search space of schedules with a fixed number of network evaluations.

    steps: network evaluations; with `skips`, steps x blocks is the budget of executed blocks and rows may be more.
    parts: what varies: `times`; `strategy` (order, form, points, relaxation, corrector of every step); `first`
        (analytic first steps); `skips` (blocks left out per row); `scales` (Q-Sched's ramp).
    last: the cleanest time a row may have; end: where the last row ends (None: clean).
    spread: relative size of a mutation of a time; rate: chance that a step mutates (arXiv 2312.07243).
    most_skipped: largest share of a row's blocks that may be skipped.
    """

    model: ModelInfo
    steps: int
    parts: frozenset[str] = frozenset({"times", "strategy"})
    last: float = 0.0
    end: float | None = None
    spread: float = 0.08
    rate: float = 0.3
    most_skipped: float = 0.1

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise FewstepError("unknown part of a search space", value=part, hint=nearest(part, PARTS))
        if not self.parts:
            raise FewstepError("the search space is a single point", hint=f"Let some of {', '.join(PARTS)} vary.")
        if self.steps < 1:
            raise FewstepError("steps must be at least 1", value=self.steps)
        if not self.last < self.model.process.noisiest:
            what = "no time lies between `last` and the noisiest time of the process"
            raise FewstepError(what, value=(self.last, self.model.process.noisiest), hint="Lower `last`.")
        if self.end is not None and self.end > self.last:
            raise FewstepError("`end` must not be noisier than `last`", value=(self.end, self.last))
        if "skips" in self.parts and self.model.blocks * self.most_skipped < 1:
            what = "no block may be skipped"
            raise FewstepError(what, value=(self.model.blocks, self.most_skipped), hint="Raise most_skipped.")

    @property
    def forms(self) -> tuple[str, ...]:
        """What steps may interpolate."""
        return ("noise", "data", "fitted") if self.model.statistics is not None else ("noise", "data")

    def designs(self, schedules: Iterable[Sequence[float]] = ()) -> list[Candidate]:
        """Hand-made schedules: the usual grids, and `schedules`, with the usual solvers."""
        times = list(_distinct([*self._usual_grids(), *(tuple(float(t) for t in s) for s in schedules)]))
        made = [
            self._feasible(Candidate(t, (decision,) * len(t), self.end))
            for t, decision in itertools.product(times, DESIGNS.values())
        ]
        return list({c.key: c for c in made}.values())

    def draw(self, rng: random.Random) -> Candidate:
        """A candidate drawn from the whole space."""
        times = sorted((self._time_at(rng.random()) for _ in range(self.steps)), reverse=True)
        if "times" not in self.parts:
            times = list(rng.choice(self._usual_grids()))
        candidate = Candidate(tuple(times), tuple(self._decision(k, rng) for k in range(len(times))), self.end)
        return self._feasible(self._mutate_whole(candidate, rng, 1.0), rng)

    def mutate(self, parent: Candidate, rng: random.Random) -> Candidate:
        """A candidate near its parent; never the parent itself unless every draw says so."""
        times, decisions = list(parent.times), list(parent.decisions)
        for k in range(len(times)):
            if "times" in self.parts and rng.random() < self.rate:
                times[k] *= 1 + rng.gauss(0, self.spread)
            if "strategy" in self.parts and rng.random() < self.rate:
                decisions[k] = self._changed(decisions[k], k, rng)
        changed = dataclasses.replace(parent, times=tuple(times), decisions=tuple(decisions))
        return self._feasible(self._mutate_whole(changed, rng, self.rate), rng)

    def cross(self, mother: Candidate, father: Candidate, rng: random.Random) -> Candidate:
        """Each component from one of two parents, step by step where both have as many."""
        if len(mother.times) != len(father.times):
            return self.mutate(mother, rng)

        def mix(a: Sequence[Any], b: Sequence[Any]) -> tuple[Any, ...]:
            whole = rng.random()
            if whole < 0.5 or len(a) != len(b):
                return tuple(a if whole < 0.25 else b)
            return tuple(rng.choice(pair) for pair in zip(a, b, strict=True))

        return self._feasible(
            dataclasses.replace(
                mother,
                times=mix(mother.times, father.times),
                decisions=mix(mother.decisions, father.decisions) if "strategy" in self.parts else mother.decisions,
                first=rng.choice((mother.first, father.first)),
                skipped=mix(mother.skipped, father.skipped),
                scales=rng.choice((mother.scales, father.scales)),
            ),
            rng,
        )

    # --- inside -----------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _by_ratio(self) -> bool:
        """Whether times are compared by their ratio. Searches ask for each time of each of thousands of children."""
        return self.model.process.unbounded

    @functools.cached_property
    def _least(self) -> float:
        """The cleanest time a row may have: above the end, and never zero."""
        floor = 1e-9 if self._by_ratio and self.last > 0 else 1e-3
        return max(self.last, self.model.process.noisiest * floor, (self.end or 0.0) * 1.001)

    def place_of(self, time: float) -> float:
        """Where a time lies in the space, 0 the cleanest and 1 the noisiest; by ratios where sigma is unbounded."""
        low, high = self._least, self.model.process.noisiest
        if self._by_ratio:
            return math.log(time / low) / math.log(high / low)
        return (time - low) / (high - low)

    def _time_at(self, place: float) -> float:
        """The time at a place (inverse of `place_of`)."""
        low, high = self._least, self.model.process.noisiest
        if self._by_ratio:
            return low * (high / low) ** place
        return low + (high - low) * place

    def _usual_grids(self) -> list[tuple[float, ...]]:
        process, least = self.model.process, self._least
        if self._by_ratio:
            return self._grids_of_ratios()
        uniform = grids.uniform(process, self.steps, self.end)
        made = [tuple(uniform.times.tolist())]
        if self.steps > 1:
            last = max(least, float(uniform.times[-1]) / 4)
            made.append(tuple(grids.polynomial(process, self.steps, last).times.tolist()))
            alpha_first = float(process.alpha(process.noisiest))
            first = process.noisiest if alpha_first > 0 else float(uniform.times[0] * (1 - 1 / (4 * self.steps)))
            for build in (grids.uniform_lambda, grids.karras):
                times = build(process, self.steps, last, first=first).times
                made.append((process.noisiest, *times.tolist()[1:]))
        return made

    def _grids_of_ratios(self) -> list[tuple[float, ...]]:
        """Equal steps in log sigma and on EDM's curve, to the least time and to some above it."""
        process, made = self.model.process, []
        for share in (0.0, 0.1, 0.25) if self.steps > 1 else (0.0,):
            for build in (grids.karras, grids.uniform_lambda):
                times = build(process, self.steps, self._time_at(share)).times
                made.append(tuple(times.tolist()))
        return made

    def _decision(self, k: int, rng: random.Random) -> Decision:
        if "strategy" not in self.parts:
            return Decision(order=2)
        order = min(rng.choices((1, 2, 3, 4), (0.2, 0.4, 0.3, 0.1))[0], k + 1)
        return Decision(
            order=order,
            form=rng.choice(self.forms),
            points=rng.choice((None, 1, 2)) if order > 3 else rng.choice((None, 1)) if order > 2 else None,
            relax=rng.choice((0.0, rng.gauss(0, 0.05))) if order > 1 else 0.0,
            corrector=rng.random() < 0.5,
        )

    def _changed(self, decision: Decision, k: int, rng: random.Random) -> Decision:
        fresh = self._decision(k, rng)
        part = rng.choice(("order", "form", "relax", "corrector"))
        if part == "order":
            return dataclasses.replace(decision, order=fresh.order, points=fresh.points)
        if part == "relax":
            return dataclasses.replace(decision, relax=decision.relax + rng.gauss(0, 0.05))
        return dataclasses.replace(decision, **{part: getattr(fresh, part)})

    def _mutate_whole(self, candidate: Candidate, rng: random.Random, rate: float) -> Candidate:
        changes: dict[str, Any] = {}
        if "first" in self.parts and rng.random() < rate:
            kinds = ["network", "zero", "gaussian", *(["mean"] if self.model.mean is not None else [])]
            changes["first"] = rng.choice(kinds)
        if "scales" in self.parts and rng.random() < rate:
            changes["scales"] = tuple(min(1.2, max(0.8, s + rng.gauss(0, 0.01))) for s in candidate.scales)
        if "skips" in self.parts and rng.random() < rate:
            changes["skipped"] = tuple(self._skips(rng) for _ in candidate.times)
        return dataclasses.replace(candidate, **changes)

    def _skips(self, rng: random.Random) -> tuple[int, ...]:
        if rng.random() < 0.5:
            return ()
        count = rng.randint(1, int(self.model.blocks * self.most_skipped))
        return tuple(sorted(rng.sample(range(self.model.blocks), count)))

    def _feasible(self, candidate: Candidate, rng: random.Random | None = None) -> Candidate:
        """Times in order, inside and apart; as many rows as the budget pays for."""
        candidate, blocks = _in_order(candidate), self.model.blocks
        while candidate.cost(blocks) > self.steps + 1e-9:
            candidate = _without(
                candidate, rng.randrange(len(candidate.times)) if rng else max(len(candidate.times) - 2, 0)
            )
        while candidate.cost(blocks) <= self.steps - 1 + 1e-9:
            decision = self._decision(len(candidate.times), rng or random.Random(0))
            candidate = _with(candidate, self._widest(candidate.times), decision)
        skipped = candidate.skipped if any(candidate.skipped) else ()
        return dataclasses.replace(candidate, times=tuple(self._apart(candidate.times)), skipped=skipped)

    def _widest(self, times: Sequence[float]) -> float:
        """The middle of the widest gap in half log-SNR (a clean end counts as the least time)."""
        ends = [*sorted(times, reverse=True), max(self._least, (self.end or 0.0))]
        lam = self.model.process.lam(torch.tensor(ends, dtype=torch.float64)).clamp(-20, 20)
        gap = int(lam.diff().argmax())
        return self._time_at((self.place_of(ends[gap]) + self.place_of(ends[gap + 1])) / 2)

    def _apart(self, times: Sequence[float]) -> list[float]:
        noisiest, room = self.model.process.noisiest, 1e-3
        fixed: list[float] = []
        for k, t in enumerate(sorted(times, reverse=True)):
            most = self._time_at(self.place_of(fixed[-1]) - room) if fixed else noisiest
            fixed.append(min(most, max(t, self._time_at((len(times) - 1 - k) * room))))
        return fixed


def _without(candidate: Candidate, k: int) -> Candidate:
    """The candidate without row k."""
    parts = {name: getattr(candidate, name) for name in ("times", "decisions", "skipped")}
    return dataclasses.replace(candidate, **{name: part[:k] + part[k + 1 :] for name, part in parts.items()})


def _with(candidate: Candidate, time: float, decision: Decision) -> Candidate:
    """The candidate with a time more; the last row gets the decision."""
    times = tuple(sorted((*candidate.times, time), reverse=True))
    skipped = (*candidate.skipped, ()) if candidate.skipped else ()
    return dataclasses.replace(candidate, times=times, decisions=(*candidate.decisions, decision), skipped=skipped)


def _in_order(candidate: Candidate) -> Candidate:
    """Times falling, with what they skip; decisions belong to the rows."""
    order = sorted(range(len(candidate.times)), key=lambda k: -candidate.times[k])
    skipped = tuple(candidate.skipped[k] for k in order) if any(candidate.skipped) else ()
    return dataclasses.replace(candidate, times=tuple(candidate.times[k] for k in order), skipped=skipped)


def _distinct(values: Iterable[tuple[float, ...]]) -> Iterator[tuple[float, ...]]:
    seen = set()
    for value in values:
        rounded = tuple(round(v, 6) for v in value)
        if rounded not in seen:
            seen.add(rounded)
            yield value
