"""How a claim is asked: budgets, tuning, seeds, premises, and what an answer may not rest on."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from claims.claim import REAL, SETS, Arm, Claim, Numbers, Question, score
from fewstep.errors import FewstepError
from fewstep.metrics.intervals import seed_interval
from fewstep.runs import Run
from fewstep.testing.digits import DigitBed

LADDER = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""Learning rates that tuning climbs up and down."""
TUNED_ON = ("frechet", "error")
"""Metrics that a setting may be chosen by; for other questions the distance decides."""
ENOUGH = 1000
Setting = tuple[float, float]
"""Learning rate and momentum."""
Key = tuple[str, str]
"""(draw, metric) that a setting is chosen for."""


@dataclass(frozen=True)
class Protocol:
    """What all claims share.

    updates: of the arm whose update costs most; its passes are the budget of all. budget: of passes, in place of that.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    batch: int = 128
    updates: int = ENOUGH
    budget: int = 0
    tuning: float = 0.5
    tuning_seed: int = 1000
    curve: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


@dataclass(frozen=True)
class Costs:
    """Passes of an update of each trained arm, and the updates of each: at equal passes, and the same for all."""

    passes: Mapping[str, float]
    at_passes: Mapping[str, int]
    at_updates: int

    @classmethod
    def of(cls, claim: Claim, bed: DigitBed, protocol: Protocol) -> Costs:
        """Counted, not timed."""
        trained = {name: arm for name, arm in claim.arms.items() if arm.share}
        passes = {name: arm.passes(bed, protocol.batch) for name, arm in trained.items()}
        dearest = max(protocol.updates * passes[n] / arm.share + arm.spent for n, arm in trained.items())
        budget = protocol.budget or dearest
        updates = {n: max(8, int((budget - arm.spent) * arm.share / passes[n])) for n, arm in trained.items()}
        return cls(passes, updates, min(updates.values()))


# --- tuning ------------------------------------------------------------------------------------------------------


def climbed(
    measure: Callable[[Setting], Numbers | None], claim: Claim, keys: Sequence[Key]
) -> dict[Setting, Numbers | None]:
    """Settings tried: the claim's grid, and further along the ladder until no best one lies at an edge of it."""
    tried = {setting: measure(setting) for setting in itertools.product(claim.rates, claim.momenta)}
    while not claim.fixed:
        missing = {near for key in keys for near in _beside(best(tried, key)) if near not in tried}
        if not missing:
            break
        tried |= {setting: measure(setting) for setting in sorted(missing)}
    return tried


def best(tried: Mapping[Setting, Numbers | None], key: Key) -> Setting:
    """The setting with the lowest metric at the draw; the lowest rate where all have diverged."""
    draw, metric = key
    return min(sorted(tried), key=lambda setting: score(tried[setting], draw, metric))


def settled(tried: Mapping[Setting, Numbers | None], keys: Sequence[Key], near: float = 1.03) -> dict[Key, Setting]:
    """A setting for each draw: its best one, or one chosen for an earlier draw that one seed cannot tell from it."""
    chosen: dict[Key, Setting] = {}
    for key in keys:
        winner = best(tried, key)
        limit = near * score(tried[winner], *key)
        shared = [setting for setting in chosen.values() if score(tried[setting], *key) <= limit]
        chosen[key] = min(shared, key=lambda setting: score(tried[setting], *key)) if shared else winner
    return chosen


def _beside(setting: Setting) -> list[Setting]:
    """The next settings along the ladder."""
    rate, momentum = setting
    below, above = ([r for r in LADDER if r < rate], [r for r in LADDER if r > rate])
    return [(r, momentum) for r in (*below[-1:], *above[:1])]


def at_edge(tried: Mapping[Setting, Numbers | None], setting: Setting) -> bool:
    """Whether no lower or no higher rate was tried at this momentum."""
    rates = [rate for rate, momentum in tried if momentum == setting[1]]
    return setting[0] in (min(rates), max(rates))


# --- arms --------------------------------------------------------------------------------------------------------


def keys_of(claim: Claim, name: str) -> list[Key]:
    """What an arm is asked, and so tuned, for."""
    asked = [(draw, q.metric) for q in claim.all_questions() for arm, draw in q.sides if arm == name]
    return sorted({(draw, metric if metric in TUNED_ON else "frechet") for draw, metric in asked})


