"""Limits of short legs: exact at the exact flow map, equal to the papers' formulas on networks that are wrong."""

import dataclasses

import pytest
import torch

from fewstep.distillation.core import Networks
from fewstep.distillation.flow_map.frame import JumpCoefficients
from fewstep.distillation.flow_map.term import normalised_residual
from fewstep.distillation.parts import (
    TimeDerivative,
    data_velocity,
    eulerian_residual,
    eulerian_target,
    flow_map_term,
    lagrangian_target,
    mixed_velocity,
    ode_steps,
    student_jump,
    student_velocity,
    teacher_velocity,
    two_leg,
    velocity_distillation,
)
from fewstep.process import Cosine, RectifiedFlow
from tests.distillation.flow_map_exact import (
    MEAN,
    PROCESSES,
    STD,
    batch_of,
    exact_cast,
    exact_student,
    exact_teacher,
    fixed,
    gaussian_map,
    generator,
    jump_of,
    posterior,
    residual,
    rough,
)

STRAIGHT = RectifiedFlow()
T, S = (0.9, 0.6, 0.4, 0.75), (0.2, 0.5, 0.05, 0.3)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_exact_map_is_a_fixed_point_of_the_eulerian_equation(name):
    process = PROCESSES[name]
    cast = exact_cast(process)
    for s in (S, 0.0):
        jump = jump_of(cast, fixed(T, s))
        assert residual(cast, jump, eulerian_target()).abs().max() < 1e-10
        assert residual(cast, jump, eulerian_target(warmup=0.5)).abs().max() > 1e-3


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("direction", [teacher_velocity, student_velocity])
def test_the_exact_map_is_a_fixed_point_of_the_lagrangian_equation(name, direction):
    cast = exact_cast(PROCESSES[name])
    jump = jump_of(cast, fixed(T, S))
    assert residual(cast, jump, lagrangian_target(direction)).abs().max() < 1e-10


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("target", [eulerian_target, lagrangian_target])
def test_differences_are_of_second_order(name, target):
    cast = exact_cast(PROCESSES[name])
    jump = jump_of(cast, fixed((0.8, 0.6, 0.5, 0.75), S))
    coarse, fine = (
        residual(cast, jump, target(slope=TimeDerivative("difference", delta))).abs().max() for delta in (8e-3, 4e-3)
    )
    assert 3.5 < coarse / fine < 4.5


@pytest.mark.parametrize("target", [eulerian_target, lagrangian_target])
def test_differences_at_the_ends_of_the_range_are_one_sided(target):
    cast = exact_cast(RectifiedFlow())
    jump = jump_of(cast, fixed((1.0, 1.0, 0.5, 0.5), (0.9999, 1e-3, 0.499, 0.5)))
    assert residual(cast, jump, target(slope=TimeDerivative("difference", 5e-3))).abs().max() < 2e-2


@pytest.mark.parametrize(
    "target", [eulerian_target(), lagrangian_target(), eulerian_target(slope=TimeDerivative("difference"))]
)
@pytest.mark.parametrize("name", PROCESSES)
def test_a_jump_of_no_length_wants_the_teachers_velocity(name, target):
    process = PROCESSES[name]
    cast = Networks(student=rough(process), teacher=exact_teacher(process))
    jump = jump_of(cast, fixed(T, T))
    wanted = jump.frame.express(posterior(process, jump.x, jump.t), jump.x, "velocity")
    value, *_ = target(cast, jump, jump.ask(cast.student, jump.x, jump.t, jump.s).detach())
    assert torch.allclose(value, wanted, atol=1e-10 * float(wanted.abs().max()))


def straight_u(model, x, t, s):
    """The average velocity of a student on the straight path."""
    return (x - model(x, t, None, s)) / t[:, None]


def test_mean_flow_identity():
    """u* = v - (t - s) (v grad u + du/dt), eq. 11 of arXiv 2505.13447, for a network that is no flow map."""
    process = RectifiedFlow()
    cast = Networks(student=rough(process), teacher=exact_teacher(process))
    jump = jump_of(cast, fixed(T, S))
    v = jump.states.noise - jump.states.clean
    u, slope = torch.func.jvp(
        lambda x, t: straight_u(cast.student, x, t, jump.s), (jump.x, jump.t), (v, torch.ones_like(jump.t))
    )
    value, *_ = eulerian_target(data_velocity)(cast, jump, jump.ask(cast.student, jump.x, jump.t, jump.s))
    assert torch.allclose(value, v - (jump.t - jump.s)[:, None] * slope, atol=1e-12)
    assert not torch.allclose(value, u)


