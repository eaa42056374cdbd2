"""Maximum mean discrepancy against its closed form on Gaussians."""

import math

import pytest
import torch

from fewstep.distillation.moments import discrepancy, gaussian_kernel, maximum_mean_discrepancy, polynomial_kernel
from fewstep.errors import FewstepError
from tests.distillation.gaussians import batch_of, cast_of, generator, made_of, normal


def draw(count, dimension, mean, std, seed):
    return mean + std * torch.randn(count, dimension, generator=generator(seed), dtype=torch.float64)


def radial_mean(gamma, d, mx, sx, my, sy):
    """E exp(-gamma |x - y|^2) of isotropic Gaussians whose means differ by the same in every coordinate."""
    spread = 1 + 2 * gamma * (sx**2 + sy**2)
    return spread ** (-d / 2) * math.exp(-gamma * d * (mx - my) ** 2 / spread)


def closed_form(gamma, d, mx, sx, my, sy):
    return sum(
        sign * radial_mean(gamma, d, *a, *b)
        for sign, a, b in ((1, (mx, sx), (mx, sx)), (1, (my, sy), (my, sy)), (-2, (mx, sx), (my, sy)))
    )


def test_unbiased_on_small_sets_under_the_null():
    for kernel in (gaussian_kernel((1.0,)), polynomial_kernel(3)):
        values = torch.stack(
            [discrepancy(draw(6, 2, 0, 1, 2 * k), draw(9, 2, 0, 1, 2 * k + 1), kernel) for k in range(3000)]
        )
        assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(len(values))
        assert float(values.min()) < 0


def test_radial_kernel_against_its_closed_form():
    kernel, gamma = gaussian_kernel((0.8,)), 1 / (2 * 0.8**2)
    sets = [(draw(800, 2, 0.5, 0.5, 2 * k), draw(800, 2, 0.0, 1.0, 2 * k + 1)) for k in range(30)]
    values = torch.stack([discrepancy(x, y, kernel) for x, y in sets])
    error = float(values.std()) / math.sqrt(30)
    wanted = closed_form(gamma, 2, 0.5, 0.5, 0.0, 1.0)
    assert error < 0.02 * wanted
    assert abs(float(values.mean()) - wanted) < 3 * error


def test_its_gradient_against_the_closed_form():
    kernel, gamma = gaussian_kernel((0.8,)), 1 / (2 * 0.8**2)
    mean = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    std = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    x = mean + std * draw(2500, 2, 0, 1, 0)
    found = torch.autograd.grad(discrepancy(x, draw(2500, 2, 0.0, 1.0, 1), kernel), (mean, std))
    h = 1e-5

    def at(m, s):
        return closed_form(gamma, 2, m, s, 0.0, 1.0)

    wanted = [(at(0.6 + h, 0.6) - at(0.6 - h, 0.6)) / (2 * h), (at(0.6, 0.6 + h) - at(0.6, 0.6 - h)) / (2 * h)]
    assert [float(g) for g in found] == pytest.approx(wanted, rel=0.08)


def test_double_sums_are_the_definition():
    x, y = draw(5, 3, 0, 1, 0), draw(4, 3, 1, 1, 1)
    kernel = polynomial_kernel(3)

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    xx = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 20
    yy = sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 12
    xy = sum(k(a, b) for a in x for b in y) / 20
    assert float(discrepancy(x, y, kernel)) == pytest.approx(xx + yy - 2 * xy)


def conditional(size, seed):
    """Classes, and a perfect student's samples and real ones for each of them: N(-2, 1/4) and N(2, 1/4)."""
    g = generator(seed)
    label = torch.randint(2, (size, 1), generator=g)
    student, real = (2.0 * (2 * label - 1) + 0.5 * torch.randn(size, 1, generator=g) for _ in range(2))
    return label, student.requires_grad_(True), real


