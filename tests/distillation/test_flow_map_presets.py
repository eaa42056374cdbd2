"""Trajectory methods: all are assembled and run; in the slow tier each beats its teacher at equal student calls."""

import itertools
import math

import pytest
import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import evenly
from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.engine import assemble
from fewstep.distillation.method import method, presets, stages_over
from fewstep.distillation.part import made_by, replaced
from fewstep.distillation.parts import flow_map_term
from fewstep.distillation.times import fixed_times
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.testing.toy import PointNetwork, Toy
from fewstep.train.distillation import defaults
from fewstep.train.loop import learning_rate
from fewstep.train.stage import StageConfig
from fewstep.transition import ddim_step
from tests.distillation.gaussians import generator

PRESETS = {
    "accvideo": {"steps": 2, "adversarial": 0.0},
    "alpha_flow": {},
    "cmt": {},
    "consistency_distillation": {},
    "ctm": {},
    "ect": {},
    "instaflow": {},
    "lagrangian": {},
    "lcm": {},
    "mdt": {"guidance": 1.0, "sample_guidance": 1.0},
    "mean_flow": {},
    "mf_rae": {},
    "mlcm": {},
    "pcm": {},
    "perflow": {},
    "progressive": {},
    "reflow": {},
    "scm": {},
    "shortcut": {},
    "sinsr": {"teacher_steps": 3},
    "slim_flow": {"reflow_steps": 2, "distil_steps": 1},
    "tcd": {},
    "yonos": {},
}


TOY = Toy().stored(between=10)


def test_every_trajectory_preset_is_listed_here():
    """A new preset of this family joins the runs below; those with a critic are among the methods of scores."""
    made = {name: method(name, RectifiedFlow()) for name in presets()}
    own = {name for name, m in made.items() if m.critic is None and any(made_by(t, flow_map_term) for t in parts(m))}
    assert own <= set(PRESETS)
    assert set(PRESETS) <= set(presets())


def parts(value):
    """The terms inside of a method, also those inside of other terms."""
    found, waiting = [], list(value.terms.values())
    while waiting:
        term = waiting.pop()
        found.append(term)
        inner = [getattr(term, name, None) for name in ("first", "second")]
        waiting += [t for t in inner if callable(t)] + [t for _, t in getattr(term, "stages", ())]
    return found


def engine_of(name, toy, batch=16, **options):
    made = method(name, toy.process, **options)
    start = PointNetwork(width=toy.width, horizon=toy.horizon)
    student = PointNetwork(width=toy.width, horizon=toy.horizon) if made.two_times else None
    return assemble(made, toy.teacher(), start, lambda m: m, toy.batches(batch), (2,), student=student)


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_takes_steps_and_changes_the_student_alone(name):
    """Three steps: finite losses, gradients at the student in every stage, the same numbers for the same seed."""
    engine = engine_of(name, TOY, **PRESETS[name])
    seen = []
    for _ in range(2):
        losses = []
        for step in range(3):
            for parties, loss in engine.turns(step, 3, torch.Generator().manual_seed(step)):
                assert parties == ("student",)
                value, numbers = loss()
                value.backward()
                assert bool(value.isfinite())
                assert all(bool(number.isfinite()) for number in numbers.values())
                losses.append(float(value.detach()))
            gradients = [p.grad for p in engine.modules["student"].parameters() if p.grad is not None]
            assert sum(float(g.abs().sum()) for g in gradients) > 0
            assert all(bool(g.isfinite().all()) for g in gradients)
            engine.modules["student"].zero_grad(set_to_none=True)
        seen.append(losses)
    assert seen[0] == seen[1]
    assert all(p.grad is None for module in engine.slow.values() for p in module.parameters())


@pytest.mark.parametrize("name", ["lcm", "pcm", "tcd", "consistency_distillation", "mean_flow", "lagrangian", "scm"])
def test_guided_presets_ask_for_a_negative_condition(name):
    assert "guidance" in method(name, RectifiedFlow(), guidance=3.0).needs


def test_progressive_distillation_wants_a_power_of_two():
    with pytest.raises(FewstepError, match="halving"):
        method("progressive", RectifiedFlow(), steps=1, start=6)


