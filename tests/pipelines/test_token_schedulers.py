"""Plans of reveals against the very schedulers of diffusers, step by step."""

import pytest
import torch
from diffusers import AmusedScheduler, BlockRefinementScheduler, EntropyBoundScheduler, LCMScheduler

from fewstep.discrete import MaskedDiffusion, TokenDenoiser, sample_tokens
from fewstep.errors import FewstepError
from fewstep.pipelines.token_schedulers import reveal_plan_of

LENGTH, SYMBOLS = 13, 7
ORDER = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(3))
LOGITS = torch.zeros(1, LENGTH, SYMBOLS)
LOGITS[0, torch.arange(LENGTH), torch.arange(LENGTH) % 6] = torch.linspace(8, 14, LENGTH)[ORDER]
LOGITS[..., -1] = -torch.inf
"""One token of each position is nearly certain, more so at some."""


def reveals(plan, process):
    """States after each row."""
    seen = []
    network = TokenDenoiser(lambda z: LOGITS.expand(len(z), -1, -1), process)
    sample_tokens(plan, network, seeds=[0], length=LENGTH, callback=lambda _, z: seen.append(z.clone()))
    return seen


@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 4, 5, 13])
def test_a_block_is_refined_as_diffusers_does(steps, schedule):
    process = MaskedDiffusion(SYMBOLS, SYMBOLS - 1, schedule)
    scheduler = BlockRefinementScheduler(threshold=1.0, editing_threshold=None)
    scheduler.set_timesteps(steps, block_length=LENGTH)
    z = torch.full((1, LENGTH), process.mask)
    plan = reveal_plan_of(scheduler, process, steps, LENGTH)
    for step, ours in enumerate(reveals(plan, process)):
        # the last step commits what is left
        z = scheduler.step(LOGITS, step, z, mask_token_id=process.mask, temperature=0.0).prev_sample
        assert torch.equal(z == process.mask, ours == process.mask)
        assert torch.equal(z, ours)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_amused_masks_as_many(steps, schedule):
    process = MaskedDiffusion(SYMBOLS, SYMBOLS - 1)
    scheduler = AmusedScheduler(mask_token_id=process.mask, masking_schedule=schedule)
    scheduler.set_timesteps(steps, temperature=(0, 0))
    z, logits = torch.full((1, LENGTH), process.mask), LOGITS
    plan = reveal_plan_of(scheduler, process, steps, LENGTH)
    for t, ours in zip(scheduler.timesteps, reveals(plan, process), strict=True):
        z = scheduler.step(logits, t, z).prev_sample
        assert int((z == process.mask).sum()) == int((ours == process.mask).sum())


def test_what_no_plan_says_is_refused():
    process = MaskedDiffusion(SYMBOLS, SYMBOLS - 1)
    for scheduler, message in (
        (EntropyBoundScheduler(), "none of masks"),
        (LCMScheduler(), "not a scheduler of masked tokens"),
        (BlockRefinementScheduler(), "no threshold"),
    ):
        with pytest.raises(FewstepError, match=message):
            reveal_plan_of(scheduler, process, 4, LENGTH)
    with pytest.raises(FewstepError, match="cannot each reveal"):
        reveal_plan_of(BlockRefinementScheduler(threshold=1.0), process, 14, LENGTH)
