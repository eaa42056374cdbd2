"""Moving digits, and the measures on clips whose answer is known."""

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.tasks.video import digits, measures


def clips(count=24, frames=16, seed=0):
    return digits.moving_digits(count, frames, torch.Generator().manual_seed(seed))


def test_digits_keep_their_ink_and_move_at_the_speed_of_the_prompt():
    x, prompts = clips(40, 8)
    assert x.shape == (40, 8, 16, 16)
    assert float(x.min()) >= -1
    assert float(x.max()) <= 1
    ink = ((x + 1) / 2).flatten(2).sum(2)
    assert float((ink.amax(1) / ink.amin(1)).median()) < 1.25  # but for overlaps
    moved = measures.dynamic_degree(x)
    means = [float(moved[prompts[:, 2] == k].mean()) for k in range(3)]
    assert means[0] < means[1] < means[2]
    assert bool((prompts[:, 0] <= prompts[:, 1]).all())


def test_a_digit_bounces_and_stays_inside():
    place = torch.tensor([[[[7.5, 0.0]], [[8.0, 0.0]], [[7.0, 0.0]]]])  # (B, F, digit, axis)
    drawn = digits._drawn(torch.ones(1, 1, 8, 8), place)
    assert drawn[0].sum((1, 2)).tolist() == pytest.approx([64.0] * 3)
    assert drawn[0, 0, :, 0].tolist() == pytest.approx([0.0] * 7 + [0.5] + [1.0] * 7 + [0.5])


def test_training_and_held_out_digits_differ():
    assert len(digits.digit_pictures().labels) + len(digits.digit_pictures(True).labels) == 1797


def test_latents_are_pairs_of_frames():
    x, _ = clips(2, 6)
    assert digits.encoded(x).shape == (2, 3, 2, 16, 16)
    assert torch.equal(digits.decoded(digits.encoded(x)), x)
    with pytest.raises(FewstepError, match="whole latent frames"):
        digits.encoded(x[:, :5])


def test_words_and_prompts():
    assert digits.prompt_of("7 3 fast").tolist() == [[3, 7, 2]]
    assert digits.text_of(digits.prompt_of("3 7 slow")[0]) == "3 7 slow"
    for words in ("3 7", "3 seven fast", "3 7 fats", "12 3 fast"):
        with pytest.raises(FewstepError):
            digits.prompt_of(words)


# --- measures -----------------------------------------------------------------------------------------------------


def test_a_still_clip_has_no_motion_and_comes_back_to_its_first_frame():
    still = clips(4, 1)[0].expand(-1, 12, -1, -1)
    assert measures.dynamic_degree(still).tolist() == [0.0] * 4
    assert measures.first_frame_copying(still, 4).tolist() == pytest.approx([1.0] * 4)
    moving = clips(20, 12)[0]
    assert float(measures.first_frame_copying(moving, 4).mean()) < 0.95


def test_flicker_is_of_the_whole_picture():
    moving = clips(10, 16)[0]
    blinking = moving * torch.tensor([1.0, 0.6]).repeat(8)[:, None, None]
    assert float(measures.flicker(blinking).mean()) > 2 * float(measures.flicker(moving).mean())


def test_seams_show_where_chunks_do_not_continue_each_other():
    moving, _ = clips(40, 16)
    assert float(measures.seam_jump(moving, 4).mean()) == pytest.approx(1, abs=0.1)
    cut = torch.cat(
        [
            part[torch.randperm(40, generator=torch.Generator().manual_seed(k))]
            for k, part in enumerate(moving.split(4, 1))
        ],
        1,
    )
    assert float(measures.seam_jump(cut, 4).mean()) > 2
    with pytest.raises(FewstepError, match="several chunks"):
        measures.seam_jump(moving, 16)


def test_drift_is_the_spread_of_a_score_over_segments():
    assert measures.drift(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).tolist() == [1.0, 0.0]
    assert measures.segments(clips(2, 20)[0], 8).shape == (2, 2, 8, 16, 16)
    with pytest.raises(FewstepError, match="shorter"):
        measures.segments(clips(2, 4)[0], 8)


def test_the_judge_learns_and_agrees_with_the_prompts_of_real_clips():
    torch.manual_seed(0)
    judge = measures.ClipNetwork(measures.OUTPUTS, 4)
    x, prompts = clips(24, 8)
    optimizer = torch.optim.Adam(judge.parameters(), 1e-2)
    before = float(measures.agreement(judge, x, prompts).mean().detach())
    for _ in range(30):
        optimizer.zero_grad()
        measures.judge_loss(judge, x, prompts).backward()
        optimizer.step()
    assert float(measures.agreement(judge, x, prompts).mean().detach()) > before + 0.1
    assert judge.features(x).shape == (24, 64)
