"""Whose a run directory is: strangers keep everything, a failed start leaves no trace, a finished run no scratch."""

import json
import os
import resource
import sys

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.files import read_tensors, write_tensors
from fewstep.ownership import MARKER
from fewstep.runs import Run
from tests import processes


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def finished(folder, recipe=None, **options):
    with Run(folder, recipe or {"a": 1}, quiet=True, **options) as run:
        run.unit("x", lambda: 1)


def older(folder):
    """A folder as it was left before there was a marker."""
    finished(folder)
    (folder / MARKER).unlink()
    for file in (folder / "units").rglob("*.json"):
        record = json.loads(file.read_text())
        record.pop("digest")
        file.write_text(json.dumps(record))


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    "files",
    [
        {"recipe.yaml": "flour: 500 g", "artifacts/years.txt": "of work", "results.json": "{}"},
        {".git/config": "", "results.json": '{"best": 1}'},
        {"report.html": "<html>"},
        {"run.lock": "held by another program", "artifacts/a": "a"},
        {"run.lock": "another program's"},
        {"owner.json": '{"process": 3, "name": "me"}'},
        {"log.jsonl": '{"event": "started", "time": 1}\n', "recipe.yaml": "a: 1"},
        {MARKER: '{"fewstep": "1", "files": ["weights"]}', "weights": "a pipeline"},
        {MARKER: '{"kind": "run"}', "thesis": "text"},
    ],
    ids=lambda files: next(iter(files)),
)
def test_a_strangers_folder_is_refused_and_stays_as_it_is(tmp_path, files, fresh):
    place = tmp_path / "place"
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    before = tree(place)
    with pytest.raises(FewstepError):
        finished(place, fresh=fresh)
    assert tree(place) == before


def test_an_empty_folder_and_one_with_hidden_files_only_become_runs(tmp_path):
    (tmp_path / ".git").mkdir()
    finished(tmp_path)
    assert {".git", "recipe.yaml", "units", MARKER} <= {p.name for p in tmp_path.iterdir()}


def test_a_run_of_an_older_version_goes_on_and_can_be_discarded(tmp_path):
    older(tmp_path / "kept")
    with Run(tmp_path / "kept", {"a": 1}, quiet=True) as run:
        assert run.unit("x", lambda: 2) == 1
    assert json.loads((tmp_path / "kept" / MARKER).read_text())["kind"] == "run"
    older(tmp_path / "gone")
    with Run(tmp_path / "gone", {"a": 2}, quiet=True, fresh=True) as run:
        assert run.unit("x", lambda: 2) == 2


@pytest.mark.parametrize("existed", [True, False])
def test_a_first_try_that_fails_leaves_no_trace_and_the_corrected_one_is_taken(tmp_path, existed):
    place = tmp_path / "runs" / "mine"
    if existed:
        place.mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), Run(place, {"model": "emoji-techer"}, quiet=True) as run:
        run.unit("plan", lambda: 1 / 0)
    assert list(tmp_path.rglob("*")) == ([place.parent, place] if existed else [])
    finished(place, {"model": "emoji-teacher"})


def test_a_failed_fresh_try_keeps_what_was_there(tmp_path):
    finished(tmp_path, {"a": 1})
    before = tree(tmp_path / "units")
    with pytest.raises(ZeroDivisionError), Run(tmp_path, {"a": 2}, quiet=True, fresh=True) as run:
        run.unit("x", lambda: 1 / int(run.done("x")))
    assert tree(tmp_path / "units") == before
    finished(tmp_path, {"a": 1})


def test_what_was_told_before_the_claim_is_in_the_log(tmp_path):
    with Run(tmp_path, quiet=True) as run:
        run.log("early")
        assert [e["event"] for e in run.events()] == ["started", "early"]
        run.unit("x", lambda: 1)
        assert [e["event"] for e in run.events()] == ["started", "early", "finished"]


def test_a_checkpoint_claims_the_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), Run(tmp_path, {"a": 1}, quiet=True) as run:
        run.unit("x", lambda: (run.scratch("x") / "half").write_text("half of the work") / 0)
    with Run(tmp_path, {"a": 1}, quiet=True) as run:
        assert (run.scratch("x") / "half").read_text() == "half of the work"


def test_a_finished_run_keeps_no_scratch_and_a_stopped_one_does(tmp_path):
    with Run(tmp_path, quiet=True) as run:
        run.unit("x", lambda: "a", save=lambda v, p: p.write_text(v), load=lambda p: p.read_text())
        (run.scratch("x") / "moments").write_text("large")
    assert [p.name for p in (tmp_path / "artifacts").iterdir()] == ["x"]


def killed_at_its_start(folder):
    Run(folder, {"a": 1}, quiet=True)
    os._exit(9)


def test_a_killed_start_does_not_stand_in_the_way(tmp_path):
    process = processes.start(killed_at_its_start, tmp_path / "run")
    process.join()
    assert process.exitcode == 9
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"run.lock", "owner.json"}
    finished(tmp_path / "run", {"a": 2})


def test_linked_parts_are_written_through_and_never_discarded(tmp_path):
    big = tmp_path / "big"
    big.mkdir()
    (big / "precious").write_text("not ours")
    finished(tmp_path / "run")
    (tmp_path / "run" / "artifacts").symlink_to(big)
    with Run(tmp_path / "run", {"a": 1}, quiet=True) as run:
        run.unit("y", lambda: "b", save=lambda v, p: p.write_text(v), load=lambda p: p.read_text())
    assert (big / "y").read_text() == "b"
    with pytest.raises(FewstepError, match="links"):
        finished(tmp_path / "run", {"a": 2}, fresh=True)
    assert (big / "precious").read_text() == "not ours"
    (tmp_path / "run" / "run.lock").unlink()
    (tmp_path / "run" / "run.lock").symlink_to(big / "precious")
    with pytest.raises(FewstepError, match="lock"):
        finished(tmp_path / "run")
    assert (big / "precious").read_text() == "not ours"


def large(folder, room=None):
    """A run of a small and a large unit, where files may grow to `room` bytes; mistakes end it as the command does."""
    if room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        with Run(folder, {"a": 1}, quiet=True) as run:
            run.unit("small", lambda: 1)
            run.unit(
                "large", lambda: {"x": torch.ones(10_000)}, save=lambda t, p: write_tensors(p, t), load=read_tensors
            )
    except FewstepError as error:
        print(error)
        sys.exit(2)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(tmp_path):
    full = processes.start(large, tmp_path / "run", 20_000, out=tmp_path / "told.txt")
    full.join()
    told = (tmp_path / "told.txt").read_text()
    assert full.exitcode == 2, told
    assert "Traceback" not in told
    assert "cannot write" in told
    assert os.strerror(27) in told  # a file may not grow: as near to a full disk as a test can come
    assert not (tmp_path / "run" / "artifacts").exists()
    large(tmp_path / "run")
    assert (tmp_path / "run" / "artifacts" / "large").stat().st_size > 40_000
