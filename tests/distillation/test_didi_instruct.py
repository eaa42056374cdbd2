"""DiDi-Instruct on sequences that can be enumerated: its gradient is that of the divergence, its reward that ratio."""

import pytest
import torch
from torch import nn

from fewstep.discrete import TokenDenoiser, token_transition
from fewstep.distillation.advantages import group_advantages
from fewstep.distillation.didi_instruct import DiDiInstruct, TokenEngine, log_ratio, two_step_rollout
from fewstep.errors import FewstepError
from fewstep.testing.token_chain import TokenChain

CHAIN = TokenChain(symbols=2, length=3, concentration=1.0)
EXACT = CHAIN.denoiser()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Table(nn.Module):
    """Logits of every state, as parameters."""

    def __init__(self, seed=0):
        super().__init__()
        start = torch.randn(len(CHAIN.states), CHAIN.length, CHAIN.symbols + 1, generator=generator(seed)).double()
        self.table = nn.Parameter(start)

    def forward(self, z):
        return self.table[CHAIN.number(z)]


class Ratio(nn.Module):
    """The same logit for every token of a state."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, z):
        return self.table[CHAIN.number(z)][:, None].expand(-1, z.shape[1])


def noised_law(law, tau):
    """Law over states of sequences with this law, noised to tau; with its gradient."""
    alpha = float(CHAIN.process.alpha(tau))
    masked = CHAIN.states == CHAIN.symbols
    agrees = ((CHAIN.states[:, None] == CHAIN.sequences[None]) | masked[:, None]).all(2).double()
    noise = alpha ** (~masked).sum(1) * (1 - alpha) ** masked.sum(1)
    return noise * (agrees @ law)


def two_step_law(model, tau):
    """Law of the sequences that two steps make, with its gradient."""
    states, blank = CHAIN.states, torch.full((1, CHAIN.length), CHAIN.symbols)
    one, at, end = (torch.tensor([t], dtype=torch.float64) for t in (1.0, tau, 0.0))
    first = token_transition(CHAIN.process, blank, model(blank), one, at).log_probs.exp()[0]
    between = torch.stack([first[i, states[:, i]] for i in range(CHAIN.length)]).prod(0)
    second = token_transition(CHAIN.process, states, model(states), at, end).log_probs.exp()
    there = torch.stack([second[:, i, CHAIN.sequences[:, i]] for i in range(CHAIN.length)]).prod(0)
    return between @ there


def test_the_policy_gradient_is_the_gradient_of_the_divergence():
    """Exact log-ratio as reward, no normalisation: the mean over 40,000 paths against autograd through the law."""
    tau, network = 0.6, Table()
    student = TokenDenoiser(network, CHAIN.process)
    student_law = noised_law(two_step_law(student, tau), tau)
    data_law = noised_law(CHAIN.law, tau)
    divergence = (student_law * (student_law / data_law).log()).sum()
    (wanted,) = torch.autograd.grad(divergence, network.table)
    ratio, count, found = (data_law / student_law.detach()).log(), 40_000, []
    for seed in range(10):
        g = generator(seed)
        made = two_step_rollout(student, torch.full((count // 10,), tau, dtype=torch.float64), CHAIN.length, g)
        z = CHAIN.process.add_noise(made.tokens, made.tau, torch.rand(made.tokens.shape, generator=g))
        reward = ratio[CHAIN.number(z)]
        (part,) = torch.autograd.grad(-((reward - reward.mean()) * made.log_prob).mean(), network.table)
        found.append(part)
    mean = torch.stack(found).mean(0)
    error = torch.stack(found).std(0) / len(found) ** 0.5
    assert float((mean - wanted).norm()) < 3 * float(error.norm())
    assert float(error.norm()) < 0.2 * float(wanted.norm())  # it would be seen


def test_a_trained_discriminator_is_the_log_ratio():
    """Without smoothing the optimum of the cross-entropy at a state is log q_data - log q_student there."""
    tau, student = 0.5, TokenDenoiser(Table(3), CHAIN.process)
    judge = Ratio(torch.zeros(len(CHAIN.states), dtype=torch.float64))
    engine = TokenEngine(DiDiInstruct(smoothing=0.0), student, EXACT, {"adversary": judge}, lambda g: CHAIN.sequences)
    optimizer = torch.optim.Adam(judge.parameters(), 0.1)
    with torch.no_grad():
        made_law = two_step_law(student, tau)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        g = generator(step)
        picks = [torch.multinomial(law, 1024, replacement=True, generator=g) for law in (CHAIN.law, made_law)]
        made = two_step_rollout(student, torch.full((1024,), tau, dtype=torch.float64), CHAIN.length, g)
        made = type(made)(**{**vars(made), "tokens": CHAIN.sequences[picks[1]]})
        loss, _ = engine.discriminator_loss(made, CHAIN.sequences[picks[0]], g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    data, own = noised_law(CHAIN.law, tau), noised_law(made_law, tau)
    common = ((CHAIN.states == CHAIN.symbols).sum(1) > 0) & (torch.minimum(data, own) > 0.02)
    assert int(common.sum()) > 5
    assert torch.allclose(judge.table.detach()[common], (data / own).log()[common], atol=0.2)


def test_a_rollout_has_the_probability_of_its_two_steps():
    student, tau = TokenDenoiser(Table(1), CHAIN.process), torch.full((500,), 0.4, dtype=torch.float64)
    made = two_step_rollout(student, tau, CHAIN.length, generator())
    one, end = torch.ones_like(tau), torch.zeros_like(tau)
    blank = torch.full_like(made.state, CHAIN.symbols)
    laws = (
        token_transition(CHAIN.process, blank, student(blank), one, tau),
        token_transition(CHAIN.process, made.state, student(made.state), tau, end),
    )
    wanted = laws[0].log_prob(made.state) + laws[1].log_prob(made.tokens)
    assert torch.allclose(made.log_prob, wanted)
    assert not bool((made.tokens == CHAIN.symbols).any())
    kept = made.state != CHAIN.symbols
    assert torch.equal(made.tokens[kept], made.state[kept])


def test_advantages_are_normalised_within_their_groups():
    rewards = torch.tensor([[1.0, 5.0, -100.0], [3.0, 5.0, 100.0]])
    for floor in (0.0, 1e-8):
        assert torch.allclose(group_advantages(rewards, floor), torch.tensor([[-1.0, 0, -1], [1, 0, 1]]))
    assert group_advantages(torch.tensor([7.0])).tolist() == [0]
    assert group_advantages(torch.tensor([0.0] * 20 + [1.0]), most=3.0).max() == 3


def test_rewards_are_means_over_masks_within_the_clip():
    logits, masked = torch.tensor([[20.0, 2.0, -4.0]]), torch.tensor([[True, False, True]])
    assert log_ratio(logits, masked, 8.0).tolist() == [2.0]
    assert log_ratio(logits, torch.zeros_like(masked), 8.0).tolist() == [0.0]


def test_times_belong_to_groups_and_weights_are_bounded():
    method = DiDiInstruct(group=3)
    times = method.times(7, generator())
    assert times.shape == (7,)
    assert len(set(times[:3].tolist())) == len(set(times[3:6].tolist())) == 1
    weight = method.weight(CHAIN.process, torch.tensor([0.05, 0.5, 1.0], dtype=torch.float64))
    assert weight.tolist() == pytest.approx([10, 2, 1])
    divided = DiDiInstruct(divide=True).weight(CHAIN.process, torch.tensor([0.5], dtype=torch.float64))
    assert float(divided) == pytest.approx(2 / 1.5)  # Beta(2, 2) has density 1.5 at its middle


def test_a_step_takes_turns_and_touches_no_other_network():
    student, judge = Table(2), Ratio(torch.zeros(len(CHAIN.states), dtype=torch.float64))
    teacher = Table(5)
    engine = TokenEngine(
        DiDiInstruct(ratio=2),
        TokenDenoiser(student, CHAIN.process),
        TokenDenoiser(teacher, CHAIN.process),
        {"student": student, "adversary": judge},
        lambda g: CHAIN.sequences[torch.randint(8, (16,), generator=g)],
    )
    seen = []
    for names, loss in engine.turns(0, 10, generator()):
        value, numbers = loss()
        assert all(bool(number.isfinite()) for number in numbers.values())
        for module in (student, judge, teacher):
            module.zero_grad(set_to_none=True)
        value.backward()
        seen.append((names, student.table.grad is not None, judge.table.grad is not None, teacher.table.grad))
    assert seen == [
        (("student",), True, False, None),
        (("adversary",), False, True, None),
        (("adversary",), False, True, None),
    ]


def test_a_student_that_is_its_teacher_is_not_pulled_by_the_regulariser():
    engine = TokenEngine(DiDiInstruct(), EXACT, EXACT, {}, lambda g: CHAIN.sequences)
    made = two_step_rollout(EXACT, torch.full((64,), 0.5, dtype=torch.float64), CHAIN.length, generator())
    divergence, entropy = engine._regularisers(made)
    assert float(divergence) == pytest.approx(0, abs=1e-9)
    assert float(entropy) > 0


def test_without_the_intermediate_state_all_is_revealed_in_one_step():
    student = Table(1)
    denoiser = TokenDenoiser(student, CHAIN.process)
    engine = TokenEngine(
        DiDiInstruct(intermediate=False, normalise=False), denoiser, EXACT, {}, lambda g: CHAIN.sequences
    )
    made = engine._roll(CHAIN.sequences, generator())
    assert bool((made.state == CHAIN.symbols).all())
    assert float(made.tau.max()) < 1
    law = denoiser(made.state).gather(2, made.tokens[..., None]).squeeze(2).sum(1)
    assert torch.allclose(made.log_prob, law)
    (gradient,) = torch.autograd.grad(made.log_prob.sum(), student.table)
    assert bool(gradient.isfinite().all())
    assert engine._advantages(torch.tensor([1.0, 3.0])).tolist() == [-1, 1]
    assert engine._advantages(torch.tensor([1.0, 9.0])).tolist() == [-4, 4]


def test_mistakes_are_named():
    with pytest.raises(FewstepError, match="two samples"):
        DiDiInstruct(group=1)
