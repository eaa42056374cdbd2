"""Discrete targets: exact at the exact map, of the predicted order, equal to the papers' forms, gradients where due."""

import dataclasses

import pytest
import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.parts import (
    TeacherGuidance,
    TimeDerivative,
    adaptive_weight,
    data_velocity,
    eulerian_target,
    flow_map_term,
    instantaneous_velocity,
    jump_times,
    lagrangian_target,
    lcm_boundary,
    ode_steps,
    same_noise_step,
    self_guided_velocity,
    semigroup,
    stored_pairs,
    stored_state,
    stored_states,
    student_jump,
    student_velocity,
    teacher_velocity,
    two_leg,
)
from fewstep.distillation.times import uniform_times
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPDiscrete
from tests.distillation.flow_map_exact import (
    MEAN,
    PROCESSES,
    STD,
    batch_of,
    exact_cast,
    exact_teacher,
    fixed,
    gaussian_map,
    generator,
    jump_of,
    posterior,
    residual,
    rough,
)

T, M, S = (0.9, 0.6, 0.4, 0.75), (0.5, 0.55, 0.1, 0.6), (0.2, 0.5, 0.05, 0.0)
STRAIGHT = RectifiedFlow()


def straight_u(model, x, t, s):
    """The average velocity of a student on the straight path."""
    return (x - model(x, t, None, s)) / t[:, None]


@pytest.mark.parametrize("name", PROCESSES)
def test_the_exact_map_is_a_semigroup(name):
    cast = exact_cast(PROCESSES[name])
    assert residual(cast, jump_of(cast, fixed(T, S, M)), semigroup(), "state").abs().max() < 1e-10


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(("order", "power"), [(1, 2), (2, 3)])
def test_a_solver_leg_has_its_order(name, order, power):
    """The error of one leg of length h is h^(order + 1)."""
    cast, errors = exact_cast(PROCESSES[name]), []
    for h in (0.02, 0.01):
        jump = jump_of(cast, fixed((0.8, 0.6, 0.5, 0.7), 0.05, [t - h for t in (0.8, 0.6, 0.5, 0.7)]))
        errors.append(residual(cast, jump, two_leg(ode_steps(order), student_jump()), "state").norm())
    assert 0.8 * 2**power < errors[0] / errors[1] < 1.25 * 2**power


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("order", [1, 2])
def test_steps_of_either_order_are_exact_where_the_clean_prediction_is_constant(name, order):
    """Data at one point: D is that point everywhere, and every path is the pair's own; progressive distillation too."""
    process, point = PROCESSES[name], 0 * STD
    cast = Networks(student=rough(process), teacher=exact_teacher(process, MEAN, point))
    jump = jump_of(cast, fixed(T, S, M), batch_of())
    assert torch.allclose(posterior(process, jump.x, jump.t, MEAN, point), MEAN.expand(4, 3))
    value, *_ = two_leg(ode_steps(order, steps=2), ode_steps(order))(cast, jump, jump.x)
    assert torch.allclose(value, gaussian_map(process, jump.x, jump.t, jump.s, MEAN, point), atol=1e-10)
    wanted = jump.frame.transfer(value, 0 * jump.x, jump.x, "state", "clean")
    assert torch.allclose(wanted, MEAN.expand(4, 3), atol=1e-8)


def test_alpha_flow_is_a_two_leg_target():
    """u* = a v + (1 - a) u(x_m, m, s), m = a s + (1 - a) t (arXiv 2510.20771), in the space of velocities."""
    share = 0.3
    cast = Networks(student=rough(STRAIGHT), teacher=exact_teacher(STRAIGHT))
    middle = [t + share * (s - t) for t, s in zip(T, S, strict=True)]
    jump = jump_of(cast, fixed(T, S, middle))
    v = jump.states.noise - jump.states.clean
    m = jump.times.m
    at_m = jump.x + (m - jump.t)[:, None] * v
    wanted = share * v + (1 - share) * straight_u(cast.student, at_m, m, jump.s)
    u = straight_u(cast.student, jump.x, jump.t, jump.s)
    assert torch.allclose(residual(cast, jump, two_leg(same_noise_step, student_jump())), u - wanted, atol=1e-12)


