"""GRPO on reveals: its gradient is that of the reward minus the divergence, computed by enumeration."""

import pytest
import torch
from torch import nn

from fewstep.alignment.token_policy import path_log_prob, token_policy_gradient, walk_tokens
from fewstep.discrete import TokenDenoiser, TokenLaws, enumerated_law, reveal_plan, token_transition
from fewstep.errors import FewstepError, PlanError
from fewstep.testing.token_chain import TokenChain

CHAIN = TokenChain(symbols=2, length=3, concentration=1.0)
ONE, TWO = reveal_plan(CHAIN.process, 1), reveal_plan(CHAIN.process, 2)
REWARD = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0, -0.5, 0.2, 3.0], dtype=torch.float64)


class Table(nn.Module):
    def __init__(self, seed):
        super().__init__()
        start = torch.randn(len(CHAIN.states), 3, 3, generator=torch.Generator().manual_seed(seed)).double()
        self.table = nn.Parameter(start)

    def forward(self, z):
        return self.table[CHAIN.number(z)]


def student(network):
    return TokenDenoiser(network, CHAIN.process)


def test_the_gradient_is_that_of_reward_minus_divergence():
    network, other, kl, found = Table(0), student(Table(1)), 0.7, []
    blank = torch.full((1, 3), 2)
    log_p = student(network)(blank)[0]
    law = torch.stack([log_p[i, CHAIN.sequences[:, i]] for i in range(3)]).sum(0)
    with torch.no_grad():
        at = other(blank)[0]
        reference = torch.stack([at[i, CHAIN.sequences[:, i]] for i in range(3)]).sum(0)
    objective = (law.exp() * (REWARD - kl * (law - reference))).sum()
    (wanted,) = torch.autograd.grad(-objective, network.table)
    for seed in range(10):
        walk = walk_tokens(ONE, student(network), 4000, 3, torch.Generator().manual_seed(seed))
        rewards = REWARD[(walk[-1] * torch.tensor([4, 2, 1])).sum(1)]
        with torch.no_grad():
            ref = path_log_prob(ONE, other, walk)
        value, _ = token_policy_gradient(
            path_log_prob(ONE, student(network), walk), rewards, reference=ref, kl=kl, normalise=False
        )
        found.append(torch.autograd.grad(value, network.table)[0])
    mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / 10**0.5
    assert float((mean - wanted).norm()) < 3 * float(error.norm())
    assert float(error.norm()) < 0.2 * float(wanted.norm())


def test_a_walk_has_the_probability_of_its_steps_and_the_law_of_its_plan():
    model = student(Table(2))
    states = walk_tokens(TWO, model, 6000, 3, torch.Generator().manual_seed(0))
    t, s, end = (torch.full((6000,), at, dtype=torch.float64) for at in (1.0, 0.5, 0.0))
    wanted = token_transition(CHAIN.process, states[0], model(states[0]), t, s).log_prob(states[1])
    wanted = wanted + token_transition(CHAIN.process, states[1], model(states[1]), s, end).log_prob(states[2])
    assert torch.allclose(path_log_prob(TWO, model, states), wanted)
    law = enumerated_law(TWO, TokenLaws(model, 3)).flatten()
    counts = torch.bincount((states[-1] * torch.tensor([4, 2, 1])).sum(1), minlength=8) / 6000
    assert torch.allclose(counts.double(), law, atol=4 * 0.5 / 6000**0.5)


def test_ratios_are_clipped_where_they_would_pay():
    old, rewards = torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, -1.0])
    log_prob = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    value, numbers = token_policy_gradient(log_prob, rewards, reference=old, before=old, clip=0.2)
    value.backward()
    assert log_prob.grad[0] == 0  # good and already more likely: no further
    assert log_prob.grad[3] == 0
    assert log_prob.grad[1] < 0 < log_prob.grad[2]
    assert float(numbers["clipped"]) == 1


def test_mistakes_are_named():
    one = torch.zeros(1)
    with pytest.raises(FewstepError, match="two walks"):
        token_policy_gradient(one, one, reference=one)
    two = torch.zeros(2)
    with pytest.raises(FewstepError, match="finite"):
        token_policy_gradient(two, torch.tensor([0.0, torch.nan]), reference=two)
    with pytest.raises(PlanError, match="ancestral"):
        walk_tokens(reveal_plan(CHAIN.process, 2, order="random"), student(Table(0)), 2, 3, torch.Generator())
