"""A judge that answers questions about a sample by yes or no, and the loss of its two logits (NP-Edit)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fewstep.distillation.core import Batch, Loss, Networks, SampleReward, Samples, Term
from fewstep.distillation.part import part
from fewstep.distillation.rollout import needed
from fewstep.errors import FewstepError

Judge = Callable[[Tensor, Batch], Tensor]
"""(clean samples (B, ...), their batch) -> logits (B, Q, 2) of the answers "no" and "yes" to Q questions."""


def answer_log_odds(logits: Tensor, wanted: Sequence[bool]) -> Tensor:
    """l_a - l_b (B, Q) of logits (B, Q, 2), a the wanted answer to each question and b the other.

    Raises:
        FewstepError: another number of questions, or logits of more than the two answers.
    """
    if logits.ndim != 3 or logits.shape[1:] != (len(wanted), 2):
        hint = "Give the logits of the tokens for no and yes at the first place of the answer, (B, Q, 2)."
        raise FewstepError(f"{len(wanted)} answers are wanted", value=tuple(logits.shape), hint=hint)
    signs = torch.tensor([1.0 if yes else -1.0 for yes in wanted], dtype=logits.dtype, device=logits.device)
    return signs * (logits[..., 1] - logits[..., 0])


def judge_reward(judge: Judge, wanted: Sequence[bool]) -> SampleReward:
    """sum_j log sigmoid(l_a - l_b) of each sample (B,): a judge's answers as a reward for any alignment method.

    Args:
        judge: logits of "no" and "yes" to each question.
        wanted: whether yes is the wanted answer to each.
    """
    return lambda x, batch: logsigmoid(answer_log_odds(judge(x, batch), wanted)).sum(1)


@part
def judge_term(judge: Judge | None = None, wanted: tuple[bool, ...] = (True,), scale: float = 1.0) -> Term:
    """The judge's log-odds of the wanted answers, differentiated through the samples (NP-Edit, arXiv 2510.14978).

        L = -scale mean_B sum_j log sigmoid(l_a - l_b)

    Of the two answers alone: a constant on all logits, and every other word of the vocabulary, changes nothing. Beside
    a score term it is NP-Edit's objective; alone a judge is exploited.

    Args:
        judge: the training's reward unless given.
        wanted: whether yes is the wanted answer to each question.
        scale: of the loss; 0.01 beside a score term of 0.5 in the paper, as it is told.

    Raises:
        FewstepError: when called: the judge gives no gradient, or other logits.
    """

    def loss(networks: Networks, batch: Batch, samples: Samples | None, generator: torch.Generator) -> Loss:
        x = needed(samples).clean
        odds = answer_log_odds((judge or networks.need("reward"))(x, batch), wanted)
        if x.requires_grad and not odds.requires_grad:
            hint = "Preprocess its pictures by tensor operations: processors that go through PIL break the gradient."
            raise FewstepError("this judge gives no gradient", hint=hint)
        numbers = {"odds": odds.detach().mean(), "right": (odds > 0).float().mean()}
        return -scale * logsigmoid(odds).sum(1).mean(), numbers

    return loss
