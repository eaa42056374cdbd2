"""Plan files that were edited, cut, blown up or made to harm: each is a plan that works, or a FewstepError."""

import json
import math

import pytest
import torch

from fewstep.errors import FewstepError, PlanError
from fewstep.executor import Noise, sample
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Identity, Plan, Row, checks
from fewstep.plan.files import MOST_BYTES
from fewstep.prediction import Prediction
from fewstep.process import VPDiscrete
from fewstep.solvers import dpm_solver_pp_2m, grids, lcm
from tests.core.toys import SHAPE, toy
from tests.fuzzing import damaged, mutations, refuses_cleanly

PROCESS = VPDiscrete.from_betas()
EPSILON = Prediction()
PLAN = dpm_solver_pp_2m(PROCESS, EPSILON, grids.trailing(PROCESS, 3))
TENSORS = lcm(PROCESS, EPSILON, grids.trailing(PROCESS, 2)).scaled(torch.rand(2, 4, 1, 1), [0.9, 1.1])


def changed(*path, value, plan=PLAN):
    document = json.loads(json.dumps(plan.to_dict()))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("prior_scale",), -1.0, "prior_scale must be positive"),
        (("prior_scale",), 0.0, "prior_scale must be positive"),
        (("prior_scale",), [-1.0], "prior_scale must be positive"),
        (("final_alpha",), -0.5, "final_alpha must not be negative"),
        (("final_sigma",), [[-0.5]], "final_sigma must not be negative"),
        (("rows", 1, "alpha"), [-0.3], r"rows\[1\].alpha must not be negative"),
        (("rows", 1, "sigma"), [[-0.3]], r"rows\[1\].sigma must not be negative"),
        (("rows", 1, "noise"), "9", r"rows.1.noise"),
        (("rows", 1, "noise"), True, r"rows.1.noise"),
        (("rows", 1, "noise"), [True], "must be a number"),
        (("rows", 1, "noise"), ["9"], "must be a number"),
        (("steps",), "3", "steps"),
        (("steps",), True, "steps"),
        (("rows", 1, "guidance"), True, "guidance"),
        (("identity", "guidance"), "7.5", "guidance"),
        (("prediction", "sigma_data"), True, "sigma_data"),
        (("prediction", "sigma_data"), 0.0, "sigma_data must be positive"),
        (("rows", 1, "noise"), [], "no usable shape"),
        (("rows", 1, "noise"), [[], []], "no usable shape"),
        (("rows", 1, "noise"), [[1.0], [1.0, 2.0]], "neither a number nor"),
        (("rows", 1, "state"), {"0": 0.5, "00": 0.5}, "rows.1.state"),
        (("rows", 1, "state"), {"+1": 0.5}, "rows.1.state"),
        (("rows", 1, "state"), {"٠": 0.5}, "rows.1.state"),
        (("rows", 1, "state"), {"9" * 5000: 0.5}, "rows.1.state"),
        (("rows", 1, "hook"), "clip_samples", r"rows\[1\].hook is unknown.*clip_sample"),
        (("rows", 1, "hook"), "clip_sample:x", "positive limit"),
        (("rows", 1, "hook"), "clip_sample:-1", "positive limit"),
        (("rows", 1, "hook"), "clip_sample:nan", "positive limit"),
        (("rows", 1, "hook"), ":", "is unknown"),
        (("rows", 1, "hook"), "", "is unknown"),
        (("rows", 1, "network"), "\ud800", "network"),
        (("origin",), {"\udc00": 1}, "origin"),
        (("identity", "model"), "\ud800", "model"),
    ],
)
def test_values_that_mean_nothing_are_refused(path, value, named):
    with pytest.raises(PlanError, match=named):
        Plan.from_dict(changed(*path, value=value))


def nested(depth):
    value = 1.0
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [9, 64, 70, 500])
def test_coefficients_nested_too_deep_are_refused(depth):
    with pytest.raises(PlanError, match="nested deeper|rows.1.noise"):
        Plan.from_dict(changed("rows", 1, "noise", value=nested(depth)))


