"""The parts of the stage `video`, one step each, and what a student of it streams."""

import itertools

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.jobs import zoo
from fewstep.jobs.streaming import draw, policy_of, report, write
from fewstep.jobs.zoo.video import WEIGHTS
from fewstep.tasks.video import load_student
from fewstep.tasks.video.drawing import draw_clips

TINY = ("clips=4", "batch=2", "width=16", "layers=1", "frames=8", "steps=1", "window=2", "device=cpu")


def test_the_parts_follow_each_other(tmp_path):
    def train(part, *settings, out=""):
        return zoo.run("video", [f"folder={tmp_path}", f"part={part}", *TINY, *settings], tmp_path / (out or part))

    with pytest.raises(FewstepError, match="earlier part"):
        train("causal")
    for part in ("motion", "teacher", "causal", "consistency"):
        assert (train(part) / WEIGHTS).is_file()
    train("student", "method=reward_forcing", "options={sink: 1, ratio: 1}")
    train("accvideo", "few=2")


def test_the_shipped_student_draws_what_it_streams_and_keeps_its_place(tmp_path):
    student = load_student("video-student")
    drawn = draw(student, "3 7 fast", 12, {6: "1 2 slow"}, seed=3, keep=tmp_path / "place")
    assert drawn.frames.shape == (12, 16, 16)
    assert drawn.evaluations == 3
    assert drawn.chunk == 4
    again = draw(student, "ignored 1 2", 4, keep=tmp_path / "place")  # goes on with its own prompt and seed
    whole = draw(student, "3 7 fast", 16, {6: "1 2 slow"}, seed=3)
    assert torch.equal(torch.cat([drawn.frames, again.frames]), whole.frames)
    clip = draw_clips(student, torch.tensor([[3, 7, 2]]), 1, [3])
    assert torch.equal(clip.flatten(1, 2)[0], whole.frames[:4])


@pytest.mark.parametrize("name", ["s.gif", "s.webp"])
def test_a_file_and_its_page_are_replaced_when_told_so(tmp_path, name):
    drawn = draw(load_student("video-student"), "3 7 fast", 9)  # no whole row of the contact sheet, no whole chunk
    write(drawn, tmp_path / name, 12, 2)
    with pytest.raises(FewstepError, match="exists already"):
        write(drawn, tmp_path / name, 12, 2)
    write(drawn, tmp_path / name, 12, 2, overwrite=True)
    report(drawn, tmp_path / "s.html", 12)
    assert "data:image/gif" in (tmp_path / "s.html").read_text(encoding="utf-8")


def test_words_for_policies():
    like = load_student("video-student").policy
    named = [policy_of(words, like) for words in ("drop", "static", "ema", "ema:0.5", "append")]
    assert [p.window for p in named] == [6, 6, 6, 6, None]
    assert [p.alpha for p in named[1:4]] == [1.0, 0.99, 0.5]
    for words in ("emma", "ema:half", "drop:3"):
        with pytest.raises(FewstepError):
            policy_of(words, like)
    assert len(set(itertools.chain(named))) == 5
