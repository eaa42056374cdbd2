import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPContinuous, VPDiscrete
from fewstep.schedules import Candidate, ModelInfo, ScheduleSpace
from fewstep.solvers import Decision

MODELS = {
    "vp": ModelInfo(VPContinuous(), Prediction()),
    "discrete": ModelInfo(VPDiscrete.from_betas(), Prediction("v_prediction"), blocks=20),
    "flow": ModelInfo(RectifiedFlow(), Prediction("velocity"), blocks=12),
    "ve": ModelInfo(VE(), Prediction("edm")),
}


def space(name, steps, parts=("times", "strategy", "first", "scales")):
    return ScheduleSpace(MODELS[name], steps, frozenset(parts), last=MODELS[name].process.noisiest * 0.01)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 9))
def test_every_product_is_a_plan_of_the_right_cost(name, seed, steps):
    """Random draws, mutations and crossings stay inside the space: falling times, exact cost, finite coefficients."""
    rng, here = random.Random(seed), space(name, steps)
    a, b = here.draw(rng), here.draw(rng)
    for candidate in (a, b, here.mutate(a, rng), here.cross(a, b, rng), here.mutate(here.cross(b, a, rng), rng)):
        assert candidate.cost() == steps
        assert list(candidate.times) == sorted(set(candidate.times), reverse=True)
        assert candidate.times[0] <= MODELS[name].process.noisiest
        assert candidate.plan(MODELS[name]).steps == steps


@pytest.mark.parametrize("name", ["discrete", "flow"])
def test_skipped_blocks_pay_for_more_rows(name):
    here = space(name, 5, ("times", "skips"))
    here = ScheduleSpace(here.model, 5, here.parts, last=here.last, most_skipped=0.5)
    rng, seen = random.Random(0), set()
    for _ in range(200):
        candidate = here.draw(rng)
        blocks = here.model.blocks
        assert 4 < candidate.cost(blocks) <= 5
        skipped = sum(map(len, candidate.skipped)) / blocks
        assert len(candidate.times) - skipped == pytest.approx(candidate.cost(blocks))
        seen.add(len(candidate.times))
        names = {row.network for row in candidate.plan(here.model).rows}
        assert names == {"main"} or any(n.startswith("skip:") for n in names)
    assert max(seen) > 5


def test_a_search_of_times_keeps_the_solver_of_its_parents():
    here, rng = space("vp", 4, ("times",)), random.Random(0)
    a, b = here.designs()[0], here.designs()[3]
    assert a.decisions != b.decisions
    for _ in range(30):
        assert here.cross(a, b, rng).decisions == a.decisions
        assert here.mutate(b, rng).decisions == b.decisions


def test_times_without_an_upper_end_are_drawn_by_their_ratio():
    """Uniform in sigma, nine of ten draws on VE lie above 8, where nothing is decided."""
    here, rng = ScheduleSpace(MODELS["ve"], 4, frozenset({"times"}), last=0.002), random.Random(0)
    times = [t for _ in range(200) for t in here.draw(rng).times]
    places = sorted((math.log(t) - math.log(0.002)) / (math.log(80.0) - math.log(0.002)) for t in times)
    assert max(abs(p - (k + 0.5) / len(places)) for k, p in enumerate(places)) < 0.06  # Kolmogorov-Smirnov
    assert min(c.times[-1] for c in here.designs()) == pytest.approx(0.002)
    assert all(here._time_at(here.place_of(t)) == pytest.approx(t) for t in (0.002, 0.1, 80.0))
    uniform = ScheduleSpace(MODELS["vp"], 4, frozenset({"times"}), last=0.01)
    times = sorted(t for _ in range(200) for t in uniform.draw(rng).times)
    assert max(abs((t - 0.01) / 0.99 - (k + 0.5) / len(times)) for k, t in enumerate(times)) < 0.06


def test_candidates_survive_json():
    candidate = Candidate(
        (0.9, 0.5), (Decision(order=1), Decision(order=2, form="noise", relax=0.1)), None, "zero", ((), (3, 4)),
        (1.01, 1.0, 0.99, 1.0),
    )  # fmt: skip
    assert Candidate.from_document(candidate.document()) == candidate


def test_the_usual_schedules_are_among_the_designs():
    designs = space("vp", 4).designs()
    assert len({c.key for c in designs}) == len(designs) >= 12
    assert {c.decisions[-1].order for c in designs} >= {1, 2, 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": frozenset({"time"})}, "times"),
        ({"parts": frozenset()}, "single point"),
        ({"steps": 0}, "at least 1"),
        ({"last": 2.0}, "no time lies"),
        ({"last": 0.1, "end": 0.2}, "noisier"),
        ({"parts": frozenset({"skips"})}, "no block may be skipped"),
    ],
)
def test_spaces_without_a_feasible_point_are_refused(arguments, message):
    with pytest.raises(FewstepError, match=message):
        ScheduleSpace(**{"model": MODELS["vp"], "steps": 4, **arguments})
