"""The adversary at key states: who gets a gradient, through which call, and what is compared with what."""

import dataclasses

import pytest
import torch
from torch import nn

from fewstep.distill.core import Batch, Cast
from fewstep.distill.discriminator import samples
from fewstep.distill.flow_map.key_states import FoolAtKeys, JudgeAtKeys, KeyedHeads, KeyHeads, landed
from fewstep.distill.rollout import Simulation
from fewstep.distill.steps import Steps
from fewstep.errors import FewstepError
from fewstep.process import RectifiedFlow
from tests.distill.flow_map_exact import exact_teacher, generator, rough

PROCESS = RectifiedFlow()
STEPS = Steps((1.0, 0.6, 0.3), 0.0)


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
    cast = Cast(rough(PROCESS), exact_teacher(PROCESS), adversary=KeyedHeads([Spy() for _ in range(3)]))
    return cast, Batch(4, (3,), path=path, times=times)


@pytest.mark.parametrize("seed", range(4))
def test_real_states_are_those_at_the_time_that_the_students_call_leads_to(seed):
    cast, batch = scene()
    with torch.no_grad():
        made = Simulation(STEPS)(cast, batch, generator(seed))
    JudgeAtKeys(samples)(cast, batch, made, generator())
    key = int(made.index[0])
    real, fake = cast.adversary.heads[key].seen
    assert torch.equal(real, batch.path[:, [2, 3, 4][key]])
    assert float(made.until[0]) == [0.6, 0.3, 0.0][key]
    share = (made.until / made.time)[:, None]
    assert torch.allclose(fake, share * made.state + (1 - share) * made.clean)  # the straight path
    assert not any(head.seen for k, head in enumerate(cast.adversary.heads) if k != key)


def test_the_students_gradient_is_that_of_its_last_call():
    cast, batch = scene()
    made = Simulation(STEPS)(cast, batch, generator())
    loss, _ = FoolAtKeys(samples, 0.3)(cast, batch, made, generator())
    weights = list(cast.student.network.parameters())
    got = torch.autograd.grad(loss, weights, retain_graph=True)
    state, _, key = landed(cast, made)
    logits = cast.adversary.heads[key]({"samples": state})
    direct = 0.3 * nn.functional.softplus(-logits).mean()
    for ours, theirs in zip(got, torch.autograd.grad(direct, weights), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)
    assert torch.allclose(loss, direct)
    assert all(p.grad is None for p in cast.adversary.parameters())


def test_the_discriminators_loss_reaches_its_own_heads_alone():
    cast, batch = scene()
    made = Simulation(STEPS)(cast, batch, generator())
    loss, _ = JudgeAtKeys(samples)(cast, batch, made, generator())
    loss.backward()
    used = [head.weight.grad is not None for head in cast.adversary.heads]
    assert used == [k == int(made.index[0]) for k in range(3)]
    assert all(p.grad is None for p in cast.student.network.parameters())


def test_mistakes_are_named():
    cast, batch = scene()
    with torch.no_grad():
        made = Simulation(STEPS)(cast, batch, generator())
    other = dataclasses.replace(batch, times=torch.tensor([1.0, 0.9, 0.8, 0.7, 0.65], dtype=torch.float64))
    with pytest.raises(FewstepError, match="lacks a key state"):
        JudgeAtKeys(samples)(cast, other, made, generator())
    with pytest.raises(FewstepError, match="one call"):
        FoolAtKeys(samples)(cast, batch, None, generator())


def test_there_are_as_many_heads_as_key_states():
    cast, _ = scene()
    assert len(KeyHeads(samples, 3)(cast, (3,)).heads) == 3
