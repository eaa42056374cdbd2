"""Streams: what they draw, what they keep, and how they stop, change and go on."""

import itertools
import threading
import time

import pytest
import torch

from fewstep.cache import Cache, ema_sink, static_sink
from fewstep.errors import FewstepError
from fewstep.plan import NestedPlan
from fewstep.process import RectifiedFlow
from fewstep.tasks.video import digits
from fewstep.tasks.video.network import VideoConfig, VideoTransformer
from fewstep.tasks.video.presets import shifted_chain
from fewstep.tasks.video.streams import VideoStream, ahead, stream
from fewstep.tasks.video.student import VideoStudent, chunk_plan, load_student, video_denoiser


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    network = VideoTransformer(VideoConfig(width=16, layers=1, heads=2, patch=8))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    chain = shifted_chain(RectifiedFlow(), 2, 3.0)
    return VideoStudent(network.eval().requires_grad_(False), chunk_plan(chain, 2), ema_sink(4, 2, 0.9))


def taken(frames, count):
    return torch.stack(list(itertools.islice(frames, count)))


def test_a_stream_is_chunks_of_the_chain_through_the_cache(student):
    """Against the roll-out that training uses, written out."""
    frames = stream(student, "3 7 fast", seed=5)
    found = taken(frames, 12)
    frames.close()
    from fewstep.executor import Noise
    from fewstep.nested import seed_of_part

    network, prompt = student.network, digits.prompt_of("3 7 fast")
    denoiser, cache, made = video_denoiser(network), network.empty_cache(student.policy, 1), []
    times = shifted_chain(RectifiedFlow(), 2, 3.0).times
    for k in range(3):
        noise = Noise([seed_of_part(5, k)])
        x = noise.draw((2, 2, 16, 16))
        for t, s in zip(times, (*times[1:], 0.0), strict=True):
            clean = denoiser(x, torch.tensor([t], dtype=torch.float64), {"prompt": prompt, "cache": cache})
            x = clean if s == 0 else (1 - s) * clean + s * noise.draw((2, 2, 16, 16))
        made.append(x)
        cache = network.remember(x, torch.zeros(1), prompt, cache)
    wanted = digits.decoded(torch.cat(made, 1))[0]
    assert torch.allclose(found, wanted, atol=1e-4)


def test_memory_is_flat(student):
    frames = stream(student, "3 7 fast")
    taken(frames, 40)
    held = frames.cache.keys.numel()
    taken(frames, 40)
    assert frames.cache.keys.numel() == held
    assert frames.cache.frames == student.policy.window
    frames.close()


def test_a_prompt_holds_from_the_chunk_after_the_next(student):
    plain, switched = stream(student, "3 7 fast"), stream(student, "3 7 fast")
    same, first = taken(plain, 20), taken(switched, 4)
    switched.prompt = "1 2 slow"
    found = torch.cat([first, taken(switched, 16)])
    assert torch.equal(found[:8], same[:8])
    assert not torch.allclose(found[8:12], same[8:12], atol=1e-4)
    assert switched.prompt == "1 2 slow"
    for made in (plain, switched):
        made.close()


def test_a_switch_before_the_first_chunk_and_unknown_words_are_refused(student):
    frames = stream(student, "3 7 fast")
    with pytest.raises(FewstepError, match="first chunk"):
        frames.prompt = "1 2 slow"
    next(frames)
    with pytest.raises(FewstepError, match="unknown speed"):
        frames.prompt = "1 2 quick"
    assert frames.prompt == "3 7 fast"
    frames.close()
    with pytest.raises(FewstepError, match="two digits"):
        stream(student, "seven")


def test_a_saved_stream_goes_on_bit_for_bit_with_its_pending_prompt(student, tmp_path):
    whole = stream(student, "3 7 fast", seed=2)
    taken(whole, 8)
    whole.prompt = "1 2 slow"
    whole.save(tmp_path / "here")
    rest = taken(whole, 12)
    again = VideoStream.resumed(student, tmp_path / "here")
    assert torch.equal(taken(again, 12), rest)
    for made in (whole, again):
        made.close()
    other = student.replace(policy=static_sink(4, 2))
    with pytest.raises(FewstepError, match="another student"):
        VideoStream.resumed(other, tmp_path / "here")
    with pytest.raises(FewstepError):
        VideoStream.resumed(student, tmp_path / "nowhere")


def test_what_cannot_be_saved_or_resumed_is_refused(student, tmp_path):
    frames = stream(student, "3 7 fast")
    with pytest.raises(FewstepError, match="nothing to save"):
        frames.save(tmp_path / "here")
    next(frames)
    frames.save(tmp_path / "here")
    frames.close()
    cache = Cache.load(tmp_path / "here" / "cache.safetensors")
    size = (1, 1, 2, 2, 4, 8)
    cache.extended(torch.full(size, float("nan")), torch.zeros(size)).save(tmp_path / "here" / "cache.safetensors")
    with pytest.raises(FewstepError, match="NaN"):
        VideoStream.resumed(student, tmp_path / "here")


def test_more_frames_than_a_finite_plan_has_end_the_stream(student):
    finite = student.replace(plan=NestedPlan(student.plan.plans, student.plan.entries * 2, endless=False))
    frames = stream(finite, "3 7 fast")
    assert len(list(frames)) == 8


def test_a_folder_gives_the_student_back(student, tmp_path):
    student.save(tmp_path / "rounded")  # to half precision
    rounded = load_student(tmp_path / "rounded")
    rounded.save(tmp_path / "student")
    again = load_student(tmp_path / "student")
    assert (again.plan, again.policy) == (student.plan, student.policy)
    a, b = stream(rounded, "3 7 fast"), stream(tmp_path / "student", "3 7 fast")
    assert torch.equal(taken(a, 8), taken(b, 8))
    for made in (a, b):
        made.close()
    (tmp_path / "student" / "config.json").write_text('{"network": {"width": 16}, "cache": {}}')
    with pytest.raises(FewstepError):
        load_student(tmp_path / "student")
    with pytest.raises(FewstepError, match="no folder"):
        load_student(tmp_path)


# --- one ahead --------------------------------------------------------------------------------------------------


def test_a_reader_who_stops_holds_one_item_and_no_thread_is_left():
    begun = []

    def items():
        for k in itertools.count():
            begun.append(k)
            yield k

    reader = ahead(items())
    before = threading.active_count()
    assert [next(reader), next(reader)] == [0, 1]
    for _ in range(100):
        if begun[-1] == 2:
            break
        time.sleep(0.01)
    assert begun == [0, 1, 2]
    reader.close()
    assert threading.active_count() <= before
    assert begun == [0, 1, 2]


def test_errors_and_ends_are_passed_on():
    def items():
        yield 1
        raise FewstepError("broken")

    reader = ahead(items())
    assert next(reader) == 1
    with pytest.raises(FewstepError, match="broken"):
        next(reader)
    assert list(ahead(iter([1, 2, 3]))) == [1, 2, 3]