def test_shortcuts_are_the_semigroup_at_the_midpoint():
    """u* = (u(x, t, t - d/2) + u(x', t - d/2, t - d)) / 2 (arXiv 2410.12557, eq. 4)."""
    cast = Networks(student=rough(STRAIGHT), teacher=exact_teacher(STRAIGHT))
    jump = jump_of(cast, fixed(T, S, [(t + s) / 2 for t, s in zip(T, S, strict=True)]))
    first = straight_u(cast.student, jump.x, jump.t, jump.times.m)
    middle = jump.x - (jump.t - jump.times.m)[:, None] * first
    wanted = (first + straight_u(cast.student, middle, jump.times.m, jump.s)) / 2
    u = straight_u(cast.student, jump.x, jump.t, jump.s)
    assert torch.allclose(residual(cast, jump, semigroup()), u - wanted, atol=1e-12)


def test_consistency_training_uses_the_same_noise_at_both_times():
    cast = Networks(student=rough(STRAIGHT), teacher=exact_teacher(STRAIGHT))
    jump = jump_of(cast, fixed(T, 0.0, M))
    m = jump.times.m
    earlier = (1 - m)[:, None] * jump.states.clean + m[:, None] * jump.states.noise
    wanted = cast.student(earlier, m, None, 0 * m)
    value, space, _ = two_leg(same_noise_step, student_jump())(cast, jump, jump.x)
    assert space == "state"
    assert torch.allclose(value, wanted, atol=1e-12)


def test_a_leg_without_length_changes_nothing():
    cast = Networks(student=rough(STRAIGHT), teacher=exact_teacher(STRAIGHT))
    jump = jump_of(cast, fixed(T, 0.0, 0.0))
    with_second, alone = (two_leg(ode_steps(), second)(cast, jump, jump.x)[0] for second in (student_jump(), None))
    assert torch.equal(with_second, alone)


@pytest.mark.parametrize("name", ["straight", "vp"])
def test_stored_states_of_the_exact_flow_leave_nothing_to_learn(name):
    process = PROCESSES[name]
    cast = exact_cast(process)
    times = process.noisiest * torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=torch.float64)
    noise = torch.randn(64, 3, generator=generator(), dtype=torch.float64)
    top = torch.full((64,), float(times[0]), dtype=torch.float64)
    path = torch.stack([gaussian_map(process, noise, top, time.expand(64)) for time in times], 1)
    batch = Batch(size=64, shape=(3,), path=path, times=times)
    for pairs in ("all", "consecutive", "to-end", "whole"):
        loss, _ = flow_map_term(stored_pairs(pairs), two_leg(stored_state), stored_states)(
            cast, batch, None, generator()
        )
        assert loss < 1e-16
    wrong = dataclasses.replace(batch, times=times.clone().index_fill_(0, torch.tensor([1]), 0.7 * process.noisiest))
    loss, _ = flow_map_term(stored_pairs("all"), two_leg(stored_state), stored_states)(cast, wrong, None, generator())
    assert loss > 1e-4


TARGETS = {
    "instant": (instantaneous_velocity(data_velocity), T, T, None),
    "teacher": (instantaneous_velocity(teacher_velocity), T, T, None),
    "consistency": (two_leg(ode_steps(2), student_jump()), T, 0.0, M),
    "live consistency": (two_leg(ode_steps(), student_jump("student")), T, 0.0, M),
    "training": (two_leg(same_noise_step, student_jump()), T, 0.0, M),
    "semigroup": (semigroup(), T, S, M),
    "progressive": (two_leg(ode_steps(who="target"), ode_steps(who="target")), T, S, M),
    "eulerian": (eulerian_target(), T, S, None),
    "own": (eulerian_target(student_velocity), T, S, None),
    "differences": (eulerian_target(slope=TimeDerivative("difference")), T, S, None),
    "lagrangian": (lagrangian_target(), T, (0.2, 0.5, 0.05, 0.1), None),
}


@pytest.mark.parametrize("name", TARGETS)
def test_only_the_students_own_prediction_carries_a_gradient(name):
    """The gradient is that of the distance to a constant; teacher and slow student get none."""
    target, t, s, m = TARGETS[name]
    cast = Networks(*(rough(STRAIGHT, seed) for seed in (0, 1)), target=rough(STRAIGHT, 2))
    term = flow_map_term(fixed(t, s, m), target)
    loss, _ = term(cast, batch_of(), None, generator())
    loss.backward()
    for model in (cast.teacher, cast.target):
        assert all(p.grad is None for p in model.network.parameters())
    got = [p.grad.clone() for p in cast.student.network.parameters()]

    jump = jump_of(cast, fixed(t, s, m))
    with torch.no_grad():
        value, space, _ = target(cast, jump, cast.student(jump.x, jump.t, None, jump.s))
        wanted = jump.frame.transfer(value, jump.states.clean, jump.x, space, "velocity")
    u = jump.frame.express(cast.student(jump.x, jump.t, None, jump.s), jump.x, "velocity")
    parameters = list(cast.student.network.parameters())
    expected = torch.autograd.grad((u - wanted).square().mean(), parameters)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)
    assert max(float(g.abs().max()) for g in got) > 0