def test_lagrangian_target_on_the_straight_path():
    """u* = v(X, s) + (t - s) du/ds (arXiv 2406.07507)."""
    process = RectifiedFlow()
    cast = Networks(student=rough(process), teacher=exact_teacher(process))
    jump = jump_of(cast, fixed(T, S))
    u, slope = torch.func.jvp(
        lambda s: straight_u(cast.student, jump.x, jump.t, s), (jump.s,), (torch.ones_like(jump.s),)
    )
    landed = jump.x - (jump.t - jump.s)[:, None] * u
    v = (landed - posterior(process, landed, jump.s)) / jump.s[:, None]
    value, *_ = lagrangian_target()(cast, jump, jump.ask(cast.student, jump.x, jump.t, jump.s))
    assert torch.allclose(value, v + (jump.t - jump.s)[:, None] * slope, atol=1e-12)


@pytest.mark.parametrize("r", [0.0, 0.3, 1.0])
def test_scm_on_the_circle(r):
    """g = -cos^2 (F - dx/dt) - r cos sin (x + dF/dt), arXiv 2410.11081, with a warmed-up derivative; sigma_d 1."""
    process = Cosine(offset=0.0)
    cast = Networks(student=rough(process, kind="v_prediction"), teacher=exact_teacher(process))
    jump = jump_of(cast, fixed(T, 0.0))
    zero = torch.zeros_like(jump.t)
    phi = (jump.t * torch.pi / 2)[:, None]

    def output(x, angle):
        return cast.student.raw(x, angle * 2 / torch.pi, None, zero)

    way = (phi.cos() * jump.x - posterior(process, jump.x, jump.t)) / phi.sin()
    F, slope = torch.func.jvp(output, (jump.x, phi[:, 0]), (way, torch.ones_like(phi[:, 0])))
    g = -(phi.cos() ** 2) * (F - way) - r * phi.cos() * phi.sin() * (jump.x + slope)
    ours = -residual(cast, jump, eulerian_target(warmup=r, shrink=True)) / (torch.pi / 2)
    assert torch.allclose(ours, g, atol=1e-12)


def test_the_normalised_residual_keeps_its_direction_and_fixed_point():
    process = RectifiedFlow()
    cast = Networks(student=rough(process), teacher=exact_teacher(process))
    plain, normal = (
        flow_map_term(fixed(T, S), eulerian_target(), normalise=c)(cast, batch_of(), None, generator())[0]
        for c in (None, 0.1)
    )
    jump = jump_of(cast, fixed(T, S), seed=0)
    size = residual(cast, jump, eulerian_target()).norm(dim=1)
    assert torch.allclose(plain.detach(), (size**2).mean() / 3)
    assert torch.allclose(normal.detach(), ((size / (size + 0.1)) ** 2).mean() / 3)


