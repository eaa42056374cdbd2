"""Guided decoupled DMD on a line: its stationary points in closed form, and arms that differ as they say."""

import pytest
import torch
from guided_line import ARMS, INNER, MEAN, Line, fixed_point, made

from fewstep.distillation.core import Networks, Samples


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("call", [0, 1])
def test_the_exact_critic_pulls_a_student_at_the_stationary_point_nowhere(guidance, call):
    """The branches of the preset themselves, without weights, on samples of the law that the equations give."""
    chosen, line = made(guidance, weighted=False), Line()
    time = chosen.steps.times[call]
    point = fixed_point(guidance, time)
    generator = torch.Generator().manual_seed(call)
    size = 400_000
    z = torch.randn(size // 2, 1, generator=generator, dtype=torch.float64)
    z = torch.cat([z, -z]) / z.std()
    mean, std = (torch.tensor(point[k], dtype=torch.float64, requires_grad=True) for k in ("mean", "std"))
    x = mean + std * z
    made_here = Samples(
        x, 0 * x.detach(), torch.full((size,), time, dtype=torch.float64), torch.zeros(size), torch.zeros(size)
    )
    batch = line.batches(size)(generator)
    teacher = line.teacher()

    def critic(x_t, time, class_labels):
        t = time[:, None].double() / 1000
        a, v = 1 - t, point["std"] ** 2
        clean = point["mean"] + a * v / (a**2 * v + t**2) * (x_t - a * point["mean"])
        return (x_t - clean) / t

    networks = Networks(teacher, teacher, type(teacher)(critic, teacher.process, teacher.prediction))
    total = sum(term(networks, batch, made_here, generator)[0] for term in chosen.terms.values())
    pull = torch.autograd.grad(total, (mean, std))
    assert [float(p) for p in pull] == pytest.approx([0.0, 0.0], abs=4e-3)
    if guidance == 1:
        assert (point["mean"], point["std"]) == pytest.approx((MEAN, INNER**0.5), abs=1e-6)


def test_guidance_that_outweighs_matching_leaves_no_spread():
    assert fixed_point(4.0, 0.98)["std"] == 0.0
    assert fixed_point(4.0, 0.25)["std"] > 0.05


def test_every_arm_is_a_method_of_its_own():
    methods = [made(**{"guidance": 2.0, **options}) for options in ARMS.values()]
    assert len({str((m.terms, m.critic.calls)) for m in methods}) == len(ARMS)