@pytest.mark.parametrize(("calls", "stages"), [(1, 4), (2, 3), (4, 2), (8, 1)])
@pytest.mark.parametrize("updates", [4, 11, 400])
def test_stages_are_laid_over_a_training_of_any_length(calls, stages, updates):
    """All halvings take place, the last stage ends with the training, and none is longer than its share."""
    laid = stages_over("progressive", updates, steps=calls)
    made = method("progressive", RectifiedFlow(), steps=calls, **laid)
    assert updates - stages < made.updates <= updates
    assert made.target.until == made.updates - laid["every"]
    grid = made.terms["halving"].times.grid.parts
    assert [grid(k * laid["every"], updates) for k in range(stages)] == [calls * 2**k for k in range(stages)][::-1]
    assert grid(updates - 1, updates) == calls


def test_two_stages_of_slim_flow_share_a_training_two_to_one():
    made = method("slim_flow", RectifiedFlow(), **stages_over("slim_flow", 90))
    assert (made.updates, made.target.until) == (90, 60)
    assert made.terms["slim_flow"].stages[0][0] == pytest.approx(2 / 3)


def test_stages_that_are_shares_need_no_laying():
    assert stages_over("mlcm", 100) == {}
    assert stages_over("lcm", 100, steps=2) == {}


def test_an_easier_condition_gives_the_same_optimum():
    """E[E[z | x, easy] | x, hard] = E[z | x, hard] if hard is made from easy: no gradient at the direct optimum."""
    count, t, generator = 200_000, 0.6, torch.Generator().manual_seed(0)
    z, easy, hard, _ = torch.randn(4, count, 1, generator=generator, dtype=torch.float64)
    easy = z + 0.5 * easy
    hard = easy + 0.8 * hard

    def denoiser(variance):
        def network(x, time, y):
            s = (time / 1000)[:, None]
            precision = 1 + 1 / variance + ((1 - s) / s) ** 2
            return (y / variance + x * (1 - s) / s**2) / precision

        return network

    offset = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimum = denoiser(0.25 + 0.64)
    student = Denoiser(
        lambda x, time, y: optimum(x, time, y) + offset[0] + offset[1] * y, RectifiedFlow(), Prediction("sample")
    )
    teacher = Denoiser(denoiser(0.25), RectifiedFlow(), Prediction("sample"))
    term = replaced(
        method("yonos", RectifiedFlow()).terms["easier"], times=replaced(EVERYWHERE, start=fixed_times((t,)))
    )
    gradients = []
    for private in (easy, hard):
        batch = Batch(count, (1,), clean=z, condition={"y": hard, "teacher.y": private})
        loss, _ = term(Networks(student, teacher), batch, None, torch.Generator().manual_seed(1))
        gradients.append(torch.autograd.grad(loss, offset)[0])
    assert gradients[0].abs().max() < 0.02
    assert gradients[1].abs().max() > 0.1  # a teacher of the easy task that is shown the hard condition


EVERYWHERE = method("yonos", RectifiedFlow()).terms["easier"].times


def test_wrong_networks_for_a_method_are_named():
    with pytest.raises(FewstepError, match="two times"):
        assemble(method("cmt", RectifiedFlow()), TOY.teacher(), nn.Linear(1, 1), lambda m: m, TOY.batches(4), (2,))
    made = method("reflow", RectifiedFlow())
    with pytest.raises(FewstepError, match="store"):
        assemble(made, Toy().teacher(), PointNetwork(), lambda m: m, Toy().batches(4), (2,))


# --- slow: the central claims on eight modes --------------------------------------------------------------------------


def teachers_distance(steps):
    """Of the exact teacher's own Euler chain with as many calls."""
    noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(7))
    samples = evenly(TOY.process, steps, fresh=0.0).sample(TOY.teacher(), noise, None, torch.Generator())
    return TOY.distance(samples)


TRAINED = {
    "accvideo": (2, 0.25, 150, {}),
    "alpha_flow": (1, 0.5, 400, {"teacher": True, "equal": 0.25}),
    "cmt": (1, 0.1, 300, {}),
    "consistency_distillation": (2, 0.25, 300, {}),
    "ctm": (2, 0.5, 250, {"anchor": 0.02, "decay": 0.9}),
    "ect": (2, 0.75, 500, {"c": 1.0, "stages": 3}),
    "instaflow": (1, 0.1, 300, {}),
    "lagrangian": (1, 0.1, 300, {}),
    "lcm": (2, 0.25, 300, {}),
    "mdt": (1, 0.25, 250, {"guidance": 1.0, "sample_guidance": 1.0}),
    "mean_flow": (2, 0.25, 300, {"teacher": True, "equal": 0.25, "power": 0.5}),
    "mf_rae": (1, 0.25, 400, {"equal": 0.25, "stages": (0.6, 0.95)}),
    "mlcm": (2, 0.75, 400, {"guidance": 1.0, "first_stage": 0.4}),
    "pcm": (2, 0.25, 300, {}),
    "perflow": (1, 0.25, 200, {}),
    "progressive": (1, 0.25, 400, {"start": 8, "every": 100}),
    "reflow": (1, 0.25, 300, {}),
    "scm": (2, 0.5, 300, {}),
    "shortcut": (2, 0.5, 300, {"decay": 0.9}),
    "slim_flow": (1, 0.1, 450, {"reflow_steps": 300, "distil_steps": 150}),
    "tcd": (2, 0.25, 300, {}),
}
"""(calls, the fraction of the teacher's energy distance that must be reached, updates, options)."""


