"""Samplers of structure predictors: plans equal the loops they were read from; what their constants do is known."""

import itertools
import math

import numpy as np
import pytest
import torch

from fewstep.errors import FewstepError, PlanError
from fewstep.executor import Noise, sample
from fewstep.plan import Plan
from fewstep.prediction import Prediction
from fewstep.process import VE
from fewstep.solvers import SOLVERS, grids
from fewstep.tasks.proteins import SAMPLERS, moved, populations, rmsd, structure_plan, superposed
from fewstep.tasks.proteins.geometry import centred, rotations
from fewstep.testing.mixture import Mixture

ATOMS = 20


def bent(x, sigma):
    """Some denoiser, not that of any data, of one structure."""
    return torch.tanh(x / (3 + sigma)) * 5 + 0.3 * x / (1 + sigma)


def power_law(most, least, rho, places):
    return [(most ** (1 / rho) + p * (least ** (1 / rho) - most ** (1 / rho))) ** rho for p in places]


LEVELS = {
    "af3": (2560, 0.0064, 7, lambda n: [i / n for i in range(n + 1)], None),
    "protenix": (2560, 0.0064, 7, lambda n: [i / n for i in range(n)], 0.0),
    "protenix-mini": (2560, 0.0064, 7, lambda n: [i / n for i in range(n)], 0.0),
    "boltz-1": (2560, 0.0064, 8, lambda n: [i / (n - 1) for i in range(n)], 0.0),
    "boltz-2": (2560, 0.0016, 7, lambda n: [i / (n - 1) for i in range(n)], 0.0),
    "chai-1": (1280, 0.0064, 7, lambda n: [(2 * i + 1) / (2 * n) for i in range(n)], None),
}
KNOBS = {
    "af3": (0.8, 1.0, 1.003, 1.5), "protenix": (0.8, 1.0, 1.003, 1.5), "protenix-mini": (0.0, 1.0, 1.003, 1.0),
    "boltz-1": (0.605, 1.107, 0.901, 1.638), "boltz-2": (0.8, 1.0, 1.003, 1.5),
}  # fmt: skip


@pytest.mark.parametrize("steps", [2, 5, 200])
@pytest.mark.parametrize("name", LEVELS)
def test_schedules_are_those_of_the_projects(name, steps):
    most, least, rho, places, end = LEVELS[name]
    expected = power_law(most, least, rho, places(steps)) + ([] if end is None else [end])
    assert SAMPLERS[name].levels(steps) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("steps", "printed"),
    [(2, [2560, 56, 0]), (3, [2560, 255, 8.0, 0]), (5, [2560, 705, 145, 18.6, 1.02, 0])],
)
def test_few_step_levels_of_protenix_mini(steps, printed):
    assert SAMPLERS["protenix-mini"].levels(steps) == pytest.approx(printed, rel=0.01)


def published(name, steps, draws, denoise):
    """Algorithm 18 without motions; the first raised state, and the end."""
    gamma0, gamma_min, noise_scale, step_scale = KNOBS[name]
    most, least, rho, places, end = LEVELS[name]
    levels = power_law(most, least, rho, places(steps)) + ([] if end is None else [end])
    x, first = levels[0] * draws[0], None
    for k, (last, now) in enumerate(itertools.pairwise(levels)):
        raised = last * (1 + (gamma0 if now > gamma_min else 0))
        noisy = x + noise_scale * math.sqrt(raised**2 - last**2) * draws[k + 1]
        first = noisy if first is None else first
        x = noisy + step_scale * (now - raised) * (noisy - denoise(noisy, raised)) / raised
    return first, x