@pytest.mark.parametrize("name", TARGETS)
def test_forward_passes_are_counted(name):
    """What a target says it costs is what its networks saw; a Jacobian product counts as two."""
    target, t, s, m = TARGETS[name]
    cast = Networks(*(rough(STRAIGHT, seed) for seed in (0, 1)), target=rough(STRAIGHT, 2))
    _, numbers = flow_map_term(fixed(t, s, m), target)(cast, batch_of(), None, generator())
    seen = sum(model.network.calls for model in (cast.student, cast.teacher, cast.target)) - 1
    products = getattr(getattr(target, "slope", None), "how", None) == "jvp"
    assert numbers["passes"] == seen + products


def test_every_evaluation_of_a_residual_sees_the_same_dropout():
    """With one leg of no length the target repeats the student's own jump: zero, whatever dropout does."""
    student = rough(STRAIGHT, dropout=0.5)
    cast = Networks(student=student, teacher=exact_teacher(STRAIGHT))
    term = flow_map_term(fixed(T, S, T), two_leg(student_jump("student"), student_jump("student")))
    losses = [term(cast, batch_of(), None, generator(seed))[0] for seed in range(3)]
    assert all(float(loss.detach()) == 0 for loss in losses)
    values = [term(cast, batch_of(), None, generator(0)) for _ in range(2)]
    torch.manual_seed(0)
    jumps = [jump_of(cast, fixed(T, S), seed=seed) for seed in (0, 1)]
    with torch.no_grad():
        first, second = (jump.ask(student, jumps[0].x, jumps[0].t, jumps[0].s) for jump in jumps)
    assert not torch.equal(first, second)
    assert torch.equal(*(value for value, _ in values))


def test_masks_leave_the_callers_random_numbers_alone():
    cast = Networks(student=rough(STRAIGHT, dropout=0.5), teacher=exact_teacher(STRAIGHT))
    torch.manual_seed(5)
    plain = torch.rand(3)
    torch.manual_seed(5)
    flow_map_term(fixed(T, S), eulerian_target())(cast, batch_of(), None, generator())
    assert torch.equal(torch.rand(3), plain)


def test_the_term_reproduces_latent_consistency_distillation():
    """Boundary, guided DDIM leg and target of the project's small LCM stage (arXiv 2310.04378, algorithm 1)."""
    from fewstep.jobs.zoo.student import ConsistencyFunction
    from fewstep.zoo.unet import lcm_scheduler

    scheduler = lcm_scheduler("v_prediction")
    law = ConsistencyFunction(scheduler, torch.device("cpu"))
    process = VPDiscrete.from_scheduler(scheduler)
    networks = [_Conditional(seed) for seed in range(3)]
    student, teacher, target = (Denoiser(n, process, Prediction("v_prediction")) for n in networks)
    time = torch.tensor([19, 399, 799, 999])
    earlier = (time - 20).clamp(min=0)
    scale, batch = 1.5, _conditional_batch()
    cast = Networks(student, teacher, target=target)
    times = fixed(*(v.double() / 999 for v in (time, 0 * time, earlier)))
    jump = jump_of(cast, times, batch, boundary=lcm_boundary, guidance=TeacherGuidance(scale))

    x = jump.x[:, :, None, None]
    given = batch.condition["cond"]
    v_c, v_u = (networks[1](jump.x, time.double(), cond=c)[:, :, None, None] for c in (given, batch.negative["cond"]))
    solved = law.ddim(v_u + scale * (v_c - v_u), x, time, earlier)
    v_target = networks[2](solved[:, :, 0, 0], earlier.double(), cond=given)[:, :, None, None]
    wanted = law(v_target, solved, earlier)[:, :, 0, 0]
    got = law(networks[0](jump.x, time.double(), cond=given)[:, :, None, None], x, time)[:, :, 0, 0]
    with torch.no_grad():
        live = jump.ask(student, jump.x, jump.t, jump.s)
        value, *_ = two_leg(ode_steps(), student_jump())(cast, jump, live)
    moving = earlier > 0  # where the middle is the data itself the target is the solved state, f(z, 0) = z
    assert torch.allclose(jump.frame.express(live, jump.x, "state"), got, atol=1e-5)
    assert torch.allclose(value[moving], wanted[moving], atol=1e-5)


