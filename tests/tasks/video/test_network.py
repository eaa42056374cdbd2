"""The causal network: what is seen of what, and that the cache changes nothing but the cost."""

import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fewstep.cache import append, drop, ema_sink, static_sink
from fewstep.errors import FewstepError
from fewstep.tasks.video.network import VideoConfig, chunk_mask
from fewstep.tasks.video.roll_out import forced
from fewstep.tasks.video.student import video_denoiser
from tests.tasks.video import tiny

ZERO, LATE = torch.zeros(2), torch.full((2,), 600.0)


def streamed(net, x, chunk, policy):
    """The output at each noisy chunk, the real frames before it in the cache."""
    cache, found = net.empty_cache(policy, len(x)), []
    for part in x.split(chunk, 1):
        found.append(net(part, LATE, tiny.PROMPT, cache))
        cache = net.remember(part, ZERO, tiny.PROMPT, cache)
    return torch.cat(found, 1), cache


def recomputed(net, x, chunk, window):
    """The same without a cache: for each chunk all frames up to it, masked."""
    found = []
    for end in range(chunk, x.shape[1] + 1, chunk):
        times = torch.zeros(2, end)
        times[:, end - chunk :] = 600.0
        found.append(net(x[:, :end], times, tiny.PROMPT, mask=chunk_mask(end, chunk, window))[:, end - chunk :])
    return torch.cat(found, 1)


@pytest.mark.parametrize(("chunk", "window"), [(1, None), (2, None), (3, None), (1, 3), (2, 4), (3, 3)])
def test_the_cache_equals_masked_attention(chunk, window):
    net, x = tiny.network(), tiny.frames(6 * chunk)
    policy = append() if window is None else drop(window)
    found, _ = streamed(net, x, chunk, policy)
    assert torch.allclose(found, recomputed(net, x, chunk, window), atol=1e-10)


def test_every_policy_is_full_attention_until_something_falls_out():
    net, x = tiny.network(), tiny.frames(6)
    wanted = recomputed(net, x, 2, None)
    for policy in (drop(4), static_sink(4, 2), ema_sink(4, 2, 0.5)):
        assert torch.allclose(streamed(net, x, 2, policy)[0], wanted, atol=1e-10)


def test_policies_differ_once_something_fell_out():
    net, x = tiny.network(), tiny.frames(12)
    last = [streamed(net, x, 2, p)[0][:, -2:] for p in (drop(4), static_sink(4, 2), ema_sink(4, 2, 0.5))]
    assert all(float((a - b).abs().max()) > 1e-4 for a, b in itertools.pairwise(last))


def test_teacher_forcing_is_the_stream_of_real_frames():
    net, x = tiny.network(), tiny.frames(8)
    denoiser = video_denoiser(net)
    noisy, t = tiny.frames(8, seed=5), torch.full((2, 8), 0.6, dtype=torch.float64)
    found = forced(denoiser, x, noisy, t, {"prompt": tiny.PROMPT}, 2, 4)
    cache = net.empty_cache(drop(4), 2)
    for k in range(4):
        part = slice(2 * k, 2 * k + 2)
        wanted = denoiser(noisy[:, part], t[:, 0], {"prompt": tiny.PROMPT, "cache": cache})
        assert torch.allclose(found[:, part], wanted, atol=1e-6)
        cache = net.remember(x[:, part], ZERO, tiny.PROMPT, cache)


def test_both_directions_within_a_chunk_and_one_across():
    net, x = tiny.network(), tiny.frames(4)
    mask = chunk_mask(4, 2)

    def moved(frame):
        other = x.clone()
        other[:, frame] += 1
        return (
            (net(other, LATE, tiny.PROMPT, mask=mask) - net(x, LATE, tiny.PROMPT, mask=mask)).abs().amax((0, 2, 3, 4))
        )

    assert (moved(1) > 1e-6).tolist() == [True, True, True, True]
    assert (moved(2) > 1e-6).tolist() == [False, False, True, True]


def test_the_mask_of_a_window_with_a_sink():
    seen = chunk_mask(8, 2, window=3, sink=1)
    assert seen[6].nonzero().flatten().tolist() == [0, 4, 5, 6, 7]
    assert seen[2].nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_no_sink_costs_more_than_the_static_one_and_none_grows():
    net = tiny.network()

    def flops(policy, length):
        _, cache = streamed(net, tiny.frames(length), 2, policy)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            net(tiny.frames(2), LATE, tiny.PROMPT, cache)
        return counter.get_total_flops(), cache.keys.numel()

    fixed = flops(static_sink(4, 2), 10)
    assert flops(ema_sink(4, 2, 0.5), 10) == fixed == flops(ema_sink(4, 2, 0.5), 20) == flops(drop(4), 20)
    assert flops(append(), 20)[0] > fixed[0]


def test_the_prompt_and_the_time_matter():
    net, x = tiny.network(), tiny.frames(2)
    base = net(x, LATE, tiny.PROMPT)
    assert float((net(x, ZERO, tiny.PROMPT) - base).abs().max()) > 1e-4
    assert float((net(x, LATE, tiny.PROMPT.flip(0)) - base).abs().max()) > 1e-4
    assert torch.allclose(net(x, torch.tensor(600.0), tiny.PROMPT), base)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(FewstepError, match="divide"):
        VideoConfig(side=15)
    with pytest.raises(FewstepError, match="video frames"):
        tiny.network()(torch.zeros(2, 3, 2, 4, 4).double(), ZERO, tiny.PROMPT)
