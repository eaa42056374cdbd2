"""SinSR and OSEDiff on Gaussians: teachers whose paths are affine, scores whose difference is known."""

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.engine import total
from fewstep.distillation.method import method
from fewstep.distillation.part import replaced
from fewstep.distillation.times import fixed_times
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import VE, RectifiedFlow, ResidualShift
from tests.distillation.gaussians import counted, generator, normal

FLOW = RectifiedFlow()
SHIFT = ResidualShift(steps=4, least_noise=0.2)
MEAN, VARIANCE = 0.4, 0.3


def teachers_map():
    """Where DDIM of the exact denoiser takes x at the noisiest time: slope and constant, by its recursion."""
    slope, constant = 1.0, 0.0
    for t in (3.0, 2.0, 1.0, 0.0):
        alpha, sigma = SHIFT.alpha(t), SHIFT.sigma(t)
        gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        after = (SHIFT.alpha(t - 1), SHIFT.sigma(t - 1)) if t else (1.0, 0.0)
        kept = after[1] / sigma
        step = kept + (after[0] - alpha * kept) * gain
        slope, constant = step * slope, step * constant + (after[0] - alpha * kept) * (1 - gain * alpha) * MEAN
    return slope, constant


def two_lines(forth, back):
    """A student that says one affine function at the noisiest time and another at the cleanest."""

    def network(x, time):
        noisiest = (time == 3).reshape(-1, 1)
        return torch.where(noisiest, forth[0] * x + forth[1], back[0] * x + back[1])

    return Denoiser(network, SHIFT, Prediction("sample"))


def two_way(forth, back, **options):
    leaves = [torch.tensor(pair, dtype=torch.float64, requires_grad=True) for pair in (forth, back)]
    term = method("sinsr", SHIFT, **options).terms["two_way"]
    teacher, calls = counted(normal(MEAN, VARIANCE, SHIFT, "sample"))
    data = MEAN + VARIANCE**0.5 * torch.randn(500, 1, generator=generator(3), dtype=torch.float64)
    batch = Batch(500, (1,), clean=data)
    loss, numbers = term(Networks(two_lines(*leaves), teacher), batch, None, generator(1))
    assert calls == [500] * 4
    return torch.autograd.grad(loss, leaves, allow_unused=True), {k: float(v) for k, v in numbers.items()}, data


def test_sinsr_is_at_rest_at_the_teachers_map_and_its_inverse():
    slope, constant = teachers_map()
    gradients, numbers, _ = two_way((slope, constant), (1 / slope, -constant / slope))
    assert numbers == pytest.approx({"forth": 0, "back": 0, "around": 0}, abs=1e-12)
    assert all(float(g.abs().max()) < 1e-6 for g in gradients)


def test_each_loss_of_sinsr_sees_what_is_wrong():
    slope, constant = teachers_map()
    inverse = (1 / slope, -constant / slope)
    _, numbers, _ = two_way((slope, constant + 0.2), inverse)
    assert numbers == pytest.approx({"forth": 0.04, "back": 0, "around": 0.04}, abs=1e-6)
    gradients, numbers, data = two_way((slope, constant), (inverse[0] + 0.5, inverse[1]))
    assert numbers["forth"] == pytest.approx(0, abs=1e-12)
    assert numbers["around"] == pytest.approx(float((0.5 * slope * data).square().mean()))
    # data that went back is given to the way forth as it is: no gradient reaches the way back through it
    without, _, _ = two_way((slope, constant), (inverse[0] + 0.5, inverse[1]), inverse=0.0)
    assert float(without[1].abs().max()) == 0
    assert float(without[0].abs().max()) > 0
    assert float(gradients[1].abs().max()) > 0


def test_sinsr_needs_a_clock_for_the_data_and_data():
    made = method("sinsr", VE()).terms["two_way"]
    networks = Networks(normal(0, 1, VE()), normal(0, 1, VE()))
    with pytest.raises(FewstepError, match="network time"):
        made(networks, Batch(4, (1,), clean=torch.zeros(4, 1)), None, generator())
    with pytest.raises(FewstepError, match="data"):
        method("sinsr", SHIFT).terms["two_way"](
            Networks(*[normal(0, 1, SHIFT, "sample")] * 2), Batch(4, (1,)), None, generator()
        )
    assert method("sinsr", SHIFT, data=0.0).needs == frozenset()


M, S_STUDENT, MU, V, T = 0.7, 0.8, 0.2, 0.25, 0.4


def test_osediff_starts_from_the_picture_and_has_the_gradient_of_its_three_parts():
    """x = m + s y of the picture y ~ N(0, 1) itself; data 0.5 y; the critic knows the student's law."""
    leaves = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (M, S_STUDENT)]
    student = Denoiser(lambda x, time, given: leaves[0] + leaves[1] * x, FLOW, Prediction("sample"))
    half = torch.randn(100_000, 1, generator=generator(), dtype=torch.float64)
    given = torch.cat([half, -half]) / half.square().mean().sqrt()
    teacher, critic = (normal(*law) for law in ((MU, V), (M, S_STUDENT**2)))
    ignoring = [Denoiser(lambda x, time, given, n=n: n.network(x, time), FLOW, n.prediction) for n in (teacher, critic)]
    # with a floor this high the normaliser is a constant, which `matching` takes back
    floor, matching = 1e6, 3e6
    made = method(
        "osediff", FLOW, guidance=1.0, floor=floor, matching=matching, features=lambda x: 2 * x, perceptual=0.5
    )
    terms = {**made.terms, "score": replaced(made.terms["score"], times=fixed_times((T,)))}
    batch = Batch(len(given), (1,), clean=0.5 * given, condition={"given": given})
    networks = Networks(student, *ignoring)
    seen = made.rollout(networks, batch, generator(1))
    assert torch.equal(seen.state, given)
    assert bool((seen.time == 1).all())
    value, _ = total(terms, networks, batch, seen, generator(2))
    found = [float(g) for g in torch.autograd.grad(value, leaves)]
    a = 1 - T
    of_data, of_student = a**2 * V + T**2, a**2 * S_STUDENT**2 + T**2
    matched = (M - MU) * T**2 / of_data, a * S_STUDENT * (a * S_STUDENT**2 / of_student - a * V / of_data)
    regression = 2 * M, 2 * (S_STUDENT - 0.5)
    wanted = [(1 + 0.5 * 4) * r + 3 * m for r, m in zip(regression, matched, strict=True)]
    assert found == pytest.approx(wanted, rel=0.01)


def test_osediff_without_its_condition_is_refused_and_starts_residuals_at_zero():
    batch = Batch(3, (1,), clean=torch.ones(3, 1))
    networks = Networks(*[normal(0, 1)] * 3)
    with pytest.raises(FewstepError, match="'given'"):
        method("osediff", FLOW).rollout(networks, batch, generator())
    seen = method("osediff", FLOW, start=None).rollout(networks, batch, generator())
    assert torch.equal(seen.state, torch.zeros(3, 1))