@pytest.mark.parametrize("steps", [2, 7])
@pytest.mark.parametrize("name", KNOBS)
def test_plans_are_the_published_loops(name, steps):
    plan = structure_plan(name, steps)
    stream = Noise([5])
    later = [stream.draw((ATOMS, 3)).double() for _ in range(steps)]  # a given first state draws nothing
    start = torch.randn(1, ATOMS, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    raised = torch.randn(1, ATOMS, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    stochastic = [k for k, row in enumerate(plan.rows) if row.noise]
    draws = [start, raised, *(torch.zeros_like(start) for _ in range(steps))]
    for draw, k in enumerate(stochastic):
        draws[k + 2] = later[draw]
    first, expected = published(name, steps, draws, bent)
    found = sample(plan, bent, seeds=[5], shape=(ATOMS, 3), state=first, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # times are told in float32
    gamma0, _, noise_scale, _ = KNOBS[name]
    level = LEVELS[name][0]
    raises = gamma0 if SAMPLERS[name].levels(steps)[1] > KNOBS[name][1] else 0.0
    variance = level**2 * (1 + noise_scale**2 * ((1 + raises) ** 2 - 1))
    assert plan.prior_scale == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert Plan.from_dict(plan.to_dict()) == plan


def test_chai_adds_the_mean_slope_to_the_result_of_euler():
    steps = 6
    most, least, rho, places, _ = LEVELS["chai-1"]
    levels = power_law(most, least, rho, places(steps))
    x = levels[0] * torch.randn(1, ATOMS, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plan = structure_plan("chai-1", steps)
    found = sample(plan, bent, seeds=[5], shape=(ATOMS, 3), state=x, dtype=torch.float64)
    stream, drawn = Noise([5]), False
    for last, now in itertools.pairwise(levels):
        rate = min(80 / steps, math.sqrt(2) - 1) if 4e-4 * 16 <= last <= 80 else 0.0
        raised = last * (1 + rate)
        if rate:
            x, drawn = x + 1.003 * math.sqrt(raised**2 - last**2) * stream.draw((ATOMS, 3)).double(), True
        slope = (x - bent(x, raised)) / raised
        x = x + (now - raised) * slope
        x = x + (now - raised) * (slope + (x - bent(x, now)) / now) / 2
    assert drawn
    assert plan.steps == 2 * (steps - 1)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step_scale", [0.7, 1.0, 1.5])
def test_the_last_step_leaves_one_less_the_step_scale(step_scale):
    template = torch.randn(ATOMS, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    plan = structure_plan("protenix", 3, gamma=0.0, step_scale=step_scale)
    states = []
    sample(
        plan, lambda x, sigma: template.expand_as(x), seeds=[0], shape=(ATOMS, 3), dtype=torch.float64,
        callback=lambda progress: states.append(progress.state.clone()),
    )  # fmt: skip
    away = [state - template for state in states]
    torch.testing.assert_close(away[2], (1 - step_scale) * away[1], rtol=1e-9, atol=1e-9)
    levels = SAMPLERS["protenix"].levels(3)
    torch.testing.assert_close(away[1], (1 + step_scale * (levels[2] / levels[1] - 1)) * away[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["protenix", "protenix-mini", "boltz-1"])
def test_on_a_gaussian_the_variance_follows_the_recursion(name):
    spread, steps = 2.0, 8
    gamma0, gamma_min, noise_scale, step_scale = KNOBS[name]
    levels = SAMPLERS[name].levels(steps)
    variance = levels[0] ** 2
    for last, now in itertools.pairwise(levels):
        raised = last * (1 + (gamma0 if now > gamma_min else 0))
        variance += noise_scale**2 * (raised**2 - last**2)
        variance *= (1 + step_scale * (now / raised - 1) * raised**2 / (spread**2 + raised**2)) ** 2
    plan = structure_plan(name, steps)
    found = sample(
        plan, lambda x, s: x * spread**2 / (spread**2 + s**2), seeds=[0], shape=(40_000,), dtype=torch.float64
    )
    assert float(found.std()) == pytest.approx(math.sqrt(variance), rel=0.02)
    if name == "protenix-mini":  # the ODE tends to the data: eight Euler steps have what they have
        fine = sample(
            structure_plan(name, 400), lambda x, s: x * spread**2 / (spread**2 + s**2), seeds=[0], shape=(40_000,)
        )
        assert float(fine.std()) == pytest.approx(spread, rel=0.04)


@pytest.fixture(scope="module")
def conformers():
    """Three conformers of twenty atoms, 4 angstrom apart, of thermal deviation 0.3, and their shares."""
    generator = torch.Generator().manual_seed(0)
    base = 6 * torch.randn(ATOMS, 3, generator=generator, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(3 * ATOMS, 3, generator=generator, dtype=torch.float64))[0].T
    away = 4 * math.sqrt(ATOMS / 2)  # orthogonal, so that each pair has a distance of 4 per atom
    means = base.flatten() + away * axes
    return Mixture(torch.tensor([0.5, 0.3, 0.2]), means, torch.full((3, 3 * ATOMS), 0.09))


def measured(mixture, plan, count):
    """Mean distance per atom to the nearest conformer, and total variation of the populations."""
    x = _many(mixture, plan, count)
    means = mixture.means.reshape(-1, ATOMS, 3)
    apart = (x.unsqueeze(1) - means).square().sum(-1).mean(-1).sqrt()
    shares = populations(x, means, aligned=False)
    return float(apart.amin(1).mean()), float((shares - mixture.weights).abs().sum() / 2)


def _many(mixture, plan, count):
    """All samples from one stream, which is much faster than a stream each."""

    def network(x, sigma):
        return mixture.estimates(x[0], 1.0, float(sigma))[0].unsqueeze(0)

    return sample(plan, network, seeds=[0], shape=(count, ATOMS, 3), dtype=torch.float64)[0]


def test_af3s_constants_ruin_few_steps_and_sharpen_many(conformers):
    printed = {2: 1914.0, 3: 796.0, 5: 67.0}  # of the analysis, in angstrom; they follow from the constants alone
    for steps, expected in printed.items():
        assert measured(conformers, structure_plan("protenix", steps), 100)[0] == pytest.approx(expected, rel=0.05)
    few = {steps: measured(conformers, structure_plan("protenix-mini", steps), 200)[0] for steps in (2, 3, 5, 10)}
    assert few[2] < 6
    assert few[3] < 2
    assert few[5] < 0.6
    assert few[10] < 0.6
    sharp, biased = measured(conformers, structure_plan("protenix", 200), 600)
    true, fair = measured(conformers, structure_plan("protenix-mini", 200), 600)
    thermal = 0.3 * math.sqrt(3)
    assert true == pytest.approx(thermal, rel=0.05)
    assert sharp < 0.5 * thermal
    assert fair < 0.05 < biased


def test_every_solver_of_the_library_runs_a_structure_network():
    process, prediction = VE(2560.0, "sigma"), Prediction("sample")
    grid = grids.given([2560.0, 145.0, 12.0, 1.0])
    template = 5 * torch.randn(ATOMS, 3, generator=torch.Generator().manual_seed(3))
    for name in ("ddim", "euler", "heun", "dpm_solver_pp_2m", "unipc", "deis_rhoab", "ipndm", "sde_dpm_solver_pp"):
        plan = SOLVERS[name](process, prediction, grid)
        found = sample(plan, lambda x, s: template.expand_as(x), seeds=[0], shape=(ATOMS, 3))
        torch.testing.assert_close(found[0], template, rtol=1e-3, atol=2e-2)


def test_churned_euler_is_euler_without_its_scales_and_refuses_impossible_ones():
    process, prediction, grid = VE(80.0), Prediction("edm"), grids.given([80.0, 10.0, 1.0])
    plain, same = (SOLVERS[name](process, prediction, grid) for name in ("euler", "churned_euler"))
    assert not same.stochastic
    for ours, theirs in zip(same.rows, plain.rows, strict=True):
        assert ours.state == pytest.approx(theirs.state, rel=1e-12)
        assert ours.output == pytest.approx(theirs.output, rel=1e-12)
    capped = SOLVERS["churned_euler"](process, prediction, grid, gamma=0.8)
    assert capped.prior_scale == 80.0  # no room above the noisiest time
    assert float(capped.rows[1].time) == pytest.approx(18.0)
    for wrong in ({"gamma": -1.0}, {"step_scale": 0.0}, {"noise_scale": -0.1}):
        with pytest.raises(PlanError, match="scales"):
            SOLVERS["churned_euler"](process, prediction, grid, **wrong)


def test_plans_of_structures_refuse_what_is_unknown():
    with pytest.raises(FewstepError, match="protenix"):
        structure_plan("protenics")
    with pytest.raises(FewstepError, match="step_scale"):
        structure_plan("boltz-2", 5, stepscale=1)
    with pytest.raises(FewstepError, match="too few steps"):
        structure_plan("boltz-2", 1)
    given = structure_plan(levels=[2560, 100, 0])
    assert [float(row.time) for row in given.rows] == [2560, 100]


# --- motions -----------------------------------------------------------------------------------------------------


def test_rotations_are_rotations_and_uniform():
    turn = rotations(torch.randn(4000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3, dtype=torch.float64).expand_as(turn))
    assert torch.det(turn).min() > 0.999
    assert turn.mean(0).abs().max() < 0.04
    angle = ((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).arccos()
    # density (1 - cos a) / pi of the angle: its mean is pi / 2 + 2 / pi
    assert float(angle.mean()) == pytest.approx(math.pi / 2 + 2 / math.pi, rel=0.02)


def test_superposition_is_that_of_scipy_and_never_mirrors():
    from scipy.spatial.transform import Rotation

    generator = torch.Generator().manual_seed(4)
    mobile, target = (torch.randn(2, ATOMS, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    moved_there = superposed(mobile, target)
    for k in range(2):
        a, b = (centred(x[k]).numpy() for x in (mobile, target))
        turn, _ = Rotation.align_vectors(b, a)
        np.testing.assert_allclose(moved_there[k].numpy(), turn.apply(a) + target[k].mean(0).numpy(), atol=1e-9)
    assert float(rmsd(mobile * torch.tensor([1.0, 1.0, -1.0]), mobile).min()) > 0.3
    mask = torch.ones(2, ATOMS, dtype=torch.float64)
    mask[:, 15:] = 0
    spoiled = mobile.clone()
    spoiled[:, 15:] += 100.0
    part = superposed(spoiled, target, mask)[:, :15]
    torch.testing.assert_close(part, superposed(mobile[:, :15], target[:, :15]))


def test_motions_change_nothing_for_a_denoiser_without_direction():
    template = 8 * torch.randn(1, ATOMS, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)

    def denoise(x, sigma):
        return superposed(template.expand_as(x), x) + 0.1 * centred(x)

    plan = structure_plan("protenix", 6)
    still = sample(plan, moved(denoise, None), seeds=[1, 2], shape=(ATOMS, 3), dtype=torch.float64)
    turned = sample(plan, moved(denoise, [1, 2]), seeds=[1, 2], shape=(ATOMS, 3), dtype=torch.float64)
    torch.testing.assert_close(turned, still, rtol=1e-6, atol=1e-4)


def test_motions_are_those_of_the_seed_and_turn_what_has_a_direction():
    template = centred(8 * torch.randn(ATOMS, 3, generator=torch.Generator().manual_seed(6)))

    def denoise(x, sigma):
        return template.expand_as(x)

    x = torch.randn(40, ATOMS, 3, generator=torch.Generator().manual_seed(7))
    sigma = torch.tensor(1.0)
    found = moved(denoise, range(40), translation=0.0)(x, sigma)
    torch.testing.assert_close(moved(denoise, [7], translation=0.0)(x[7:8], sigma), found[7:8])
    assert float(rmsd(found, template).max()) < 1e-4
    assert float(found.mean(0).abs().mean()) < 0.35 * float(template.abs().mean())
    aligned = moved(denoise, range(40), align=True)(x, sigma)
    torch.testing.assert_close(aligned, superposed(template.expand_as(x), centred(x)), rtol=1e-4, atol=1e-3)
