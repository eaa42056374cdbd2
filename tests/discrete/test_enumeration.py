"""Exact laws of plans over all sequences, and looking one reveal ahead, against what is known in closed form."""

import math

import pytest
import torch

from fewstep.discrete import TokenDenoiser, TokenLaws, enumerated_law, reveal_plan, tilted_tokens
from fewstep.errors import FewstepError, NonFiniteError, PlanError
from fewstep.testing.token_chain import TokenChain

CHAIN = TokenChain(length=4)
MODEL = CHAIN.denoiser()
LAWS = TokenLaws(MODEL, 4)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_law_is_that_of_the_transition_of_whole_states(steps):
    plan = reveal_plan(CHAIN.process, steps)
    assert torch.allclose(enumerated_law(plan, LAWS).flatten(), CHAIN.law_of(plan, MODEL), atol=1e-12)


def test_one_token_at_a_time_is_the_chain_rule():
    found = enumerated_law(reveal_plan(CHAIN.process, 4, order="random"), LAWS).flatten()
    assert torch.allclose(found, CHAIN.law, atol=1e-9)
    two = enumerated_law(reveal_plan(CHAIN.process, 2, order="random"), LAWS).flatten()
    assert float(two.sum()) == pytest.approx(1)
    assert float((two - CHAIN.law).abs().sum()) > 0.1


def value(z):
    """log E[exp(r(x)) | z] by enumeration, r(x) the number of zeros times 1.5."""
    weight = (1.5 * (CHAIN.sequences == 0).sum(1)).exp().double()
    agrees = ((z[:, None] == CHAIN.sequences[None]) | (z[:, None] == CHAIN.symbols)).all(2).double() * CHAIN.law
    return ((agrees * weight).sum(1).clamp(min=1e-30) / agrees.sum(1).clamp(min=1e-30)).log()


def test_looking_ahead_by_the_exact_value_draws_the_tilted_law():
    target = CHAIN.law * (1.5 * (CHAIN.sequences == 0).sum(1)).exp()
    tilted = TokenLaws(tilted_tokens(MODEL, value), 4)
    found = enumerated_law(reveal_plan(CHAIN.process, 4, order="random"), tilted).flatten()
    assert torch.allclose(found, target / target.sum(), atol=1e-9)


def test_mistakes_are_named():
    with pytest.raises(PlanError, match="enumerated"):
        enumerated_law(reveal_plan(CHAIN.process, 2, order="entropy"), LAWS)
    with pytest.raises(PlanError, match="another process"):
        enumerated_law(reveal_plan(TokenChain(symbols=2).process, 2), LAWS)
    with pytest.raises(FewstepError, match="too many sequences"):
        TokenLaws(MODEL, 40)
    z = torch.full((1, 4), 3)
    with pytest.raises(NonFiniteError, match="NaN"):
        tilted_tokens(MODEL, lambda z: torch.full((len(z),), math.nan))(z)
    with pytest.raises(FewstepError, match="one number"):
        tilted_tokens(MODEL, lambda z: z.float())(z)
    assert isinstance(tilted_tokens(MODEL, value), TokenDenoiser)
