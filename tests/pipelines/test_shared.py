"""Several roles on one frozen base: each is its own adapter, and the base is the teacher."""

import pytest
import torch

from fewstep.pipelines import backbone_of
from fewstep.pipelines.shared import SharedBase
from tests.pipelines import tiny_pipelines as tiny

COND = {"class_labels": torch.tensor([1, 2])}


def base(seed=0):
    return backbone_of(tiny.dit(None)).eval()


def noise(seed=0):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def say(network, x):
    return network(x, timestep=torch.tensor([500, 500]), **COND, return_dict=False)[0][:, :4]


def shaken(role, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in role.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))


def test_roles_begin_as_the_base_and_part_from_it_alone():
    network = base()
    x = noise()
    wanted = say(network, x)
    shared = SharedBase(network, 4)
    student, critic, teacher = shared.role("student"), shared.role("critic"), shared.frozen()
    for role in (student, critic, teacher):
        torch.testing.assert_close(say(role, x), wanted)
    shaken(student, 1)
    torch.testing.assert_close(say(critic, x), wanted)
    torch.testing.assert_close(say(teacher, x), wanted)
    assert not torch.allclose(say(student, x), wanted, atol=1e-3)
    assert not list(teacher.parameters())
    shared.close()
    torch.testing.assert_close(say(network, x), wanted)
    assert not any("lora" in name for name, _ in network.named_parameters())


def test_a_role_is_small_and_its_state_is_its_own():
    network = base()
    whole = sum(p.numel() for p in network.parameters())
    shared = SharedBase(network, 2)
    student, critic = shared.role("student"), shared.role("critic")
    assert sum(p.numel() for p in student.parameters()) < 0.5 * whole
    assert student.state_dict().keys() == critic.state_dict().keys()
    shaken(student, 1)
    critic.load_state_dict(student.state_dict())
    torch.testing.assert_close(say(critic, noise()), say(student, noise()))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_gradient_through_two_roles_is_that_of_two_networks(recompute):
    """The student's samples judged by the critic, as in SiD: also with activations recomputed in the backward pass."""

    def gradient(student, critic):
        loss = (say(critic, say(student, noise())) ** 2).mean()
        return torch.autograd.grad(loss, list(student.parameters()))

    pair = []
    for name in ("student", "critic"):
        alone = SharedBase(base(), 4)
        pair.append(alone.role(name))
        shaken(pair[-1], len(pair))
    wanted = gradient(*pair)
    shared = SharedBase(base(), 4)
    both = [shared.role("student"), shared.role("critic")]
    for role, twin in zip(both, pair, strict=True):
        role.load_state_dict(twin.state_dict())
    if recompute:
        shared.recompute_activations()
    for found, expected in zip(gradient(*both), wanted, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
