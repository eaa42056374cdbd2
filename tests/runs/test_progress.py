"""Lines of progress where there is no terminal, and the command as it was typed."""

import sys

import pytest

from fewstep.runs import environment
from fewstep.runs.progress import EVERY, progress_lines, time_left


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_line_every_half_minute_with_speed_and_time_left():
    clock, said = Clock(), []
    lines = progress_lines("search", 240, said.append, clock=clock)
    lines(0)
    for second in range(1, 66):
        clock.now = 100 + second
        lines(2 * second, f"JAQ {second}")
    assert said == ["  search 60/240 · JAQ 30 · 2/s · 90 s left", "  search 120/240 · JAQ 60 · 2/s · 60 s left"]


def test_speed_counts_from_where_this_process_began():
    clock, said = Clock(), []
    lines = progress_lines("training, step", 1000, said.append, unit="img", per=8, clock=clock)
    lines(500)
    clock.now += 40
    lines(520)
    assert said == ["  training, step 520/1000 · 4 img/s · 16 min left"]


def test_short_work_says_nothing():
    clock, said = Clock(), []
    lines = progress_lines("x", 2, said.append, clock=clock)
    lines(0)
    clock.now += EVERY - 1
    lines(1)
    lines(2)
    assert said == []


def test_time_left_as_people_say_it():
    assert [time_left(s) for s in (0.4, 99, 100, 3600, 7260)] == ["0 s", "99 s", "2 min", "60 min", "2 h 1 min"]


@pytest.mark.parametrize(
    ("argv", "launched", "typed"),
    [
        (["/usr/local/bin/fewstep", "demo", "--out", "a b"], "", "fewstep demo --out 'a b'"),
        (["/lib/python3/fewstep/__main__.py", "run", "q-sched"], "", "python -m fewstep run q-sched"),
        (["benchmarks/mixdq.py", "--output", "x"], "", "python benchmarks/mixdq.py --output x"),
        (["/lib/fewstep/__main__.py", "distill"], "4", "torchrun --nproc_per_node 4 -m fewstep distill"),
    ],
)
def test_the_command_is_told_as_it_was_typed(monkeypatch, argv, launched, typed):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", launched)
    assert environment()["command"] == typed
