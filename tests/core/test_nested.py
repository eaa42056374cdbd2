"""Plans of plans: what runs, what it is shown, what a file may say, and the covariance at the seams of chunks."""

import itertools
import json
import weakref

import pytest
import torch

from fewstep.denoiser import Guided
from fewstep.errors import FewstepError, NonFiniteError, PlanError
from fewstep.executor import Noise, sample
from fewstep.nested import sample_nested, seed_of_part
from fewstep.plan import NestedPlan, PlanEntry, nested_plan
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.solvers import Grid, consistency, dpm_solver_pp_2m, grids

PROCESS = RectifiedFlow()
CLEAN = Prediction("sample")
SHORT = consistency(PROCESS, CLEAN, grids.uniform(PROCESS, 2))
LONGER = consistency(PROCESS, CLEAN, grids.uniform(PROCESS, 3))


def halved(k, shown):
    """A network whose answer depends on the part and on what it is shown."""
    extra = 0.1 * k if shown is None else 0.1 * k + 0.2 * shown.flatten(1).mean(1).reshape(-1, 1)
    return lambda x, time: torch.tanh(x) * time / 1000 + extra


def parts(plan, network=halved, **settings):
    return list(sample_nested(plan, network, **{"seeds": [3, 4], "shape": (6,), **settings}))


# --- running ----------------------------------------------------------------------------------------------------


def test_one_part_is_the_ordinary_plan():
    (found,) = parts(NestedPlan((SHORT,)), count=1)
    assert torch.equal(found, sample(SHORT, halved(0, None), seeds=[3, 4], shape=(6,)))


def test_each_part_has_its_plan_length_and_context():
    plan = NestedPlan((LONGER, SHORT), (PlanEntry(0, length=4), PlanEntry(1, length=2, overlap=3)))
    seen, calls = [], []

    def network(k, shown):
        seen.append(shown)
        return lambda x, time: calls.append(k) or halved(k, shown)(x, time)

    found = parts(plan, network, count=4)
    assert [x.shape[1] for x in found] == [4, 2, 2, 2]
    assert [len(list(group)) for _, group in itertools.groupby(calls)] == [3, 2, 2, 2]
    assert plan.evaluations(4) == len(calls)
    assert seen[0] is None
    whole = torch.cat(found, 1)
    for k, end in ((1, 4), (2, 6), (3, 8)):
        assert torch.equal(seen[k], whole[:, end - 3 : end])


def test_without_a_number_the_whole_part_before_is_shown():
    seen = []
    scales = NestedPlan((SHORT,), (PlanEntry(),) * 3, "scale", endless=False)
    found = parts(scales, lambda k, shown: seen.append(shown) or halved(k, shown), shape=lambda k: (2**k,))
    assert [x.shape[1] for x in found] == [1, 2, 4]
    assert seen[0] is None
    assert all(torch.equal(a, b) for a, b in zip(seen[1:], found, strict=False))


def test_a_run_resumes_at_any_part():
    plan = NestedPlan((SHORT,), (PlanEntry(overlap=4, context_noise=0.2),))
    whole = parts(plan, count=4, process=PROCESS)
    rest = parts(plan, count=2, first=2, context=whole[1], process=PROCESS)
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_a_sample_is_the_same_in_any_batch_and_parts_do_not_repeat_noise():
    plan = NestedPlan((SHORT,))
    together, alone = parts(plan, count=3), parts(plan, count=3, seeds=[4])
    assert all(torch.equal(a[1:], b) for a, b in zip(together, alone, strict=True))
    draws = torch.cat([Noise([seed_of_part(3, k)]).draw((64,)) for k in range(20)])
    assert float((draws @ draws.T / 64 - torch.eye(20)).abs().max()) < 0.8


def test_parts_that_no_later_one_is_shown_are_freed():
    kept = []
    for x in itertools.islice(sample_nested(NestedPlan((SHORT,)), halved, seeds=[0], shape=(6,)), 5):
        kept.append(weakref.ref(x))
        del x
    assert sum(ref() is not None for ref in kept) <= 1


def test_the_guidance_of_an_entry_reaches_the_network():
    pull = {"c": torch.ones(1, 1)}
    plan = NestedPlan((SHORT,), (PlanEntry(guidance=1.0), PlanEntry(guidance=3.0)))
    network = Guided(lambda x, time, c: c + 0 * x, pull, {"c": torch.zeros(1, 1)})
    found = parts(plan, lambda k, shown: network, count=3, seeds=[0])
    assert [float(x[0, 0]) for x in found] == pytest.approx([1, 3, 3])


def test_noise_of_the_context_is_that_of_the_process():
    plan, seen = NestedPlan((SHORT,), (PlanEntry(context_noise=0.25),)), []
    found = parts(plan, lambda k, s: seen.append(s) or halved(k, s), count=2, process=PROCESS, shape=(4000,))
    noise = (seen[1] - 0.75 * found[0]) / 0.25
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    with pytest.raises(FewstepError, match="needs the process"):
        parts(plan, count=2)


def test_the_part_of_a_failure_is_named():
    def network(k, shown):
        return lambda x, time: x * (float("nan") if k == 2 else 1.0)

    with pytest.raises(NonFiniteError, match="chunk 2"):
        parts(NestedPlan((SHORT,)), network, count=4)


# --- seams ------------------------------------------------------------------------------------------------------


