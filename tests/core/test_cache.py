"""What a cache keeps, against closed forms."""

import pytest
import torch

from fewstep.cache import Cache, CachePolicy, append, drop, ema_sink, static_sink
from fewstep.errors import FewstepError


def frames(numbers):
    """Keys of one layer, sample, head and token whose two numbers are those given."""
    return torch.tensor(numbers, dtype=torch.float64).reshape(1, 1, 1, -1, 1, 1).expand(-1, -1, -1, -1, -1, 2)


def after(policy, chunks):
    cache = Cache(policy, frames([]), frames([]))
    for chunk in chunks:
        cache = cache.extended(frames(chunk), -frames(chunk))
    return cache


def numbers(cache):
    assert torch.equal(cache.values, -cache.keys)
    return cache.keys[0, 0, 0, :, 0, 0].tolist()


def counted(length, chunk):
    return [list(map(float, range(first, first + chunk))) for first in range(0, length, chunk)]


def test_which_frames_stay():
    chunks = counted(20, 2)
    assert numbers(after(append(), chunks)) == list(range(20))
    assert numbers(after(drop(5), chunks)) == [15, 16, 17, 18, 19]
    assert numbers(after(static_sink(5, 2), chunks)) == [0, 1, 17, 18, 19]
    assert after(drop(5), chunks).seen == 20


def test_chunks_of_any_length_evict_the_same_frames():
    for policy in (drop(6), static_sink(6, 3)):
        wanted = numbers(after(policy, counted(24, 3)))
        assert numbers(after(policy, [[float(k)] for k in range(24)])) == wanted
        assert numbers(after(policy, counted(24, 12))) == wanted


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
def test_the_sink_is_the_average_in_closed_form(alpha, chunk):
    """Slot j holds alpha^n x_j + (1 - alpha) sum_i alpha^(n - i) x_(j + i sink), whatever the length of the chunks."""
    sink, window, length = 2, 5, 24
    found = numbers(after(ema_sink(window, sink, alpha), counted(length, chunk)))
    evicted = list(range(sink, length - (window - sink)))
    for slot in range(sink):
        mine = [k for k in evicted if (k - sink) % sink == slot]
        n = len(mine)
        past = sum(alpha ** (n - i) * k for i, k in enumerate(mine, 1))
        assert found[slot] == pytest.approx(alpha**n * slot + (1 - alpha) * past)
    assert found[sink:] == [21, 22, 23]


def test_with_parts_as_long_as_the_sink_it_is_the_formula_of_the_paper():
    alpha, chunks = 0.7, counted(18, 3)
    found = numbers(after(ema_sink(6, 3, alpha), chunks))
    sink = torch.tensor(chunks[0])
    for chunk in chunks[1:-1]:
        sink = alpha * sink + (1 - alpha) * torch.tensor(chunk)
    assert found[:3] == pytest.approx(sink.tolist())


def test_alpha_one_is_the_static_sink_bit_for_bit_and_a_constant_stays():
    keys = torch.randn(2, 1, 2, 30, 3, 4)
    caches = [
        Cache(policy, keys[:, :, :, :0], keys[:, :, :, :0]) for policy in (ema_sink(7, 3, 1.0), static_sink(7, 3))
    ]
    for first in range(0, 30, 2):
        part = keys[:, :, :, first : first + 2]
        caches = [cache.extended(part, part) for cache in caches]
    assert torch.equal(caches[0].keys, caches[1].keys)
    assert numbers(after(ema_sink(5, 2, 0.3), [[4.0, 4.0]] * 9)) == pytest.approx([4.0] * 5)


def test_a_file_gives_the_cache_back_and_refuses_what_is_not_finite(tmp_path):
    cache = after(ema_sink(5, 2, 0.9), counted(12, 3))
    cache.save(tmp_path / "cache.safetensors")
    again = Cache.load(tmp_path / "cache.safetensors")
    assert (again.policy, again.seen) == (cache.policy, cache.seen)
    assert torch.equal(again.keys, cache.keys)
    assert numbers(again.extended(frames([12.0]), -frames([12.0]))) == numbers(
        after(cache.policy, [*counted(12, 3), [12.0]])
    )
    broken = after(append(), [[0.0, float("nan")]])
    with pytest.raises(FewstepError, match="NaN"):
        broken.check()
    broken.save(tmp_path / "broken.safetensors")
    with pytest.raises(FewstepError, match="NaN"):
        Cache.load(tmp_path / "broken.safetensors")


@pytest.mark.parametrize("given", [(2, 2, 1.0), (3, -1, 1.0), (4, 1, 1.5)])
def test_a_policy_that_cannot_be_is_refused(given):
    with pytest.raises(FewstepError):
        CachePolicy(*given)