class _Conditional(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, x, time, cond):
        return self.layer(torch.cat([x, time[:, None].to(x) / 1000, cond[:, None]], 1)).tanh()


def _conditional_batch():
    ones = torch.ones(4, dtype=torch.float64)
    return batch_of(condition={"cond": ones}, negative={"cond": 0 * ones})


def _conditional_cast():
    return Networks(*(Denoiser(_Conditional(seed), STRAIGHT, Prediction("sample")) for seed in (0, 1)))


def test_guidance_mixes_the_two_predictions_of_the_teacher_inside_its_interval():
    cast, batch = _conditional_cast(), _conditional_batch()
    jump = jump_of(cast, fixed(T, 0.0), batch, guidance=TeacherGuidance(3.0, interval=(0.5, 0.8)))
    (clean, passes), network = jump.teach(cast.teacher, jump.x, jump.t), cast.teacher.network
    within, without = (network(jump.x, 1000 * jump.t, c["cond"]) for c in (batch.condition, batch.negative))
    scale = torch.tensor([1.0, 3.0, 1.0, 3.0], dtype=torch.float64)[:, None]
    assert torch.allclose(clean, without + scale * (within - without))
    assert passes == 2
    assert jump_of(cast, fixed(T, 0.0), batch).teach(cast.teacher, jump.x, jump.t)[1] == 1


def test_a_sampled_scale_reaches_teacher_and_student_alike():
    cast, batch = _conditional_cast(), _conditional_batch()
    jump = jump_of(
        cast, fixed(T, 0.0), batch, guidance=TeacherGuidance(2.0, 8.0, key="w", embed=lambda w: w[:, None] * 2)
    )
    assert bool(((jump.scale >= 2) & (jump.scale <= 8)).all())
    assert len(jump.scale.unique()) == 4
    assert torch.allclose(jump.condition["w"][:, 0], 2 * jump.scale.float())
    assert "w" not in jump.teacher_condition


def test_guidance_without_a_negative_condition_is_refused():
    batch = dataclasses.replace(_conditional_batch(), negative=None)
    with pytest.raises(FewstepError, match="negative"):
        jump_of(_conditional_cast(), fixed(T, 0.0), batch, guidance=TeacherGuidance(2.0))


def test_mean_flow_guides_itself():
    """w = omega v + (1 - omega - kappa) u(nothing) + kappa u(c) as velocities; their weights sum to one."""
    cast, batch = _conditional_cast(), _conditional_batch()
    jump = jump_of(cast, fixed(T, 0.0), batch)
    direction, passes = self_guided_velocity(0.2, 0.7, (0.5, 1.0))(cast, jump, jump.x, jump.t)

    def velocity(clean):
        return (jump.x - clean) / jump.t[:, None]

    within, without = (
        velocity(cast.student.network(jump.x, 1000 * jump.t, c["cond"])) for c in (batch.condition, batch.negative)
    )
    v = jump.states.noise - jump.states.clean
    wanted = 0.2 * v + 0.1 * without + 0.7 * within
    inside = torch.tensor(T) >= 0.5
    assert torch.allclose(velocity(direction)[inside], wanted[inside])
    assert torch.allclose(velocity(direction)[~inside], v[~inside])
    assert passes == 2


def test_a_private_condition_is_seen_by_the_teacher_alone():
    batch = batch_of(condition={"cond": torch.zeros(4).double(), "teacher.cond": torch.ones(4).double()})
    jump = jump_of(_conditional_cast(), fixed(T, T), batch)
    assert set(jump.condition) == set(jump.teacher_condition) == {"cond"}
    assert float(jump.condition["cond"].max()) == 0
    assert float(jump.teacher_condition["cond"].min()) == 1


def test_carried_targets_are_compared_at_the_data():
    """CTM: both ends through the slow student; its weights get no gradient, the student's do."""
    cast = Networks(*(rough(STRAIGHT, seed) for seed in (0, 1)), target=rough(STRAIGHT, 2))
    cast.target.network.requires_grad_(False)
    s, target = (0.2, 0.5, 0.05, 0.1), two_leg(ode_steps(), student_jump())
    term = flow_map_term(fixed(T, s, M), target, carried=True)
    loss, _ = term(cast, batch_of(), None, generator())
    jump = jump_of(cast, fixed(T, s, M))
    zero = 0 * jump.s
    with torch.no_grad():
        live = jump.frame.express(cast.student(jump.x, jump.t, None, jump.s), jump.x, "state")
        wanted, *_ = target(cast, jump, live)
        ends = [cast.target(state, jump.s, None, zero) for state in (live, wanted)]
    assert torch.allclose(loss, (ends[0] - ends[1]).square().mean())
    loss.backward()
    assert all(p.grad is not None for p in cast.student.network.parameters())
    with pytest.raises(FewstepError, match="target"):
        term(dataclasses.replace(cast, target=cast.student), batch_of(), None, generator())