def compared(
    name: str, claim: Claim, bed: DigitBed, run: Run, protocol: Protocol, costs: Costs, mark: str
) -> dict[str, Any]:
    """Tune and train one arm; units of the run, so that a killed one goes on. mark: its `fingerprint`."""
    arm = claim.all_arms()[name]

    def trained(updates: int, seed: int, setting: Setting) -> Numbers | None:
        told = f"{mark}-{updates}-rate-{setting[0]:.0e}-momentum-{setting[1]:.0e}-seed-{seed}"
        return run.unit(told, lambda: _trained(arm, bed, updates, protocol.batch, seed, setting))

    keys = keys_of(claim, name) or [(draw, "frechet") for draw in arm.untrained(bed)]
    if not arm.share:
        rows = [trained(0, seed, (0.0, 0.0)) for seed in protocol.seeds]
        runs = [_run(0, (0.0, 0.0), rows)]
        return {"updates": 0, "passes_per_update": 0.0, "width": arm.width, "tried": [], "chosen": [], "runs": runs}
    whole, few = costs.at_passes[name], costs.at_updates
    half = max(8, int(protocol.tuning * whole))
    if arm.setting is None:
        tried = climbed(lambda setting: trained(half, protocol.tuning_seed, setting), claim, keys)
    else:
        tried = {arm.setting: None}
    chosen = settled(tried, keys)
    lengths = [whole] if whole < 1.05 * few else [whole, few]
    runs = [
        _run(length, setting, [trained(length, seed, setting) for seed in protocol.seeds])
        for length in lengths
        for setting in sorted(set(chosen.values()))
    ]
    edge = {key: arm.setting is None and not claim.fixed and at_edge(tried, s) for key, s in chosen.items()}
    return {
        "updates": whole, "passes_per_update": costs.passes[name] / protocol.batch, "width": arm.width,
        "tried": [{"learning_rate": r, "momentum": m, "draws": t} for (r, m), t in tried.items() if not arm.setting],
        "chosen": [
            {"draw": k[0], "metric": k[1], "learning_rate": s[0], "momentum": s[1], "edge": edge[k]}
            for k, s in chosen.items()
        ],
        "runs": runs, "teacher": arm.untrained(bed),
    }  # fmt: skip


def curve(
    claim: Claim, bed: DigitBed, run: Run, protocol: Protocol, row: Mapping[str, Any], mark: str
) -> dict[str, Any]:
    """The first question's arm at shorter and longer trainings: where more updates stop helping."""
    (name, draw), _ = claim.questions[0].sides
    arm, key = claim.arms[name], (draw, "frechet")
    setting = next((c["learning_rate"], c["momentum"]) for c in row["chosen"] if (c["draw"], c["metric"]) == key)
    points = []
    for share in protocol.curve:
        updates, values = max(8, round(share * row["updates"])), []
        for seed in protocol.seeds[:2]:
            told = f"{mark}-curve-{updates}-seed-{seed}"
            found = run.unit(told, lambda n=updates, s=seed: _trained(arm, bed, n, protocol.batch, s, setting))
            values.append(score(found, *key))
        points.append({"updates": updates, "frechet": values})
    return {"arm": name, "draw": draw, "points": points}


def _trained(arm: Arm, bed: DigitBed, updates: int, batch: int, seed: int, setting: Setting) -> Numbers | None:
    """One training; None where it diverged, which is a result."""
    try:
        return arm.train(bed, updates, batch, seed, learning_rate=setting[0] or 1e-3, momentum=setting[1])
    except FewstepError as error:
        print(f"diverged: {str(error).splitlines()[0]}", flush=True)
        return None


def _run(updates: int, setting: Setting, seeds: Sequence[Numbers | None]) -> dict[str, Any]:
    return {"updates": updates, "learning_rate": setting[0], "momentum": setting[1], "seeds": list(seeds),
            "summary": summary(seeds)}  # fmt: skip


