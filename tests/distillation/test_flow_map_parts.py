"""Sources, intervals, metrics, weights and schedules of trajectory objectives, each against what defines it."""

import dataclasses

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Networks, Samples
from fewstep.distillation.parts import (
    JumpCoefficients,
    JumpTimes,
    adaptive_weight,
    data_velocity,
    dyadic_jumps,
    end_point_pairs,
    feature_distance,
    flow_map_term,
    fraction_of_jump,
    grid_jump_times,
    halving,
    instantaneous_velocity,
    inverse_step,
    jump_length_weight,
    jump_times,
    karras_grid,
    learned_uncertainty,
    ode_steps,
    previous_grid_point,
    pseudo_huber,
    pure_noise,
    ramp,
    random_middle,
    second_draw,
    shrinking_step,
    sinusoid,
    snr_weight,
    squared_error,
    stored_pairs,
    student_states,
    summed_terms,
    switch,
    teacher_states,
    training_stages,
    uniform_below,
    uniform_grid,
    windowed_reflow,
)
from fewstep.distillation.times import log_normal_times, uniform_times
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, VPDiscrete
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
    rough,
)

STRAIGHT = RectifiedFlow()
MANY = Batch(size=4000, shape=(3,))


def drawn(law, process=STRAIGHT, batch=MANY):
    return law(batch, process, generator())


# --- intervals --------------------------------------------------------------------------------------------------------

LAWS = {
    "consistency": grid_jump_times(uniform_grid(20), middle=previous_grid_point(uniform_grid(20))),
    "edm": grid_jump_times(
        karras_grid(18, highest=20.0), uniform_below(), previous_grid_point(karras_grid(18, highest=20.0), 3)
    ),
    "segments": grid_jump_times(
        uniform_grid(20), previous_grid_point(uniform_grid(4)), previous_grid_point(uniform_grid(20))
    ),
    "halves": grid_jump_times(uniform_grid(8), previous_grid_point(uniform_grid(8)), fraction_of_jump(0.5)),
    "any two": jump_times(uniform_times(), second_draw(uniform_times()), fraction_of_jump(0.3), equal=0.25),
    "shrinking": jump_times(log_normal_times(), middle=shrinking_step()),
    "dyadic": dyadic_jumps(4),
    "inside": random_middle(),
}


@pytest.mark.parametrize("process", [STRAIGHT, VE(20.0), VPDiscrete.from_betas()], ids=["straight", "ve", "vp"])
@pytest.mark.parametrize("name", LAWS)
def test_times_of_a_jump_are_ordered_and_inside_the_process(name, process):
    times = drawn(LAWS[name], process)
    middle = times.s if times.m is None else times.m
    assert bool((times.t <= process.noisiest).all() and (times.t > 0).all() and (times.s >= 0).all())
    assert bool((times.s <= middle + 1e-12).all() and (middle <= times.t + 1e-12).all())
    assert times.t.dtype == torch.float64


def test_segments_end_at_their_own_lower_edge():
    times = drawn(LAWS["segments"])
    assert torch.allclose(times.s, ((times.t / 0.25) - 1e-9).floor() * 0.25, atol=1e-9)
    assert bool((times.m - (times.t - 0.05)).abs().max() < 1e-9)


def test_first_legs_stop_at_the_end_of_a_jump():
    times = drawn(
        grid_jump_times(
            uniform_grid(20), previous_grid_point(uniform_grid(4)), previous_grid_point(uniform_grid(20), 8)
        )
    )
    assert torch.allclose(times.m, torch.maximum(times.t - 0.4, times.s), atol=1e-9)


def test_progressive_grids_halve_with_the_stages():
    grid = uniform_grid(halving(8, every=10, least=2))
    for step, parts in ((0, 8), (9, 8), (10, 4), (20, 2), (90, 2)):
        times = drawn(
            grid_jump_times(grid, previous_grid_point(grid), fraction_of_jump(0.5)),
            batch=dataclasses.replace(MANY, step=step),
        )
        assert torch.allclose(times.t - times.s, torch.full_like(times.t, 1 / parts))
        assert torch.allclose(times.m, (times.t + times.s) / 2)