def test_normalising_shortens_a_residual_and_does_not_turn_it():
    given, wanted = torch.tensor([[3.0, 4.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert torch.allclose(given - normalised_residual(given, wanted, 5.0), torch.tensor([[0.3, 0.4], [0.0, 0.0]]))


@pytest.mark.parametrize("c", [None, 0.1])
def test_velocity_distillation_pulls_a_displaced_student_back(c):
    """A student whose samples lie too far in every coordinate is told to lower each of them."""
    shift = torch.full((3,), 0.8, dtype=torch.float64, requires_grad=True)
    student = exact_student(STRAIGHT)

    def moved(x, time, target_time):
        return student.network(x, time, target_time) + shift

    cast = Networks(student=dataclasses.replace(student, network=moved), teacher=exact_teacher(STRAIGHT))
    term = velocity_distillation(fixed(0.5, 0.0), normalise=c)
    loss, _ = term(cast, batch_of(256), None, generator())
    loss.backward()
    assert bool((shift.grad > 0).all())


def test_short_consistency_steps_become_the_eulerian_residual():
    """(y - y*) / (t - m) of consistency distillation tends to minus u - u*, with an error of first order in t - m."""
    process = RectifiedFlow()
    cast = Networks(student=rough(process), teacher=exact_teacher(process))
    errors = []
    for step in (1e-2, 5e-3):
        jump = jump_of(cast, fixed(T, S, [t - step for t in T]))
        discrete = residual(cast, jump, two_leg(ode_steps(), student_jump()), "state") / step
        errors.append((discrete + residual(cast, jump, eulerian_target())).abs().max())
    assert 1.7 < errors[0] / errors[1] < 2.3


def test_residuals_of_all_paths_are_one_residual():
    """The same student on two paths: -dX/dt dt agrees once states are scaled to the same end."""
    values = []
    for name in ("straight", "trig", "vp"):
        process = PROCESSES[name]
        ratio = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
        t, s = process.time(-ratio.log()), process.time(-(0.1 * ratio).log())
        wrong = exact_student(process, MEAN + 0.3, 0.7 * STD)
        cast = Networks(student=wrong, teacher=exact_teacher(process))
        jump = jump_of(cast, fixed(t / process.noisiest, s / process.noisiest))
        gap, _ = eulerian_residual()(cast, jump, jump.ask(wrong, jump.x, jump.t, jump.s))
        point = t.clone().requires_grad_()
        per_log_ratio = torch.autograd.grad(process.lam(point).sum(), point)[0]
        values.append(gap / per_log_ratio[:, None] / process.alpha(s)[:, None])
    assert torch.allclose(values[0], values[1], rtol=1e-9)
    assert torch.allclose(values[0], values[2], rtol=1e-9)


def test_velocity_distillation_sees_the_true_gap_through_the_jacobian():
    """u_theta - v = grad X_{0,t} (v_S - v), v_S the velocity of what the student makes; gradient -2 R / numbers."""
    process = RectifiedFlow()
    wrong_mean, wrong_std = MEAN + 0.5, 1.2 * STD
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    student = exact_student(process, wrong_mean, wrong_std)

    def moved(x, time, target_time):
        return student.network(x, time, target_time) + shift

    cast = Networks(student=dataclasses.replace(student, network=moved), teacher=exact_teacher(process))
    batch, law = batch_of(), fixed(T, 0.0)
    loss, numbers = velocity_distillation(law)(cast, batch, None, generator(3))
    loss.backward()

    draws = generator(3)
    top = torch.ones(4, dtype=torch.float64)
    sample = gaussian_map(process, torch.randn(4, 3, generator=draws).double(), top, 0 * top, wrong_mean, wrong_std)
    torch.randint(2**31, (1,), generator=draws)
    t = torch.tensor(T, dtype=torch.float64)
    a, b = (1 - t)[:, None], t[:, None]
    x = a * sample + b * torch.randn(4, 3, generator=draws).double()
    velocities = [(x - posterior(process, x, t, *law)) / b for law in ((wrong_mean, wrong_std), (MEAN, STD))]
    jacobian = wrong_std / ((a * wrong_std) ** 2 + b**2).sqrt()
    gap = jacobian * (velocities[0] - velocities[1])
    assert torch.allclose(shift.grad, -2 * gap.mean(0) / 3, atol=1e-6)
    assert torch.allclose(numbers["gap"], gap.square().mean().sqrt(), atol=1e-6)


def test_mixed_directions_interpolate():
    process = RectifiedFlow()
    cast = Networks(student=rough(process), teacher=exact_teacher(process))
    jump = jump_of(cast, fixed(T, S))
    (data, _), (teacher, _), (mixed, passes) = (
        d(cast, jump, jump.x, jump.t)
        for d in (data_velocity, teacher_velocity, mixed_velocity(data_velocity, teacher_velocity, 0.25))
    )
    assert torch.allclose(mixed, 0.75 * data + 0.25 * teacher)
    assert passes == 1


def test_time_scales_of_networks_do_not_matter():
    """A network that is fed 1000 t gives the same derivative in process time as one that is fed t."""
    found = []
    for factor in (1.0, 1000.0):
        process = RectifiedFlow(network_scale=factor)
        cast = Networks(student=rough(process), teacher=exact_teacher(process))
        found.append(residual(cast, jump_of(cast, fixed(T, S)), eulerian_target()))
    assert torch.allclose(found[0], found[1], atol=1e-10)


def test_frames_of_all_paths_take_the_same_step():
    """One clean prediction and one pair of noise ratios: the same state up to the scale of the path."""
    ratio, x = torch.tensor([0.5, 2.0], dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    clean = torch.randn(2, 3, dtype=torch.float64)
    landed = []
    for process in PROCESSES.values():
        t, s = process.time(-ratio.log()), process.time(-(0.3 * ratio).log())
        frame = JumpCoefficients.of(process, t, s)
        landed.append(frame.express(clean, x * process.alpha(t)[:, None], "state") / process.alpha(s)[:, None])
    for other in landed[1:]:
        assert torch.allclose(other, landed[0], atol=1e-9)
