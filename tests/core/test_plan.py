import contextlib
import json
import math
import string

import diffusers as d
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import FewstepError, IdentityError, PlanError
from fewstep.executor import sample
from fewstep.pipelines.probing import plan_of_scheduler
from fewstep.plan import Identity, Plan, Row
from fewstep.plan.files import SCHEMA
from fewstep.prediction import Prediction
from fewstep.process import VPDiscrete
from fewstep.solvers import ddim, dpm_solver_pp_2m, grids, lcm
from tests.core.toys import SHAPE, STABLE_DIFFUSION, departure, run_diffusers, toy

PROCESS = VPDiscrete.from_betas("scaled_linear", beta_start=0.00085, beta_end=0.012)
EPSILON = Prediction("epsilon")


def two_m(steps=4):
    return dpm_solver_pp_2m(PROCESS, EPSILON, grids.trailing(PROCESS, steps), lower_order_final=False)


def row(**changes):
    plain = {"time": 1.0, "network_time": 1.0, "alpha": 0.6, "sigma": 0.8, "state": {0: 1.0}, "output": {0: -0.5}}
    return Row(**{**plain, **changes})


# --- validation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "at least one row"),
        ((row(state={1: 1.0}),), r"rows\[0\].state may refer to entries 0 to 0"),
        ((row(), row(output={-1: 1.0})), r"rows\[1\].output may refer"),
        ((row(noise=math.nan),), r"rows\[0\].noise is not finite"),
        ((row(state={0: torch.tensor([1.0, math.inf])}),), r"rows\[0\].state.0 is not finite"),
        ((row(alpha=-0.1),), "must not be negative"),
        ((row(sigma=torch.ones(2)),), r"rows\[0\].sigma must be one number"),
    ],
)
def test_malformed_rows_are_named(rows, message):
    with pytest.raises(PlanError, match=message):
        Plan(rows, EPSILON, 1.0, 0.0)


def test_identity_names_what_differs():
    plan = two_m().replace(identity=Identity(model="abc", guidance=1.0))
    plan.check(Identity(model="abc", quantization="w4a8"))
    with pytest.raises(IdentityError, match=r"belongs to guidance 1.0, not 7.5"):
        plan.check(Identity(model="abc", guidance=7.5))


# --- files --------------------------------------------------------------------------------------------------


def same_bits(ours, theirs):
    assert ours.steps == theirs.steps
    for a, b in zip(ours.rows, theirs.rows, strict=True):
        left, right = dict(a.coefficients()), dict(b.coefficients())
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert torch.equal(torch.as_tensor(value).double(), torch.as_tensor(right[name]).double()), name
        assert (a.network, a.guidance, a.hook) == (b.network, b.guidance, b.hook)


@pytest.mark.parametrize("scale", [1.0, torch.rand(4, 1, 1)])
def test_files_keep_every_bit(tmp_path, scale):
    plan = two_m().scaled([scale] * 4, [1 / 3] * 4)
    plan = plan.replace(identity=Identity("abc", "w4a8", 7.5), origin={"solver": "x", "nested": {"a": [1, None]}})
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    same_bits(again, plan)
    assert again == plan
    assert (again.identity, again.origin, again.prediction) == (plan.identity, plan.origin, plan.prediction)
    assert (tmp_path / "plan.safetensors").exists() == isinstance(scale, torch.Tensor)


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=4, max_size=4))
def test_any_float_survives_the_document(values):
    a, b, c, e = values
    plan = Plan((row(state={0: a}, output={0: b}, noise=c, time=e),), EPSILON, 1.0, 0.0)
    same_bits(Plan.from_dict(json.loads(json.dumps(plan.to_dict()))), plan)


def test_a_newer_schema_asks_for_an_update():
    with pytest.raises(PlanError, match="Update fewstep"):
        Plan.from_dict({**two_m().to_dict(), "fewstep_plan": SCHEMA + 1, "unheard_of": 1})


def test_unknown_and_missing_keys_are_named():
    document = two_m().to_dict()
    document["rows"][2]["nois"] = 0.0
    with pytest.raises(PlanError, match=r"rows.2.nois"):
        Plan.from_dict(document)
    document = two_m().to_dict()
    del document["rows"][1]["sigma"]
    with pytest.raises(PlanError, match=r"rows.1.sigma"):
        Plan.from_dict(document)
    document = two_m().to_dict()
    document["rows"].pop()
    with pytest.raises(PlanError, match="truncated"):
        Plan.from_dict(document)


def test_a_truncated_file_is_a_clear_error(tmp_path):
    path = tmp_path / "plan.json"
    two_m().save(path)
    path.write_text(path.read_text()[:200])
    with pytest.raises(FewstepError, match="not JSON"):
        Plan.load(path)


