"""Masked tokens: kernels, samplers and the bound against enumeration of every sequence."""

import json
import math

import pytest
import torch

from fewstep.discrete import (
    MaskedDiffusion,
    RevealPlan,
    TokenDenoiser,
    negative_evidence_bound,
    reveal_plan,
    reveal_probability,
    sample_tokens,
    token_transition,
)
from fewstep.discrete.transition import inverse_cdf, most_remasking
from fewstep.errors import FewstepError, NonFiniteError, PlanError
from fewstep.testing.token_chain import TokenChain, total_variation

CHAIN = TokenChain(length=4)
MODEL = CHAIN.denoiser()


@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
def test_slope_is_the_derivative_of_alpha_and_its_ends_hold(schedule):
    process = MaskedDiffusion(4, 3, schedule)
    t = torch.linspace(0.01, 0.99, 7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(process.alpha(t).sum(), t)
    assert torch.allclose(slope, process.slope(t.detach()))
    assert float(process.alpha(0.0)) == 1
    assert float(process.alpha(1.0)) == pytest.approx(process.least)


def test_the_denoiser_knows_what_is_revealed_and_never_says_mask():
    z = torch.tensor([[0, 3, 2, 3]])
    found = TokenDenoiser(lambda z: torch.zeros(*z.shape, 4), CHAIN.process)(z).exp()
    assert torch.allclose(found[0, 1], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0]))
    assert found[0, 0].tolist() == [1, 0, 0, 0]
    assert found[0, 2].tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("remask", [0.0, 0.3])