def test_dyadic_jumps_start_at_multiples_of_their_length():
    times = drawn(dyadic_jumps(4))
    length = times.t - times.s
    assert set(length.tolist()) == {1.0, 0.5, 0.25, 0.125}
    assert torch.equal(times.t / length, (times.t / length).round())
    assert torch.equal(times.m, times.t - length / 2)


def test_the_asked_share_of_jumps_has_no_length():
    times = drawn(jump_times(uniform_times(), second_draw(uniform_times()), equal=0.3))
    assert abs(float((times.t == times.s).double().mean()) - 0.3) < 0.03


def test_shrinking_middles_follow_the_schedule_of_easy_consistency_tuning():
    """r / t = 1 - q^-(stage + 1) (1 + 8 sigmoid(-t)) in EDM's time, never below 0, closer in later stages."""
    process, gaps = VE(80.0), []
    for step in (0, 50, 99):
        batch = dataclasses.replace(MANY, step=step, steps=100)
        times = drawn(jump_times(log_normal_times(-1.1, 2.0), middle=shrinking_step(2.0, 4)), process, batch)
        stage = step * 4 // 100
        ratio = 1 - 2.0 ** -(stage + 1) * (1 + 8 * torch.sigmoid(-times.t))
        assert torch.allclose(times.m, times.t * ratio.clamp(min=0), atol=1e-9)
        gaps.append(float(((times.t - times.m) / times.t).mean()))
    assert gaps[0] > gaps[1] > gaps[2]


@pytest.mark.parametrize(
    ("pairs", "allowed"),
    [
        ("all", {(0, 2), (0, 3), (2, 3)}),
        ("consecutive", {(0, 2), (2, 3)}),
        ("to-end", {(0, 3), (2, 3)}),
        ("whole", {(0, 3)}),
    ],
)
def test_stored_pairs_are_those_of_the_key_states(pairs, allowed):
    stored = torch.tensor([1.0, 0.9, 0.4, 0.0])
    times = drawn(stored_pairs(pairs, keys=(1.0, 0.401, 0.0)), batch=dataclasses.replace(MANY, times=stored))
    assert set(zip(times.start.tolist(), times.stop.tolist(), strict=True)) == allowed
    assert torch.equal(times.t, stored.double()[times.start])
    assert torch.equal(times.s, stored.double()[times.stop])


def test_key_states_outside_of_the_store_are_refused():
    with pytest.raises(FewstepError, match="lacks a key state"):
        drawn(stored_pairs(keys=(1.0, 0.5, 0.0)), batch=dataclasses.replace(MANY, times=torch.tensor([1.0, 0.0])))
    with pytest.raises(FewstepError, match="trajectory store"):
        drawn(stored_pairs())


# --- sources ----------------------------------------------------------------------------------------------------------


def pairs_batch(size=4000, process=STRAIGHT):
    noise = torch.randn(size, 3, generator=generator(), dtype=torch.float64)
    ends = [torch.full((size,), v, dtype=torch.float64) for v in (process.noisiest, 0.0)]
    sigma = process.sigma(process.noisiest)
    clean = gaussian_map(process, sigma * noise, *ends)
    times = torch.tensor([process.noisiest, 0.0], dtype=torch.float64)
    return Batch(size, (3,), path=torch.stack([sigma * noise, clean], 1), times=times), noise, clean


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_annealed_noise_stays_standard_normal(beta):
    """x1 becomes sqrt(1 - beta^2) x1 + beta fresh: unit variance, correlation sqrt(1 - beta^2) with the pair's."""
    batch, noise, clean = pairs_batch()
    sight = jump_of(exact_cast(STRAIGHT), fixed(0.5, 0.5), batch, end_point_pairs(beta)).states
    assert abs(float(sight.noise.var()) - 1) < 0.05
    assert abs(float((sight.noise * noise).mean()) - (1 - beta**2) ** 0.5) < 0.03
    assert torch.equal(sight.clean, clean)
    assert torch.allclose(sight.x, 0.5 * sight.clean + 0.5 * sight.noise)


