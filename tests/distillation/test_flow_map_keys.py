"""The adversary at key states: who gets a gradient, through which call, and what is compared with what."""

import dataclasses

import pytest
import torch
from torch import nn

from fewstep.distillation.chain import Chain
from fewstep.distillation.core import Batch, Networks
from fewstep.distillation.discriminator import discriminator_heads, samples
from fewstep.distillation.flow_map.key_states import (
    key_state_discriminator_loss,
    key_state_generator_loss,
    landed,
)
from fewstep.distillation.rollout import backward_simulation
from fewstep.errors import FewstepError
from fewstep.process import RectifiedFlow
from tests.distillation.flow_map_exact import exact_teacher, generator, rough

PROCESS = RectifiedFlow()
STEPS = Chain((1.0, 0.6, 0.3), 0.0)


class Spy(nn.Module):
    """Linear logits; remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        self.seen = []

    def forward(self, features):
        self.seen.append(features["samples"].detach())
        return (features["samples"] @ self.weight)[:, None]


def scene():
    times = torch.tensor([1.0, 0.8, 0.6, 0.3, 0.0], dtype=torch.float64)
    path = torch.randn(4, 5, 3, generator=generator(1), dtype=torch.float64)
    networks = Networks(rough(PROCESS), exact_teacher(PROCESS), adversary=nn.ModuleList([Spy() for _ in range(3)]))
    return networks, Batch(4, (3,), path=path, times=times)


@pytest.mark.parametrize("seed", range(4))
def test_real_states_are_those_at_the_time_that_the_students_call_leads_to(seed):
    networks, batch = scene()
    with torch.no_grad():
        made = backward_simulation(STEPS)(networks, batch, generator(seed))
    key_state_discriminator_loss(samples)(networks, batch, made, generator())
    key = int(made.index[0])
    real, fake = networks.adversary[key].seen
    assert torch.equal(real, batch.path[:, [2, 3, 4][key]])
    assert float(made.next_time[0]) == [0.6, 0.3, 0.0][key]
    share = (made.next_time / made.time)[:, None]
    assert torch.allclose(fake, share * made.state + (1 - share) * made.clean)  # the straight path
    assert not any(head.seen for k, head in enumerate(networks.adversary) if k != key)


def test_the_students_gradient_is_that_of_its_last_call():
    networks, batch = scene()
    made = backward_simulation(STEPS)(networks, batch, generator())
    loss, _ = key_state_generator_loss(samples, 0.3)(networks, batch, made, generator())
    weights = list(networks.student.network.parameters())
    got = torch.autograd.grad(loss, weights, retain_graph=True)
    state, _, key = landed(networks, made)
    logits = networks.adversary[key]({"samples": state})
    direct = 0.3 * nn.functional.softplus(-logits).mean()
    for ours, theirs in zip(got, torch.autograd.grad(direct, weights), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)
    assert torch.allclose(loss, direct)
    assert all(p.grad is None for p in networks.adversary.parameters())


def test_the_discriminators_loss_reaches_its_own_heads_alone():
    networks, batch = scene()
    made = backward_simulation(STEPS)(networks, batch, generator())
    loss, _ = key_state_discriminator_loss(samples)(networks, batch, made, generator())
    loss.backward()
    used = [head.weight.grad is not None for head in networks.adversary]
    assert used == [k == int(made.index[0]) for k in range(3)]
    assert all(p.grad is None for p in networks.student.network.parameters())


def test_mistakes_are_named():
    networks, batch = scene()
    with torch.no_grad():
        made = backward_simulation(STEPS)(networks, batch, generator())
    other = dataclasses.replace(batch, times=torch.tensor([1.0, 0.9, 0.8, 0.7, 0.65], dtype=torch.float64))
    with pytest.raises(FewstepError, match="lacks a key state"):
        key_state_discriminator_loss(samples)(networks, other, made, generator())
    with pytest.raises(FewstepError, match="one call"):
        key_state_generator_loss(samples)(networks, batch, None, generator())


def test_there_are_as_many_heads_as_key_states():
    networks, _ = scene()
    assert len(discriminator_heads(samples, count=3)(networks, (3,))) == 3