EVERY_TIME = {"lcm", "mean_flow", "progressive"}
"""What `make test` trains; the others are for `make test-thorough`."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in EVERY_TIME else pytest.mark.thorough) for n in TRAINED]
)
def test_each_method_beats_its_teacher_at_equal_calls(name):
    """Eight Gaussians on a circle, exact teacher, straight path; energy distance of 2000 samples."""
    from fewstep.testing.training import train_toy

    calls, share, updates, options = TRAINED[name]
    if name not in ("instaflow", "slim_flow"):
        options = {"steps": calls, **options}
    made = method(name, TOY.process, **options)
    assert len(made.steps) == calls
    found = train_toy(TOY, made, steps=updates, warmup=0)
    assert found.distance < share * teachers_distance(calls), found.distance


@pytest.mark.slow
def test_reflow_straightens_and_keeps_the_data():
    """S = E int |x1 - x0 - v|^2 dt along simulated paths falls five times; many steps still make the data."""
    from fewstep.testing.training import train_toy

    found = train_toy(TOY, method("reflow", TOY.process), steps=400, warmup=0)
    before, after = straightness(TOY.teacher()), straightness(found.student)
    assert after < before / 5
    noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        many = evenly(TOY.process, 32, fresh=0.0).sample(found.student, noise, None, torch.Generator())
    assert TOY.distance(many) < 40


def straightness(model, steps=50, count=1000):
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(3))
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    states, velocities = [x], []
    with torch.no_grad():
        for t, to in itertools.pairwise(times):
            clean = model(x, t.expand(count))
            velocities.append((x - clean) / float(t))
            x = ddim_step(model.process, x, clean, t.expand(count), to.expand(count))
            states.append(x)
    chord = states[0] - states[-1]
    return sum(float((chord - v).square().sum(1).mean()) for v in velocities) / steps


def test_uniform_times_of_mean_flow_see_pure_noise():
    """The published law draws a time above 0.95 once in 2,500; P(n > logit(0.95) + 0.4) of a standard normal."""
    share = {}
    for times in ("logit_normal", "uniform"):
        law = method("mean_flow", RectifiedFlow(), times=times).terms["mean_flow"].times.start
        share[times] = float((law(400_000, RectifiedFlow(), generator()) > 0.95).double().mean())
    assert share["logit_normal"] == pytest.approx(0.00041, rel=0.4)
    assert share["uniform"] == pytest.approx(0.05, rel=0.05)
    with pytest.raises(FewstepError, match="law of times"):
        method("alpha_flow", RectifiedFlow(), times="uniformly")


def test_the_second_stage_of_mlcm_has_its_own_rate():
    """A tenth of the first one's, as published; stages that are left out have none."""
    made = method("mlcm", RectifiedFlow(), guidance=1.0, first_stage=0.75)
    config = StageConfig(**{**defaults(made.settings), "steps": 100, "warmup": 0})
    rates = [learning_rate(step, config) for step in (0, 74, 75, 99)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])
    falling = learning_rate(80, config.model_copy(update={"decay": "cosine"}))
    assert falling == pytest.approx(1e-5 * 0.5 * (1 + math.cos(math.pi * 0.8)))
    assert method("mlcm", RectifiedFlow(), first_stage=1.0).settings.rates == ()


def test_slim_flow_can_begin_at_a_finished_flow():
    made = method("slim_flow", RectifiedFlow(), reflow_steps=0, distil_steps=10)
    assert made.target is None
    assert len(made.terms["slim_flow"].stages) == 1
    assert made.terms["slim_flow"].stages[0][1].second.target.second.who == "teacher"


def test_the_floor_of_tdm_bounds_its_normaliser():
    """Where a sample's error nearly vanishes, one over it would not be bounded."""
    weight = method("tdm", RectifiedFlow(), guidance=1.0, floor=0.1).terms["score"].weights[0]
    assert weight.floor == 0.1