def test_pairs_are_unit_noise_on_processes_of_other_scale():
    batch, noise, _ = pairs_batch(process=VE(20.0))
    sight = jump_of(exact_cast(VE(20.0)), fixed(0.5, 0.5), batch, end_point_pairs()).states
    assert torch.allclose(sight.noise, noise)


def test_a_symmetry_turns_both_ends_of_half_of_the_pairs():
    batch, noise, clean = pairs_batch()
    sight = jump_of(exact_cast(STRAIGHT), fixed(0.5, 0.5), batch, end_point_pairs(symmetry=torch.neg)).states
    turned = torch.isclose(sight.clean, -clean).all(1)
    assert abs(float(turned.double().mean()) - 0.5) < 0.03
    assert torch.allclose(sight.noise, torch.where(turned[:, None], -noise, noise))


def test_reflow_of_exact_pairs_is_straight_and_keeps_the_data():
    """Gaussian ends are paired linearly: v = noise - clean is a function of x_t, and one Euler step gives the data."""
    batch, noise, clean = pairs_batch()

    def straight(x, time):
        t = (time / 1000)[:, None]
        z = (x - (1 - t) * MEAN) / ((1 - t) * STD + t)
        return z - (MEAN + STD * z)

    student = Denoiser(straight, STRAIGHT, Prediction("velocity"))
    networks = Networks(student, exact_teacher(STRAIGHT))
    law = jump_times(uniform_times(1e-3, 1.0), equal=1.0)
    losses = [
        flow_map_term(law, instantaneous_velocity(data_velocity), end_point_pairs(b))(
            networks, batch, None, generator()
        )[0]
        for b in (0, 0.5)
    ]
    assert losses[0] < 1e-24
    assert losses[1] > 0.1
    assert torch.allclose(Chain((1.0,), 0.0).sample(student, noise, None, generator()), clean)


@pytest.mark.parametrize("name", PROCESSES)
def test_windows_join_the_ends_of_the_teachers_own_way(name):
    """One clean prediction leads from the state to both edges, and the exact flow from the upper to the lower one."""
    process = PROCESSES[name]
    networks, law = exact_cast(process), jump_times(uniform_times(0.1, 1.0), previous_grid_point(uniform_grid(3)))
    jump = jump_of(networks, law, batch_of(32), windowed_reflow(uniform_grid(3), steps=60, order=2))
    clean, upper = jump.known("clean"), jump.s + process.noisiest / 3
    ends = [JumpCoefficients.of(process, jump.t, end).express(clean, jump.x, "state") for end in (upper, jump.s)]
    assert torch.allclose(ends[1], jump.known("arrival"), atol=1e-9)
    exact = gaussian_map(process, ends[0], upper, jump.s)
    assert float((ends[1] - exact).norm() / (ends[0] - exact).norm()) < 1e-2


@pytest.mark.parametrize("name", PROCESSES)
def test_a_teachers_rollout_arrives_at_the_states_of_its_flow(name):
    """Many second-order steps of the exact teacher from noise: the exact map's states."""
    process = PROCESSES[name]
    networks = exact_cast(process)
    batch = Batch(size=64, shape=(3,), clean=torch.zeros(64, 3, dtype=torch.float64))
    errors = []
    for steps in (64, 128):
        jump = jump_of(networks, fixed(0.4, 0.0), batch, teacher_states(steps, order=2))
        start = jump_of(networks, fixed(1.0, 0.0), batch, pure_noise)
        exact = gaussian_map(process, start.x, start.t, jump.t)
        errors.append(float((jump.x - exact).norm()))
    assert errors[1] < 0.5 * errors[0] < 0.1 * float(exact.norm())


