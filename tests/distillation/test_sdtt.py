"""SDTT on sequences that can be enumerated: what its targets are, and when its teacher changes."""

import copy

import pytest
import torch
from torch import nn

from fewstep.discrete import TokenDenoiser
from fewstep.distillation.sdtt import SelfDistillation, SelfDistillationEngine, targets_over_steps
from fewstep.errors import FewstepError
from fewstep.testing.token_chain import TokenChain

CHAIN = TokenChain(length=4)
EXACT = CHAIN.denoiser()


class Table(nn.Module):
    """Logits of every state, as parameters: those of the exact model at the start."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(CHAIN.posterior.log().clamp(min=-30))

    def forward(self, z):
        return self.table[CHAIN.number(z)]


def targets(substeps, count=4000):
    z = torch.full((count, 4), CHAIN.symbols)
    one, zero = torch.ones(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    return targets_over_steps(EXACT, z, one, zero, substeps, torch.Generator().manual_seed(0)).exp()


def test_targets_of_an_exact_teacher_are_sharper_and_right_on_average():
    """A posterior is a martingale: with forward KL an exact teacher has nothing to teach."""
    found, prior = targets(8), EXACT(torch.full((1, 4), CHAIN.symbols)).exp()[0]
    error = found.std(0) / len(found) ** 0.5
    assert bool(((found.mean(0) - prior).abs() <= 4.5 * error + 1e-9).all())
    entropy = -(found * found.clamp(min=1e-12).log()).sum(2).mean()
    assert float(entropy) < 0.7 * float(-(prior * prior.clamp(min=1e-12).log()).sum(1).mean())


def engine(method, student, teacher):
    networks = (TokenDenoiser(student, CHAIN.process), TokenDenoiser(teacher, CHAIN.process))

    def batches(g):
        return CHAIN.sequences[torch.multinomial(CHAIN.law, 256, replacement=True, generator=g)]

    return SelfDistillationEngine(method, *networks, {"student": student}, teacher, batches)


def test_the_reverse_divergence_sharpens_and_the_forward_one_is_at_rest():
    moved = {}
    for divergence in ("kl", "reverse"):
        student, gradients = Table(), []
        for seed in range(20):
            made = engine(SelfDistillation((2,), 4, divergence), student, Table())
            g = torch.Generator().manual_seed(seed)
            loss, _ = made.student_loss(made.batches(g), 2, g)
            gradients.append(torch.autograd.grad(loss, student.table)[0])
        stacked = torch.stack(gradients)
        moved[divergence] = float(stacked.mean(0).norm() / (stacked.std(0) / 20**0.5).norm())
    assert moved["kl"] < 2  # nothing but noise
    assert moved["reverse"] > moved["kl"]


def test_each_round_learns_from_the_student_of_the_one_before():
    student, teacher = Table(), Table()
    made, first = engine(SelfDistillation((4, 2)), student, teacher), copy.deepcopy(teacher.table.detach())
    seen = []
    for step in range(4):
        for _, loss in made.turns(step, 4, torch.Generator().manual_seed(step)):
            loss()
            with torch.no_grad():
                student.table += 1
        seen.append(float((teacher.table.detach() - first).mean()))
    assert seen == pytest.approx([0, 0, 2, 2])


def test_mistakes_are_named():
    with pytest.raises(FewstepError, match="too few"):
        SelfDistillation(())
    with pytest.raises(FewstepError, match="too few"):
        SelfDistillation(substeps=1)
    with pytest.raises(FewstepError, match="unknown divergence"):
        SelfDistillation(divergence="l2")
