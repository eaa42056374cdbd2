"""Drifting against its definition written out, its symmetry, and its fixed point."""

import math

import pytest
import torch

from fewstep.distillation.drifting import drift, drifting_loss
from fewstep.errors import FewstepError
from tests.distillation.gaussians import batch_of, cast_of, generator, made_of, normal


def draw(count, dimension, mean, std, seed):
    return mean + std * torch.randn(count, dimension, generator=generator(seed), dtype=torch.float64)


def test_the_definition_written_out():
    x, real, others = draw(3, 2, 0, 1, 0), draw(4, 2, 1, 1, 1), draw(2, 2, 0, 1, 2)
    everyone = [*real, *others]
    e = [[math.exp(-float((a - b).norm()) / 0.7) for b in everyone] for a in x]
    a = [[math.sqrt(e[i][j] / sum(e[i]) * e[i][j] / sum(row[j] for row in e)) for j in range(6)] for i in range(3)]
    wanted = [sum(a[i][p] * a[i][4 + q] * (real[p] - others[q]) for p in range(4) for q in range(2)) for i in range(3)]
    assert torch.allclose(drift(x, real, others, 0.7), torch.stack(wanted))


def test_exchanging_the_sets_turns_the_sign():
    x, real, others = draw(5, 3, 0, 1, 0), draw(6, 3, 1, 1, 1), draw(7, 3, 0, 2, 2)
    assert torch.allclose(drift(x, real, others, 0.5), -drift(x, others, real, 0.5))


def test_equal_laws_do_not_move_and_others_do():
    """Over many draws, at fixed places."""
    places = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    equal, wider = (
        torch.stack([drift(places, draw(16, 1, 0, s, 2 * k), draw(16, 1, 0, 1, 2 * k + 1), 0.5) for k in range(800)])
        for s in (1.0, 2.0)
    )
    for values, moved in ((equal, False), (wider, True)):
        z = values.mean(0) / (values.std(0) / len(values) ** 0.5)
        assert bool((z.abs() > 4).any()) is moved
    assert float(wider.mean(0)[0]) < 0 < float(wider.mean(0)[-1])  # outwards


def test_conditions_do_not_see_each_other():
    """Two far classes at their places: only samples of the own class pull, so neither class moves to the other."""
    label = torch.tensor([0, 0, 0, 1, 1, 1])
    x = torch.where(label[:, None] == 1, 5.0, -5.0) + 0.1 * torch.randn(6, 1, generator=generator(0))
    real = torch.where(label[:, None] == 1, 6.0, -6.0) + 0.1 * torch.randn(6, 1, generator=generator(1))
    made = made_of(x.requires_grad_(True))
    given = batch_of(6, clean=real, condition={"label": label})
    loss, numbers = drifting_loss(widths=(0.2,))(cast_of(normal(0, 1)), given, made, generator())
    (gradient,) = torch.autograd.grad(loss, x)
    assert bool((gradient[label == 1] < 0).all())  # descent moves the class at 5 up
    assert bool((gradient[label == 0] > 0).all())
    assert float(numbers["alone"]) == 0


def test_a_normalised_loss_is_the_number_of_its_widths_and_its_drift_falls_where_the_laws_agree():
    def numbers(mean):
        made = made_of(draw(64, 4, mean, 1, 0).requires_grad_(True))
        given = batch_of(64, clean=draw(64, 4, 0, 1, 1))
        loss, found = drifting_loss(widths=(0.2,))(cast_of(normal(0, 1)), given, made, generator())
        return float(loss.detach()), float(found["drift"])

    (near_loss, near), (far_loss, far) = numbers(0.0), numbers(2.0)
    assert near_loss == pytest.approx(1.0)
    assert far_loss == pytest.approx(1.0)
    assert near < 0.5 * far


def test_mistakes_are_named():
    x, term = draw(4, 2, 0, 1, 0), drifting_loss()
    with pytest.raises(FewstepError, match="real data"):
        term(cast_of(normal(0, 1)), batch_of(4), made_of(x), generator())
    alone = batch_of(4, clean=x, condition={"label": torch.arange(4)})
    with pytest.raises(FewstepError, match="share a condition"):
        term(cast_of(normal(0, 1)), alone, made_of(x), generator())