@pytest.mark.parametrize("space", ["clean", "state", "velocity"])
def test_spaces_differ_by_known_factors(space):
    """On the straight path the state is (t - s) times the velocity, the clean prediction t times."""
    cast = Networks(student=rough(STRAIGHT), teacher=exact_teacher(STRAIGHT))
    jump = jump_of(cast, fixed(T, S, M))
    u = residual(cast, jump, semigroup(), "velocity")
    factor = {"clean": -jump.t, "state": -(jump.t - jump.s), "velocity": torch.ones_like(jump.t)}[space]
    assert torch.allclose(residual(cast, jump, semigroup(), space), factor[:, None] * u, atol=1e-12)


def test_parts_of_a_batch_are_seen_by_their_terms_only():
    cast = Networks(student=rough(STRAIGHT), teacher=exact_teacher(STRAIGHT))
    law = jump_times(uniform_times(), equal=1.0)
    seen = []

    def spy(cast, jump, live):
        seen.append(len(live))
        return instantaneous_velocity()(cast, jump, live)

    for share in ((0.0, 0.75), (0.75, 1.0)):
        flow_map_term(law, spy, share=share)(cast, batch_of(16), None, generator())
    assert seen == [12, 4]
    with pytest.raises(FewstepError, match="no sample is left"):
        flow_map_term(law, spy, share=(0.9, 1.0))(cast, batch_of(4), None, generator())


def test_mistakes_are_named():
    cast = Networks(student=rough(STRAIGHT), teacher=exact_teacher(STRAIGHT))
    with pytest.raises(FewstepError, match="middle"):
        flow_map_term(fixed(T, S), semigroup())(cast, batch_of(), None, generator())
    with pytest.raises(FewstepError, match="towards the data"):
        flow_map_term(fixed(T, S, 0.95), semigroup())(cast, batch_of(), None, generator())
    with pytest.raises(FewstepError, match="boundary"):
        flow_map_term(fixed(T, S), instantaneous_velocity(), boundary=lcm_boundary)(cast, batch_of(), None, generator())
    empty = dataclasses.replace(batch_of(), clean=None)
    with pytest.raises(FewstepError, match="needs data"):
        flow_map_term(fixed(T, S), instantaneous_velocity())(cast, empty, None, generator())
    with pytest.raises(FewstepError, match="noisy time"):
        flow_map_term(fixed(0.0, 0.0), instantaneous_velocity())(cast, batch_of(), None, generator())
    edm = Networks(exact_cast(VE(20.0)).student, exact_teacher(VE(20.0)))
    with pytest.raises(FewstepError, match="no network time for the data"):
        flow_map_term(fixed(T, 0.0), eulerian_target())(edm, batch_of(), None, generator())
    with pytest.raises(FewstepError, match="arrival"):
        flow_map_term(fixed(T, S), two_leg(stored_state))(cast, batch_of(), None, generator())


def test_losses_are_finite_in_float32_at_both_ends():
    """Times at both ends of the process, single precision, every target: no NaN reaches the weights."""
    student = Denoiser(_Float(rough(STRAIGHT).network), STRAIGHT, Prediction("velocity"), True)
    teacher = Denoiser(_Float(rough(STRAIGHT, 1).network), STRAIGHT, Prediction("velocity"))
    batch = batch_of()
    batch = dataclasses.replace(batch, clean=batch.clean.float())
    t, m, s = (1.0, 1e-3, 1.0, 0.5), (0.5, 5e-4, 0.999, 0.5), (0.0, 0.0, 0.998, 0.5)
    for name, (target, *_) in TARGETS.items():
        end = [max(v, 1e-4) for v in s] if name == "lagrangian" else s
        term = flow_map_term(fixed(t, end, m), target, weights=(adaptive_weight(),))
        loss, _ = term(Networks(student, teacher), batch, None, generator())
        loss.backward()
        assert bool(loss.isfinite()), name
        assert all(bool(p.grad.isfinite().all()) for p in student.network.parameters()), name


class _Float(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner.float()

    def forward(self, x, time, target_time=None):
        return self.inner(x, time, target_time)