def test_a_step_keeps_the_marginals_of_the_process(remask):
    """For one clean token: from the law at t, the step with the true token gives the law at s."""
    process = CHAIN.process
    t, s = torch.tensor([0.8], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    truth = torch.full((1, 1, 4), -torch.inf, dtype=torch.float64)
    truth[..., 1] = 0.0
    at = process.alpha(0.8)
    law = 0
    for z, weight in ((1, at), (3, 1 - at)):
        law = law + weight * token_transition(process, torch.tensor([[z]]), truth, t, s, remask).log_probs.exp()
    wanted = torch.tensor([0, float(process.alpha(0.5)), 0, 1 - float(process.alpha(0.5))], dtype=torch.float64)
    assert torch.allclose(law[0, 0], wanted)


def test_log_probabilities_are_those_of_torch_and_draws_follow_them():
    z = torch.tensor([[3, 0, 3, 3]]).expand(4000, -1)
    t, s = (torch.full((4000,), value, dtype=torch.float64) for value in (0.9, 0.4))
    law = token_transition(CHAIN.process, z, MODEL(z), t, s)
    drawn = law.draw(torch.rand(4000, 4, generator=torch.Generator().manual_seed(0)))
    reference = torch.distributions.Categorical(logits=law.log_probs, validate_args=False)
    assert torch.allclose(law.log_prob(drawn), reference.log_prob(drawn).sum(1))
    for position in range(4):
        counts = torch.bincount(drawn[:, position], minlength=4) / 4000
        assert torch.allclose(counts.double(), law.log_probs[0, position].exp(), atol=4 * 0.5 / 4000**0.5)


def test_a_symbol_without_probability_is_never_drawn():
    law = torch.tensor([[[-torch.inf, 0.0, -torch.inf]]])
    for u in (0.0, 0.5, 1 - 2**-24):
        assert inverse_cdf(law, torch.tensor([[u]])).item() == 1


@pytest.mark.parametrize(("steps", "remask"), [(1, 0.0), (2, 0.0), (4, 0.0), (4, 0.6)])
def test_the_sampler_has_the_law_that_enumeration_gives(steps, remask):
    """All 3^4 sequences; the bound is that of a multinomial's chi-square."""
    plan, count = reveal_plan(CHAIN.process, steps, remask=remask), 6000
    law = CHAIN.law_of(plan, MODEL)
    assert float(law.sum()) == pytest.approx(1)
    found = CHAIN.frequencies(sample_tokens(plan, MODEL, seeds=range(count), length=4))
    likely = law > 1 / count
    assert float(found[~likely].sum()) <= float(law[~likely].sum()) + 0.01
    chi = float((count * (found - law)[likely].square() / law[likely]).sum())
    freedom = int(likely.sum())
    assert chi < freedom + 5 * math.sqrt(2 * freedom)


def test_one_step_is_the_product_of_marginals_and_many_are_the_law():
    marginals = CHAIN.posterior[CHAIN.number(torch.full((1, 4), 3))][0]
    product = torch.stack([marginals[i, CHAIN.sequences[:, i]] for i in range(4)]).prod(0)
    assert torch.allclose(CHAIN.law_of(reveal_plan(CHAIN.process, 1), MODEL), product)
    distances = [total_variation(CHAIN.law_of(reveal_plan(CHAIN.process, n), MODEL), CHAIN.law) for n in (1, 4, 16, 64)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.02


def test_one_token_a_step_in_any_counted_order_is_exact():
    """Chain rule: four tokens in four steps have the true law, in whatever order they are revealed."""
    for order in ("random", "entropy"):
        plan = reveal_plan(CHAIN.process, 4, order=order)
        found = CHAIN.distance(sample_tokens(plan, MODEL, seeds=range(4000), length=4))
        assert found < 0.08, order


def test_independent_tokens_need_one_step():
    logits = torch.tensor([0.3, -1.0, 0.5, 9.0])
    model = TokenDenoiser(lambda z: logits.expand(*z.shape, 4), CHAIN.process)
    laws = [CHAIN.law_of(reveal_plan(CHAIN.process, n), model) for n in (1, 3)]
    assert torch.allclose(*laws)


def test_counted_orders_follow_the_schedule():
    plan, seen = reveal_plan(MaskedDiffusion(4, 3, "cosine"), 5, order="random"), []
    model = TokenDenoiser(lambda z: torch.zeros(*z.shape, 4), plan.process)
    sample_tokens(plan, model, seeds=range(3), length=64, callback=lambda _, z: seen.append((z == 3).sum(1)))
    left = [(1 - plan.process.alpha(row.next_time)) / (1 - plan.process.alpha(1.0)) for row in plan.rows]
    assert [int(n[0]) for n in seen] == [math.floor(64 * float(share)) for share in left]
    assert all(len(set(n.tolist())) == 1 for n in seen)


def test_confidence_and_the_entropy_bound_reveal_what_is_certain_first():
    """Position i is certain for even i; the smallest bound still reveals one uncertain token a step."""
    certain = torch.zeros(6, 4)
    certain[::2, 1] = 50.0
    model = TokenDenoiser(lambda z: certain.expand(len(z), -1, -1), CHAIN.process)
    for order in ("confidence", "entropy", "entropy-bound"):
        seen = []
        plan = reveal_plan(CHAIN.process, 3, order=order, times=(1.0, 0.5, 0.25), bound=1e-6)
        sample_tokens(plan, model, seeds=[0], length=6, callback=lambda _, z, s=seen: s.append(z[0] == 3))
        assert seen[0].tolist()[::2] == [False] * 3, order
        assert int(seen[0][1::2].sum()) >= 2, order


def test_the_bound_of_exact_conditionals_is_the_likelihood():
    picked = torch.multinomial(CHAIN.law, 500, replacement=True, generator=torch.Generator().manual_seed(0))
    truth = -CHAIN.law[picked].log()
    found = negative_evidence_bound(MODEL, CHAIN.sequences[picked], torch.Generator().manual_seed(1), draws=32)
    difference = found - truth
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / 500**0.5 + 5e-3
    uniform = TokenDenoiser(lambda z: torch.zeros(*z.shape, 4), CHAIN.process)
    worse = negative_evidence_bound(uniform, CHAIN.sequences[picked], torch.Generator().manual_seed(1), draws=32)
    assert float(worse.mean()) == pytest.approx(4 * math.log(3), rel=0.03)


def test_samples_do_not_depend_on_their_batch_and_prompts_stay():
    plan = reveal_plan(CHAIN.process, 4, remask=0.5)
    prompt = torch.tensor([2, 3, 3, 0])
    together = sample_tokens(plan, MODEL, seeds=[4, 5, 6], prompt=prompt)
    assert torch.equal(together[2:], sample_tokens(plan, MODEL, seeds=[6], prompt=prompt))
    assert together[:, 0].tolist() == [2] * 3
    assert together[:, 3].tolist() == [0] * 3


def test_low_temperature_takes_the_most_probable_token():
    plan = reveal_plan(CHAIN.process, 1, temperature=1e-3)
    marginal = CHAIN.posterior[CHAIN.number(torch.full((1, 4), 3))][0]
    found = sample_tokens(plan, MODEL, seeds=[0, 1], length=4)
    assert torch.equal(found[:, 1:], marginal[1:].argmax(1).expand(2, -1))  # the first token is uniform


def test_a_plan_survives_its_file_and_says_what_is_wrong(tmp_path):
    plan = reveal_plan(CHAIN.process, 4, remask=0.5)
    plan.save(tmp_path / "plan.json")
    assert RevealPlan.load(tmp_path / "plan.json") == plan
    document = json.loads((tmp_path / "plan.json").read_text())
    for change, message in (
        ({"fewstep_reveal_plan": 9}, "another schema"),
        ({"rows": []}, "last row"),
        ({"rows": [{"time": "x", "next_time": 0}]}, "rows.0.time"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(document | change))
        with pytest.raises(PlanError, match=message):
            RevealPlan.load(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(PlanError, match="not a plan of reveals"):
        RevealPlan.load(tmp_path / "bad.json")


def test_mistakes_are_named():
    plan = reveal_plan(CHAIN.process, 2)
    other = TokenDenoiser(lambda z: torch.zeros(*z.shape, 4), MaskedDiffusion(4, 3, "cosine"))
    with pytest.raises(PlanError, match="another process"):
        sample_tokens(plan, other, seeds=[0], length=4)
    with pytest.raises(FewstepError, match="length or with a prompt"):
        sample_tokens(plan, MODEL, seeds=[0])
    with pytest.raises(FewstepError, match="symbols from 0"):
        sample_tokens(plan, MODEL, seeds=[0], prompt=torch.tensor([7, 3]))
    with pytest.raises(FewstepError, match="another shape"):
        TokenDenoiser(lambda z: torch.zeros(*z.shape, 9), CHAIN.process)(torch.zeros(1, 4).long())
    with pytest.raises(PlanError, match="must fall"):
        reveal_plan(CHAIN.process, 2, times=(0.5, 0.8))
    with pytest.raises(PlanError, match="unknown order"):
        reveal_plan(CHAIN.process, 2, order="entropi")
    with pytest.raises(FewstepError, match=r"lie in \[0, 1\]"):
        reveal_plan(CHAIN.process, 2, remask=1.5)
    with pytest.raises(FewstepError, match="must leave a probability"):
        reveal_probability(CHAIN.process, 0.5, 0.1, 0.9)
    with pytest.raises(FewstepError, match="one of 4 symbols"):
        MaskedDiffusion(4, 4)
    broken = TokenDenoiser(lambda z: torch.full((*z.shape, 4), torch.nan), CHAIN.process)
    with pytest.raises(NonFiniteError, match="NaN"):
        sample_tokens(plan, broken, seeds=[0], length=4)
    assert float(most_remasking(CHAIN.process, 0.5, 0.0)) == 0