def test_a_missing_tensor_file_is_a_clear_error(tmp_path):
    path = tmp_path / "plan.json"
    two_m().scaled(torch.rand(4, 4, 1, 1), [1.0] * 4).save(path)
    (tmp_path / "plan.safetensors").unlink()
    with pytest.raises(FewstepError, match=r"plan\.safetensors"):
        Plan.load(path)


keys = st.sampled_from([*two_m().to_dict(), *two_m().to_dict()["rows"][0], "0", "1", "-1", "kind", "tensor", "model"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=5)
json_like = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5))


@settings(max_examples=300)
@given(value=json_like)
def test_any_json_is_a_plan_error_or_a_plan(value):
    with contextlib.suppress(PlanError):
        assert isinstance(Plan.from_dict(value), Plan)


@pytest.mark.parametrize(
    ("key", "value"),
    [("prediction", {"kind": "x"}), ("origin", {"a": math.nan}), ("prior_scale", [1.0, 2.0]), ("steps", 10**400)],
)
def test_values_of_the_right_kind_that_mean_nothing(key, value):
    with pytest.raises(PlanError):
        Plan.from_dict({**two_m().to_dict(), key: value})


@pytest.mark.parametrize("depth", [50, 300, 900, 990, 5000])
def test_deep_nesting_is_a_user_error(tmp_path, depth):
    text = json.dumps(two_m().to_dict()).replace('"prior_scale": 1.0', f'"prior_scale": {"[" * depth}{"]" * depth}')
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(FewstepError):
        Plan.load(tmp_path / "plan.json")


@settings(max_examples=400)
@given(data=st.data(), value=leaves | json_like)
def test_a_plan_with_one_value_changed_is_a_plan_error_or_a_plan(data, value):
    document = json.loads(json.dumps(two_m(2).to_dict()))
    place = data.draw(st.sampled_from([document, document["prediction"], document["identity"], *document["rows"]]))
    place[data.draw(st.sampled_from(sorted(place)))] = value
    try:
        plan = Plan.from_dict(document)
    except PlanError:
        return
    same_bits(Plan.from_dict(plan.to_dict()), plan)


