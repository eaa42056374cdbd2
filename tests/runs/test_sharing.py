"""Two processes of one run: every piece is made once, in whichever process; none of them is needed alive."""

import json
import os
import signal
import time

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.runs import Run
from tests import processes


def squares(folder, victim, index):
    """A unit of pieces, one that depends on it, and pieces outside of units; `victim` dies at its second piece."""
    made = []

    def square(k):
        made.append(k)
        if index == victim and len(made) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        (folder / f"made-{k}-{index}").touch()
        return torch.tensor([float(k * k)])

    def work(numbers):
        return {str(k): lambda k=k: square(k) for k in numbers}

    with Run(folder / "run", {"kind": "squares"}) as run:
        first = run.unit("first", lambda: [float(x) for x in run.each("squares", work(range(8)))], shared=True)
        second = run.unit("second", lambda: sum(first))
        run.ahead("squares", work(range(8, 12)))
        more = run.unit("more", lambda: [float(x) for x in run.each("squares", work(range(6, 12)))])
    (folder / f"found-{index}.json").write_text(json.dumps([first, second, more]))


@pytest.mark.parametrize("victim", [None, 0, 1])
def test_pieces_are_made_once_and_a_dead_process_loses_one(victim, tmp_path):
    files = [tmp_path / f"{k}.txt" for k in range(2)]
    running = processes.start_together(squares, tmp_path, victim, files=files)
    for process in running:
        process.join()
    alive = [k for k in range(2) if k != victim]
    told = [file.read_text() for file in files]
    assert [running[k].exitcode for k in alive] == [0] * len(alive), told
    for k in alive:
        found = json.loads((tmp_path / f"found-{k}.json").read_text())
        assert found == [[k * k for k in range(8)], sum(k * k for k in range(8)), [k * k for k in range(6, 12)]]
    made = sorted(int(file.name.split("-")[1]) for file in tmp_path.glob("made-*"))
    assert made == list(range(12)), "once each, by whichever process"
    assert len({file.name[-1] for file in tmp_path.glob("made-*")}) == 2
    assert not (tmp_path / "run" / "artifacts").exists(), "pieces go when the run has finished"
    events = [json.loads(line)["event"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert events.count("finished") == 3
    assert events.count("succeeded") == (victim == 0)
    assert [bool(text) for text in told] == [True, victim == 0], "one process speaks"


def failing(folder, index):
    with Run(folder / "run", {"kind": "squares"}) as run:
        run.unit("zero", int)
        run.unit("first", refused if index == 0 else float)


def refused():
    raise FewstepError("the first process cannot", hint="Nothing helps.")


def test_an_error_of_the_first_process_ends_the_others(tmp_path):
    files = [tmp_path / f"{k}.txt" for k in range(2)]
    running = processes.start_together(failing, tmp_path, files=files)
    for process in running:
        process.join()
    assert all(process.exitcode != 0 for process in running)
    assert "the first process ended before unit 'first'" in files[1].read_text()