def test_a_teachers_rollout_takes_its_share_of_the_steps_for_each_sample():
    """Steps down to t are those from its segment's lower edge on: alone or among others, and no call beyond."""
    seen = []
    teacher = exact_teacher(STRAIGHT)

    def network(x, time, shift):
        seen.append(len(x))
        return teacher.network(x, time) + shift

    networks = Networks(exact_student(STRAIGHT), dataclasses.replace(teacher, network=network))
    times = torch.tensor([1.0, 0.9, 0.6, 0.5, 0.1], dtype=torch.float64)
    shift = torch.arange(5, dtype=torch.float64)[:, None]
    batch = Batch(5, (3,), clean=torch.zeros(5, 3, dtype=torch.float64), condition={"shift": shift})

    def law(batch, process, generator):
        return JumpTimes(times, torch.zeros_like(times))

    found = jump_of(networks, law, batch, teacher_states(4))
    assert seen == [5, 3, 2, 1]  # four quarters: 1.0 and 0.9 one step, 0.6 two, 0.5 three, 0.1 four
    start = jump_of(networks, law, batch, pure_noise).x
    for k, (t, count) in enumerate(zip(times, (1, 1, 2, 3, 4), strict=True)):
        own = dataclasses.replace(found, teacher_condition={"shift": shift[k : k + 1]})
        top, end = torch.ones(1, dtype=torch.float64), t[None]
        alone, _ = ode_steps(steps=count)(networks, own, start[k : k + 1], top, end)
        assert torch.allclose(found.x[k : k + 1], alone, atol=1e-12)


def test_a_students_rollout_is_its_own_samples_noised_again():
    """An exact student makes data of the right law in two steps; noise may be that of the sample."""
    student = exact_student(STRAIGHT)
    networks = Networks(student, exact_teacher(STRAIGHT))
    batch = Batch(4000, (3,), clean=torch.zeros(1, dtype=torch.float64))
    steps = Chain((1.0, 0.5), 0.0)
    sight = jump_of(networks, fixed(0.5, 0.0), batch, student_states(steps, same_noise=True)).states
    assert torch.allclose(sight.clean.mean(0), MEAN, atol=0.06)
    assert torch.allclose(sight.clean.std(0), STD, atol=0.06)
    assert torch.allclose(sight.clean, MEAN + STD * sight.noise, atol=1e-9)
    fresh = jump_of(networks, fixed(0.5, 0.0), batch, student_states(steps)).states
    assert abs(float((fresh.noise * (fresh.clean - MEAN)).mean())) < 0.05
    with pytest.raises(FewstepError, match="roll-out or steps"):
        jump_of(networks, fixed(0.5, 0.0), batch, student_states())


def test_what_a_rollout_made_is_noised_again():
    made = Samples(*(torch.ones(4, 3, dtype=torch.float64, requires_grad=True),) * 2, *(torch.zeros(4),) * 3)
    networks, batch = exact_cast(STRAIGHT), batch_of()
    seen = student_states()(networks, batch, made, jump_of(networks, fixed(0.5, 0.0)), generator())
    assert torch.equal(seen.clean, made.clean.detach())
    assert not seen.x.requires_grad


# --- metrics and weights ----------------------------------------------------------------------------------------------


def test_metrics_are_their_formulas():
    a, b = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2)
    assert torch.allclose(squared_error()(a, b), torch.tensor([12.5, 0.0]))
    assert torch.allclose(squared_error(total=True)(a, b), torch.tensor([25.0, 0.0]))
    assert torch.allclose(pseudo_huber(12.0)(a, b), torch.tensor([1.0, 0.0]))
    assert torch.allclose(pseudo_huber()(a, b), torch.tensor([5.0, 0.0]), atol=1e-6)
    assert torch.allclose(pseudo_huber(4.0, elementwise=True)(a, b)[0], torch.tensor(((5.0 - 4) + (32**0.5 - 4)) / 2))
    assert torch.allclose(feature_distance(lambda x: 2 * x)(a, b), 4 * squared_error()(a, b))