@pytest.mark.parametrize("kernel", [gaussian_kernel((1.0,)), polynomial_kernel(3)])
def test_a_perfect_conditional_student_is_pulled_nowhere_in_any_class(kernel):
    """Neither the mean nor the spread of a class; sample i of both sides has label i and is compared with others."""
    pulls = {(c, part): [] for c in (0, 1) for part in ("mean", "spread")}
    for seed in range(600):
        label, x, real = conditional(16, seed)
        given = batch_of(16, clean=real, condition={"label": label})
        loss, _ = maximum_mean_discrepancy(kernel=kernel)(cast_of(normal(0, 1)), given, made_of(x), generator())
        (gradient,) = torch.autograd.grad(loss, x)
        for c in (0, 1):
            inside = label == c
            pulls[c, "mean"].append(gradient[inside].sum())
            pulls[c, "spread"].append((gradient * (x.detach() - 2.0 * (2 * c - 1)))[inside].sum())
    for values in pulls.values():
        found = torch.stack(values)
        assert abs(float(found.mean())) < 4 * float(found.std()) / len(values) ** 0.5


def test_pairs_leave_their_own_values_out():
    x, y = draw(5, 3, 0, 1, 0), draw(5, 3, 1, 1, 1)
    kernel = polynomial_kernel(2)

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 2

    terms = [(p, q) for p in range(5) for q in range(5) if p != q]
    wanted = sum(k(x[i], x[j]) + k(y[i], y[j]) - 2 * k(x[i], y[j]) for i, j in terms) / 20
    assert float(discrepancy(x, y, kernel, paired=True)) == pytest.approx(wanted)
    with pytest.raises(FewstepError, match="both sides"):
        discrepancy(x, y[:4], kernel, paired=True)


def test_degree_one_sees_the_means_alone():
    x, y = draw(2000, 2, 0.5, 3.0, 0), draw(2000, 2, 0.5, 0.1, 1)
    assert float(discrepancy(x, y, polynomial_kernel(1))) == pytest.approx(0, abs=0.05)
    assert float(discrepancy(x, y, polynomial_kernel(3))) > 1


def test_in_units_of_the_real_features_scale_does_not_matter():
    x, y = draw(50, 3, 0, 1, 0), draw(60, 3, 1, 2, 1)

    def loss(scale, unit):
        args = (cast_of(normal(0, 1)), batch_of(50, clean=scale * y), made_of(scale * x), generator())
        return float(maximum_mean_discrepancy(kernel=gaussian_kernel((1.0,)), unit=unit)(*args)[0])

    assert loss(1.0, True) == pytest.approx(loss(100.0, True))
    assert loss(1.0, False) != pytest.approx(loss(100.0, False))
    typical = (y[:, None] - y[None]).square().sum(2).sum() / (60 * 59)
    inside = discrepancy(x / typical.sqrt(), y / typical.sqrt(), gaussian_kernel((1.0,)))
    assert loss(1.0, True) == pytest.approx(float(inside))


def test_the_term_compares_features_and_reaches_the_student():
    x = draw(20, 4, 1, 1, 0).float().requires_grad_(True)
    real = draw(30, 4, 0, 1, 1).float()
    seen = []

    def features(samples):
        seen.append(samples.requires_grad)
        return samples[:, :2].half().float()

    args = (cast_of(normal(0, 1)), batch_of(20, clean=real), made_of(x), generator())
    loss, _ = maximum_mean_discrepancy(features, scale=3.0)(*args)
    assert float(loss.detach()) == pytest.approx(
        3 * float(discrepancy(features(x.detach()), features(real), polynomial_kernel())), rel=1e-5
    )
    (gradient,) = torch.autograd.grad(loss, x)
    assert bool((gradient[:, :2] != 0).all())
    assert bool((gradient[:, 2:] == 0).all())
    assert seen[:2] == [False, True]


def test_mistakes_are_named():
    x = draw(5, 2, 0, 1, 0)
    with pytest.raises(FewstepError, match="two samples"):
        discrepancy(x[:1], x, polynomial_kernel())
    with pytest.raises(FewstepError, match="real data"):
        maximum_mean_discrepancy()(cast_of(normal(0, 1)), batch_of(5), made_of(x), generator())