def summary(seeds: Sequence[Numbers | None]) -> dict[str, Any] | None:
    """Mean and interval of every metric of every draw; None where a seed diverged."""
    good = [seed for seed in seeds if seed is not None]
    if len(good) < max(2, len(seeds)):
        return None
    return {
        draw: {
            metric: seed_interval(torch.tensor([s[draw][metric] for s in good], dtype=torch.float64)).as_dict()
            for metric in good[0][draw]
        }
        for draw in good[0]
    }


def fingerprint(claim: Claim, name: str, bed: DigitBed) -> str:
    """Tells an arm that is asked otherwise since its results were written; names in the code may change freely."""
    arm = claim.all_arms()[name]
    draws = {} if arm.draws is None else arm.draws(bed.process)
    told = [name, claim.version, arm.width, arm.share, arm.spent, arm.setting, SETS]
    told += [[draw, [f"{t:.6g}" for t in steps.times], steps.fresh] for draw, steps in draws.items()]
    told += [claim.rates, claim.momenta, claim.fixed] if arm.share else []
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


# --- answers -----------------------------------------------------------------------------------------------------


def answers(claim: Claim, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every question whose arms are there, at equal passes and at equal updates, each with its premises."""
    for question in claim.questions:
        for at in ("passes", "updates"):
            found = _answer(question, rows, at)
            if found is None:
                continue
            premises = list(_premises(claim, question, rows, at))
            if not all(premise["holds"] for premise in premises):
                found["verdict"] = CANNOT
            yield {**found, "at": at, "premises": premises, "but": _reservations(question, rows, at)}


CANNOT = "cannot be shown here"


def _premises(
    claim: Claim, question: Question, rows: Mapping[str, Mapping[str, Any]], at: str
) -> Iterator[dict[str, Any]]:
    """Each with its number and interval; one whose arms are not there yet does not hold."""
    asked = [("real samples are better than the untreated arm", question.room())]
    asked += [(question.premise, claim.premises[question.premise])] if question.premise else []
    for says, premise in asked:
        if premise is None:
            continue
        found = _answer(premise, rows, at)
        yield {"says": says, **(found or asdict(premise)), "holds": found is not None and found["verdict"] == "yes"}


def _answer(question: Question, rows: Mapping[str, Mapping[str, Any]], at: str) -> dict[str, Any] | None:
    sides = [_seeds(rows.get(arm), draw, question.metric, at) for arm, draw in question.sides]
    if any(seeds is None for seeds in sides):
        return None
    pairs = [pair for pair in zip(*sides, strict=False) if None not in pair]  # type: ignore[arg-type]
    if len(pairs) < 2:
        return None
    return question.answer(*zip(*pairs, strict=True))


def ran(row: Mapping[str, Any], draw: str, metric: str, at: str) -> Mapping[str, Any]:
    """The trainings of an arm with the setting that is chosen for a draw and a metric."""
    wanted = (draw, metric if metric in TUNED_ON else "frechet")
    runs = sorted(row["runs"], key=lambda r: r["updates"], reverse=at == "passes")
    for chosen in row["chosen"]:
        if (chosen["draw"], chosen["metric"]) == wanted:
            setting = chosen["learning_rate"], chosen["momentum"]
            runs = [r for r in runs if (r["learning_rate"], r["momentum"]) == setting]
    return runs[0]  # type: ignore[no-any-return]


def _seeds(row: Mapping[str, Any] | None, draw: str, metric: str, at: str) -> list[Numbers | None] | None:
    return None if row is None else ran(row, draw, metric, at)["seeds"]


def _reservations(question: Question, rows: Mapping[str, Mapping[str, Any]], at: str) -> list[str]:
    """What a verdict should not rest on, and does."""
    found = []
    for arm, draw in question.sides:
        row = rows[arm]
        run = ran(row, draw, question.metric, at)
        if any(c["edge"] for c in row["chosen"] if c["draw"] == draw):
            found.append(f"{arm} was tuned to the edge of its grid")
        if arm != REAL and row["chosen"] and run["updates"] < ENOUGH:
            found.append(f"{arm} had {run['updates']} updates")
        lost = sum(seed is None for seed in run["seeds"])
        if lost:
            found.append(f"{lost} of {len(run['seeds'])} seeds of {arm} diverged")
    return found