def test_the_gradient_of_the_norm_itself_is_finite_at_zero():
    x = torch.zeros(2, 3, requires_grad=True)
    pseudo_huber()(x, torch.zeros(2, 3)).sum().backward()
    assert bool(x.grad.isfinite().all())


def test_weights_are_their_formulas():
    networks = Networks(rough(STRAIGHT), exact_teacher(STRAIGHT))
    jump = jump_of(networks, fixed((0.5, 0.25, 0.8, 1.0), (0.1, 0.25, 0.2, 0.0), (0.4, 0.25, 0.3, 0.5)))
    one = torch.ones(4, dtype=torch.float64)
    snr = torch.tensor([1.0, 9.0, 0.0625, 0.0], dtype=torch.float64)
    expected = {
        jump_length_weight(2.0): torch.tensor([0.16, 0.0, 0.36, 1.0]).double(),
        inverse_step: torch.tensor([10.0, 0.0, 2.0, 2.0]).double(),
        snr_weight("truncated"): snr.clamp(min=1),
        snr_weight("plus_one"): snr + 1,
        snr_weight("clamped", 5.0): snr.clamp(max=5),
        snr_weight("plain"): snr,
    }
    for weight, wanted in expected.items():
        assert torch.allclose(weight(networks, jump, one), wanted), weight


def test_adaptive_weights_carry_no_gradient():
    distance = torch.tensor([4.0, 0.25], requires_grad=True)
    adaptive_weight(0.5, 0.0)(None, None, distance).sum().backward()
    assert torch.allclose(distance.grad, torch.tensor([0.5, 2.0]))


def test_a_learned_weight_is_best_at_minus_the_logarithm_of_the_distance():
    """exp(phi) d - phi is least at phi = -log d: the head learns the scale of the loss at each time."""
    phi = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    network = rough(STRAIGHT).network
    network.uncertainty = lambda time: phi.expand(len(time))
    networks = Networks(Denoiser(network, STRAIGHT, two_times=True), exact_teacher(STRAIGHT))
    jump = jump_of(networks, fixed(0.5, 0.0))
    distance = torch.full((4,), torch.e, dtype=torch.float64)
    learned_uncertainty(networks, jump, distance).sum().backward()
    assert abs(float(phi.grad)) < 1e-12
    with pytest.raises(FewstepError, match="uncertainty"):
        learned_uncertainty(Networks(rough(STRAIGHT), exact_teacher(STRAIGHT)), jump, distance)


def test_the_embedding_of_guidance_is_that_of_diffusers():
    from diffusers import LatentConsistencyModelPipeline

    scale = torch.tensor([1.5, 8.0])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, scale - 1, 256)
    assert torch.allclose(sinusoid(256)(scale), theirs, atol=1e-3)


# --- schedules and stages ---------------------------------------------------------------------------------------------


def test_schedules():
    falling = ramp(1.0, 0.0, 0.2, 0.6)
    assert [round(falling(step, 10), 6) for step in (0, 2, 4, 6, 9)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert [switch(3.0, 1.0, 5)(step, 10) for step in (4, 5)] == [3.0, 1.0]


def test_terms_take_turns_and_add_up():
    def term(value):
        return lambda *_: (torch.tensor(value), {"x": torch.tensor(value)})

    turns = training_stages(((0.5, term(1.0)), (1.0, summed_terms(term(2.0), term(3.0)))))
    seen = [turns(None, Batch(1, (1,), step=step, steps=4), None, None) for step in range(4)]
    assert [float(loss) for loss, _ in seen] == [1.0, 1.0, 5.0, 5.0]
    assert [float(numbers["stage"]) for _, numbers in seen] == [0.0, 0.0, 1.0, 1.0]
    assert float(seen[3][1]["second"]) == 3.0
    with pytest.raises(FewstepError, match="rise to 1"):
        training_stages(((0.5, term(1.0)),))