@given(junk=st.binary(max_size=200) | st.text(max_size=50).map(str.encode) | json_like.map(json.dumps).map(str.encode))
def test_random_files_are_user_errors(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("junk") / "plan.json"
    path.write_bytes(junk)
    with pytest.raises(FewstepError):
        Plan.load(path)


# --- Q-Sched's scalars ----------------------------------------------------------------------------------------------


def test_identity_scalars_change_no_bit():
    plan = two_m()
    same_bits(plan.scaled([1.0] * 4, torch.ones(4)), plan)
    ours = sample(plan.scaled([1.0] * 4, [1.0] * 4), toy, seeds=[1], shape=SHAPE)
    assert torch.equal(ours, sample(plan, toy, seeds=[1], shape=SHAPE))


SCHEDULERS = [
    (d.EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing", **STABLE_DIFFUSION}),
    (d.FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
    (d.LCMScheduler, STABLE_DIFFUSION),
    (d.TCDScheduler, STABLE_DIFFUSION),
    (d.DDIMScheduler, {"clip_sample": False, **STABLE_DIFFUSION}),
    (d.DPMSolverMultistepScheduler, STABLE_DIFFUSION),
]


@pytest.mark.parametrize(("kind", "config"), SCHEDULERS, ids=[k.__name__ for k, _ in SCHEDULERS])
def test_scaled_plan_is_the_scheduler_with_scaled_inputs(kind, config):
    """arXiv 2509.01624: step(m F, t, s x), with the network still called at the unscaled x."""
    s, m = [1.05, 0.97, 1.02, 0.9], [0.95, 1.04, 0.9, 1.1]
    scheduler = kind(**config)
    plan = plan_of_scheduler(scheduler, 4).scaled(s, m)
    calls, original = iter(range(4)), scheduler.step

    def step(raw, time, x, generator=None, **rest):
        k = next(calls)
        rest |= {} if generator is None else {"generator": generator}
        return original(m[k] * raw, time, s[k] * x, **rest)

    step.__signature__ = __import__("inspect").signature(original)
    scheduler.step = step
    expected = run_diffusers(scheduler, 4, toy, [7, 8])
    assert departure(sample(plan, toy, seeds=[7, 8], shape=SHAPE), expected) < 1e-5


def column(plan, name, j=None):
    return [getattr(r, name)[k] if j is None else getattr(r, name) for k, r in enumerate(plan.rows)]


def test_published_affine_coefficients():
    """The coefficients of x' = a x + b F + c z worked out for SDXL-Turbo, FLUX-schnell and LCM in four steps."""
    turbo = d.EulerAncestralDiscreteScheduler(timestep_spacing="trailing", steps_offset=1, **STABLE_DIFFUSION)
    plan = plan_of_scheduler(turbo, 4)
    assert [r.network_time for r in plan.rows] == [999, 749, 499, 249]
    assert [r.sigma for r in plan.rows] == pytest.approx([14.615, 4.082, 1.613, 0.693], abs=5e-4)
    assert column(plan, "state") == pytest.approx([1.0] * 4)
    assert column(plan, "output") == pytest.approx([-13.475, -3.444, -1.315, -0.693], abs=5e-4)
    assert column(plan, "noise", 0) == pytest.approx([3.919, 1.482, 0.626, 0.0], abs=5e-4)

    schnell = d.FlowMatchEulerDiscreteScheduler(shift=1.0)
    plan = plan_of_scheduler(schnell, 4, set_timesteps={"sigmas": [1.0, 0.75, 0.5, 0.25]})
    assert column(plan, "output") == pytest.approx([-0.25] * 4, abs=1e-6)
    assert column(plan, "state") == pytest.approx([1.0] * 4)

    plan = plan_of_scheduler(d.LCMScheduler(**STABLE_DIFFUSION), 4)
    assert [r.network_time for r in plan.rows] == [999, 759, 499, 259]
    assert column(plan, "state") == pytest.approx([3.347, 2.306, 1.541, 1.232], abs=1e-3)
    assert column(plan, "output") == pytest.approx([-3.340, -2.245, -1.309, -0.719], abs=1e-3)
    assert not plan.rows[-1].noise


def test_scalars_may_differ_by_channel():
    scales = 1 + 0.1 * torch.rand(4, 4, 1, 1)
    plan = two_m().scaled(scales, [1.0] * 4)
    whole = sample(plan, toy, seeds=[3], shape=SHAPE)
    assert whole.shape == (1, *SHAPE)
    uniform = two_m().scaled(torch.ones(4, 4, 1, 1), [1.0] * 4)
    torch.testing.assert_close(
        sample(uniform, toy, seeds=[3], shape=SHAPE), sample(two_m(), toy, seeds=[3], shape=SHAPE)
    )


def test_one_scalar_per_row():
    with pytest.raises(PlanError, match="one value per row, 4"):
        two_m().scaled([1.0] * 3, [1.0] * 4)


# --- starting late --------------------------------------------------------------------------------------------


def test_single_step_plans_keep_their_rows_when_starting_late():
    plan = lcm(PROCESS, EPSILON, grids.distilled(PROCESS, 4))
    late = plan.starting_at(2)
    assert late.steps == 2
    for ours, theirs in zip(late.rows, plan.rows[2:], strict=True):
        assert list(ours.state.values()) == list(theirs.state.values())
        assert list(ours.output.values()) == list(theirs.output.values())
        assert (ours.noise, ours.time) == (theirs.noise, theirs.time)


def test_multistep_rows_without_history_become_first_order():
    plan = two_m(5).scaled([1.1] * 5, [0.9] * 5)
    late = plan.starting_at(2)
    reference = ddim(PROCESS, EPSILON, grids.trailing(PROCESS, 5)).scaled([1.1] * 5, [0.9] * 5)
    assert late.rows[0].state == pytest.approx({0: reference.rows[2].state[2]})
    assert late.rows[0].output == pytest.approx({0: reference.rows[2].output[2]})
    assert late.rows[1].output == pytest.approx({j - 2: c for j, c in plan.rows[3].output.items()})
    assert set(late.rows[1].output) == {0, 1}
    assert plan.starting_at(0) == plan.replace(prior_scale=plan.starting_at(0).prior_scale)


def test_stopping_ends_in_the_clean_sample_that_the_network_says():
    plan = two_m(5).scaled([1.1] * 5, [0.9] * 5)
    run, outputs, states = 2, [], []

    def network(x, t):
        states.append(x)
        outputs.append(torch.sin(x) * t / 1000)
        return outputs[-1]

    found = sample(plan.stopping_at(run), network, seeds=[0, 1], shape=(2,))
    row = plan.rows[run]
    # by hand, from the epsilon prediction and Q-Sched's scalars
    expected = (1.1 * states[run] - row.sigma * 0.9 * outputs[run]) / row.alpha
    assert len(states) == run + 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(PlanError, match="rows 0 to 4"):
        plan.stopping_at(5)


def test_no_such_row_to_start_at():
    with pytest.raises(PlanError, match="rows 0 to 3"):
        two_m().starting_at(4)