@pytest.mark.parametrize(
    "text",
    [
        '{"fewstep_plan": 1' + "0" * 5000 + "}",
        json.dumps(PLAN.to_dict()).replace('"prior_scale": ', '"prior_scale": 1' + "0" * 5000 + ", "),
        json.dumps(PLAN.to_dict()).replace('"origin": {', '"origin": {"a": ' + "9" * 5000 + ", "),
        json.dumps(changed("rows", 0, "network", value="\ud800")),
        json.dumps(PLAN.to_dict()).replace('"state": {', '"state": {"0": 1.0, "0": 2.0, ', 1),
        json.dumps(PLAN.to_dict())[:-1] + ', "steps": 3}',
    ],
    ids=["version", "scale", "origin", "surrogate", "state twice", "key twice"],
)
def test_text_that_json_bears_and_a_plan_does_not(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(FewstepError) as refused:
        Plan.load(tmp_path / "plan.json")
    str(refused.value).encode()  # can be printed


def test_sizes_have_a_limit(tmp_path):
    """A file over the limit is not read to its end, and rows are counted before one of them is looked at."""
    path = tmp_path / "plan.json"
    path.write_bytes(b" " * (MOST_BYTES + 1))
    with pytest.raises(FewstepError, match="larger than 8 MiB"):
        Plan.load(path)
    path.write_text(json.dumps({"fewstep_plan": 1, "rows": [{}] * 1_000_000}))
    with pytest.raises(PlanError, match="at most 10000 rows"):
        Plan.load(path)
    with pytest.raises(FewstepError, match="larger than 8 MiB"):
        PLAN.replace(origin={"note": "x" * MOST_BYTES}).save(tmp_path / "new.json")
    with pytest.raises(PlanError, match="at most 10000 rows"):
        Plan(PLAN.rows[:1] * (checks.MOST_ROWS + 1), EPSILON, 1.0, 0.0)


def test_the_longest_plan_can_be_read_back(tmp_path):
    row = Row(0.1, 0.1, 1 / 3, 1 / 3, {0: 1 / 3}, {0: 1 / 3}, *([1 / 3] * 4))
    Plan((row,) * checks.MOST_ROWS, EPSILON, 1.0, 0.0).save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").steps == checks.MOST_ROWS


# --- what Python may hand over ----------------------------------------------------------------------------------


def test_an_origin_may_say_anything_that_json_can():
    """The word `tensor` in it once made the file unreadable."""
    plan = PLAN.replace(origin={"tensor": 1, "note": {"tensor": "x"}, "pair": (1, 2), 3: None})
    assert plan.origin == {"tensor": 1, "note": {"tensor": "x"}, "pair": [1, 2], "3": None}


def test_a_plan_equals_its_file_whatever_its_origin_says(tmp_path):
    plan = PLAN.replace(origin={"tensor": 1, "note": '{"tensor"', "pair": (1, 2), 3: None})
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.origin == plan.origin


def test_rows_may_share_a_tensor(tmp_path):
    shared = torch.rand(4, 1, 1)
    plan = PLAN.replace(rows=tuple(Row(1.0, 1.0, 0.6, 0.8, {k: shared}, {k: shared[:1]}) for k in range(2)))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("value", [{"a": torch.ones(1)}, {"a": math.nan}, {"a": "\ud800"}, {"a": 10**5000}])
def test_an_origin_that_no_file_can_hold_is_refused_at_once(value):
    with pytest.raises(PlanError, match="origin"):
        PLAN.replace(origin=value)


@pytest.mark.parametrize("guidance", [math.nan, math.inf, "7.5", True])
def test_a_guidance_that_is_no_number_is_refused(guidance):
    """NaN differs from every scale, itself included: such a plan could never be used, nor saved."""
    with pytest.raises(FewstepError, match="guidance"):
        Identity(guidance=guidance)
    with pytest.raises(FewstepError, match="guidance"):
        PLAN.check(Identity(guidance=guidance))


@pytest.mark.parametrize(
    "value", [True, "9", None, torch.empty(0), torch.ones(2, dtype=torch.bool), torch.ones(1, dtype=torch.complex64)]
)
def test_coefficients_that_are_no_numbers_are_refused(value):
    with pytest.raises(PlanError, match=r"rows\[0\].noise"):
        Plan((Row(1.0, 1.0, 0.6, 0.8, {0: 1.0}, {0: 1.0}, noise=value),), EPSILON, 1.0, 0.0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (16, 4)])
def test_coefficients_for_four_channels_do_not_make_four_of_one(shape):
    with pytest.raises(PlanError, match="does not fit samples"):
        sample(TENSORS, toy, seeds=[0], shape=shape)
    scheduler, state = PlanScheduler.from_plan(TENSORS), torch.zeros(1, *shape)
    with pytest.raises(PlanError, match="does not fit samples"):
        scheduler.step(state, TENSORS.rows[0].time, state)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**30, 1.5, "3", None, math.nan])
def test_seeds_are_whole_numbers_of_64_bits(seed):
    with pytest.raises(FewstepError, match="64 bits"):
        Noise([seed])


@pytest.mark.parametrize("seed", [2**64 - 1, -(2**63), -1, torch.tensor(3)])
def test_every_seed_of_64_bits_draws(seed):
    assert Noise([seed]).draw((2,)).isfinite().all()


# --- thousands of mutations ---------------------------------------------------------------------------------------


def used(path):
    """Load, and use what loads as users do."""
    plan = Plan.load(path)
    plan.save(path.with_name("again.json"), overwrite=True)
    again = Plan.load(path.with_name("again.json"))
    plan.starting_at(plan.steps - 1)
    PlanScheduler.from_plan(plan)
    sample(plan, lambda x, t: 0.1 * x, seeds=[0], shape=SHAPE)
    assert again == plan
    return plan


@pytest.mark.parametrize("count", [1_000, pytest.param(20_000, marks=pytest.mark.thorough)])
def test_mutated_plan_files_are_user_errors_or_work(tmp_path, count):
    path, works = tmp_path / "plan.json", 0
    tensors = path.with_suffix(".safetensors")
    for seed, plan in enumerate((PLAN, TENSORS)):
        plan.save(path, overwrite=True)
        text = path.read_bytes()
        for document in mutations(json.loads(text), count * 3 // 10, seed):
            path.write_text(json.dumps(document))
            works += refuses_cleanly(lambda: used(path)) is not None
        for data in damaged(text, count // 10, seed):
            path.write_bytes(data)
            works += refuses_cleanly(lambda: used(path)) is not None
        path.write_bytes(text)
    for data in damaged(tensors.read_bytes(), count // 5):
        tensors.write_bytes(data)
        works += refuses_cleanly(lambda: used(path)) is not None
    assert 0.02 * count < works < 0.9 * count  # both ends are reached
