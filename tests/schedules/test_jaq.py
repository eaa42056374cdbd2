import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.schedules.tuning import JAQ, Family
from fewstep.solvers import ddim, grids

PLAN = ddim(RectifiedFlow(), Prediction("velocity"), grids.uniform(RectifiedFlow(), 3))


class Mean:
    name, differentiable = "mean", True

    def score(self, images, prompts):
        return images.mean((1, 2, 3)) * torch.tensor([float(len(p)) for p in prompts])


class Spread:
    name, differentiable = "spread", True

    def score(self, images, prompts):
        return 1000 * images.std((1, 2, 3))  # on purpose on another scale


def generate(plan, prompts, seeds):
    noise = torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in seeds])
    first = plan.rows[0]
    return (0.5 + 0.1 * noise * first.output_scale + 0.2 * first.sample_scale).clamp(0, 1).float()


def jaq(**changes):
    return JAQ(generate, Mean(), Spread(), ["a", "bb", "ccc"], [1, 2], **changes)


def test_an_item_scores_alike_alone_and_among_others():
    objective = jaq()
    together = objective(PLAN, range(6))
    alone = torch.cat([objective(PLAN, [i]) for i in range(6)])
    assert torch.equal(together, alone)


def test_every_item_has_its_own_noise_and_all_candidates_share_it():
    objective = jaq()
    assert len({seed for _, seed in objective.items}) == 6
    first, second = (objective(PLAN.scaled([1.0] * 3, [m, 1.0, 1.0]), range(6)) for m in (1.0, 1.0))
    assert torch.equal(first, second)


def test_beginnings_cover_all_prompts():
    assert {prompt for prompt, _ in jaq().items[:3]} == {"a", "bb", "ccc"}


def test_standardised_terms_have_unit_spread_over_the_reference_candidates():
    objective = jaq(k=1.0)
    cost = objective.standardise(PLAN, Family("ramp"), candidates=8, fraction=1.0)
    assert cost == pytest.approx(8.0)
    ramp = Family("ramp-to-one")
    corners = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(8).double()
    means = torch.stack([objective.terms(ramp.apply(PLAN, 0.8 + 0.4 * c), range(6)).mean(0) for c in corners])
    scaled = (means - means.new_tensor(objective.centre)) / means.new_tensor(objective.spread)
    assert torch.allclose(scaled.mean(0), torch.zeros(2), atol=1e-4)
    assert torch.allclose(scaled.std(0), torch.ones(2), atol=1e-4)


def test_gradients_reach_the_coefficients():
    objective = jaq()
    theta = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    value = objective(Family("ramp-to-one").apply(PLAN, theta), range(6)).mean()
    (slope,) = torch.autograd.grad(value, theta)
    step = 1e-3
    for i in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[i] = step
        up, down = (
            objective(Family("ramp-to-one").apply(PLAN, (theta + sign * shift).detach()), range(6)).mean()
            for sign in (1, -1)
        )
        assert float(slope[i]) == pytest.approx(float(up - down) / (2 * step), rel=0.02, abs=1e-2)


def test_empty_calibration_is_refused():
    with pytest.raises(FewstepError, match="at least one prompt"):
        JAQ(generate, Mean(), Spread(), [], [1])


@pytest.mark.parametrize("left", ["alignment", "quality"])
def test_a_term_that_is_left_out_changes_no_candidate(left):
    from fewstep.rewards import load_reward

    terms = {"alignment": Mean(), "quality": Spread(), left: load_reward("none")}
    objective = JAQ(generate, terms["alignment"], terms["quality"], ["a", "bb", "ccc"], [1, 2], k=2.0)
    objective.standardise(PLAN, Family("ramp"))
    kept = 1 if left == "alignment" else 0
    raw = objective.terms(PLAN, range(6))[:, kept]
    expected = (2.0 if kept else 1.0) * (raw - objective.centre[kept]) / objective.spread[kept]
    assert torch.allclose(objective(PLAN, range(6)), expected)


@pytest.mark.parametrize(("value", "words"), [(0.5, "the same score"), (float("nan"), "not finite")])
def test_a_reward_that_says_nothing_is_named(value, words):
    class Flat:
        name, differentiable = "flat", True

        def score(self, images, prompts):
            return torch.full((len(images),), value)

    objective = JAQ(generate, Mean(), Flat(), ["a", "bb", "ccc"], [1, 2])
    with pytest.raises(FewstepError, match=f"the reward flat.*{words}"):
        objective.standardise(PLAN, Family("ramp"))
    without = JAQ(generate, Mean(), Flat(), ["a", "bb", "ccc"], [1, 2], k=0.0)
    without.standardise(PLAN, Family("ramp"))  # a reward without weight is not asked