def covariance(size):
    """Of the stationary process x_k = 1.2 x_{k-1} - 0.5 x_{k-2} + e, by a long impulse response."""
    response = torch.zeros(400, dtype=torch.float64)
    response[0], response[1] = 1.0, 1.2
    for k in range(2, 400):
        response[k] = 1.2 * response[k - 1] - 0.5 * response[k - 2]
    lags = torch.stack([(response[: 400 - lag] * response[lag:]).sum() for lag in range(size)])
    at = torch.arange(size)
    return lags[(at[:, None] - at[None]).abs()]


def conditional(k, shown, length=3):
    """The exact clean prediction of a chunk, given the positions just before it."""
    before = 0 if shown is None else shown.shape[1]
    whole = covariance(before + length)
    inner, mean = whole[before:, before:], torch.zeros(1, length, dtype=torch.float64)
    if shown is not None:
        weight = whole[before:, :before] @ whole[:before, :before].inverse()
        inner, mean = inner - weight @ whole[:before, before:], shown @ weight.T

    def network(x, time):
        t = float(time) / 1000
        gain = (1 - t) * inner @ ((1 - t) ** 2 * inner + t**2 * torch.eye(length, dtype=torch.float64)).inverse()
        return mean + (x - (1 - t) * mean) @ gain.T

    return network


def made_covariance(overlap):
    """What three chunks of three make: samples are linear in the noise, which least squares reads off exactly."""
    lam = torch.linspace(-7, 7, 60, dtype=torch.float64)
    times = torch.cat([torch.ones(1, dtype=torch.float64), PROCESS.time(lam)])
    plan = NestedPlan((dpm_solver_pp_2m(PROCESS, CLEAN, Grid(times)),))
    plan = NestedPlan(plan.plans, (PlanEntry(length=3, overlap=overlap),))
    seeds = list(range(20))
    found = sample_nested(plan, conditional, seeds=seeds, shape=(3,), count=3, dtype=torch.float64)
    made = torch.cat(list(found), 1)
    noise = torch.cat([Noise([seed_of_part(s, k) for s in seeds]).draw((3,)) for k in range(3)], 1).double()
    linear = torch.linalg.lstsq(noise, made).solution
    assert torch.allclose(noise @ linear, made, atol=1e-6)
    return linear.T @ linear


def test_seams_have_the_covariance_of_the_process_where_the_overlap_spans_its_memory():
    wanted = covariance(9)
    scale = float(wanted[0, 0])
    assert float((made_covariance(2) - wanted).abs().max()) < 0.02 * scale
    assert float((made_covariance(3) - wanted).abs().max()) < 0.02 * scale


def test_seams_are_wrong_where_it_does_not():
    wanted = covariance(9)
    scale = float(wanted[0, 0])
    assert float((made_covariance(1) - wanted).abs().max()) > 0.1 * scale
    alone = made_covariance(0)
    assert float(alone[2, 3].abs()) < 1e-6 * scale  # nothing is shared
    assert float((alone[:3, :3] - wanted[:3, :3]).abs().max()) < 0.02 * scale


# --- files and refusals -------------------------------------------------------------------------------------------


def test_a_file_gives_the_plan_back(tmp_path):
    entries = (PlanEntry(0, 4), PlanEntry(1, 2, 3, 2.5, 0.1), PlanEntry(0))
    plan = NestedPlan((LONGER, SHORT), entries, "group", False, {"by": "hand"})
    plan.save(tmp_path / "plan.json")
    assert NestedPlan.load(tmp_path / "plan.json") == plan
    assert plan != plan.with_plan(1, LONGER)
    with pytest.raises(FewstepError):
        plan.save(tmp_path / "plan.json")


def test_equal_plans_are_kept_once():
    again = consistency(PROCESS, CLEAN, grids.uniform(PROCESS, 2))
    plan = nested_plan([LONGER, SHORT, again, SHORT], index="group", length=5)
    assert [entry.plan for entry in plan.entries] == [0, 1, 1, 1]
    assert [plan.steps(k) for k in range(6)] == [3, 2, 2, 2, 2, 2]
    assert "NestedPlan(4 groups and on, steps 3, 2, 2, 2)" in repr(plan)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("fewstep_nested_plan", 2, "another schema"),
        ("index", "frame", "outer index"),
        ("endless", 1, "endless"),
        ("entries", [], "1 to"),
        ("entries", [{"plan": 1}], "plans 0 to 0"),
        ("entries", [{"plan": 0, "steps": 3}], "entries.0"),
        ("entries", [{"length": 0}], "length"),
        ("entries", [{"overlap": -1}], "overlap"),
        ("entries", [{"context_noise": float("nan")}], "context_noise"),
        ("entries", [{"guidance": "high"}], "guidance"),
        ("plans", [], "1 to"),
        ("plans", [{}], "plans.0"),
        ("extra", 1, "extra"),
    ],
)
def test_a_wrong_file_is_refused_by_the_key(key, value, named):
    document = json.loads(json.dumps(NestedPlan((SHORT,)).to_dict()))
    with pytest.raises(PlanError, match=named):
        NestedPlan.from_dict({**document, key: value})


def test_what_a_plan_does_not_have_is_refused():
    plan = NestedPlan((SHORT,), (PlanEntry(),) * 2, endless=False)
    assert len(parts(plan)) == 2
    with pytest.raises(PlanError, match="values 0 to 1"):
        parts(plan, count=3)
    with pytest.raises(PlanError, match="no entry uses"):
        NestedPlan((SHORT, LONGER))
    with pytest.raises(PlanError, match="scales show"):
        NestedPlan((SHORT,), (PlanEntry(overlap=2),), "scale")
