import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import FewstepError
from fewstep.runs import Run, environment
from fewstep.runs.settings import differences
from tests import processes


def squares(folder: Path, calls: Path, pause: float = 0) -> None:
    """A run of three units; the second one pauses in the middle of what it saves."""

    def compute(k: int) -> dict[str, int]:
        with open(calls, "a") as told:
            told.write(f"{k}\n")
        return {"k": k, "square": k * k}

    def slow_save(value: dict[str, int], draft: Path) -> None:
        draft.mkdir()
        (draft / "half").write_text("half")
        Path(folder, "reached").touch()
        time.sleep(pause)
        (draft / "whole").write_text(str(value["square"]))

    with Run(folder, {"kind": "squares"}, quiet=True) as run:
        a = run.unit("one/a", lambda: compute(3))
        b = run.unit("two", lambda: compute(4), save=slow_save, load=lambda p: int((p / "whole").read_text()))
        run.unit("sum", lambda: a["square"] + b)


def snapshot(folder: Path) -> dict[str, str]:
    """Artifacts and values, without what may differ between runs (times)."""
    values = {p.name: json.loads(p.read_text()).get("value") for p in (folder / "units").rglob("*.json")}
    files = {str(p.relative_to(folder)): p.read_text() for p in (folder / "artifacts").rglob("*") if p.is_file()}
    return {**values, **files}


def finished(folder: Path, calls: Path) -> bool:
    process = processes.start(squares, folder, calls)
    process.join()
    return process.exitcode == 0


def test_killed_in_a_unit_then_resumed_equals_uninterrupted(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finished(whole, tmp_path / "calls_whole")

    process = processes.start(squares, killed, tmp_path / "calls", 60)
    while not (killed / "reached").exists():
        assert process.is_alive()
        time.sleep(0.01)
    with pytest.raises(FewstepError, match=f"process {process.pid}"):
        Run(killed, {"kind": "squares"}, quiet=True)
    process.kill()
    process.join()
    (killed / "reached").unlink()
    assert not (killed / "artifacts" / "two").exists()

    assert finished(killed, tmp_path / "calls")
    (killed / "reached").unlink()
    assert snapshot(killed) == snapshot(whole)
    assert (tmp_path / "calls").read_text().split() == ["3", "4", "4"]  # unit a was not computed again
    assert not [p for p in killed.rglob(".*") if p.is_dir()]  # the draft of the killed unit is gone


def test_second_run_in_one_folder_is_refused_until_the_first_closes(tmp_path):
    with Run(tmp_path, quiet=True), pytest.raises(FewstepError, match=str(os.getpid())):
        Run(tmp_path, quiet=True)
    Run(tmp_path, quiet=True).close()


def test_another_recipe_is_refused_and_named(tmp_path):
    with Run(tmp_path, {"kind": "a", "search": {"steps": 4, "seed": 0}}, quiet=True) as run:
        run.unit("x", lambda: 1)
    with pytest.raises(FewstepError, match=r"search\.steps: 4 -> 8") as caught:
        Run(tmp_path, {"kind": "a", "search": {"steps": 8, "seed": 0}}, quiet=True)
    assert "--fresh" in str(caught.value)
    assert "seed" not in str(caught.value)


def test_fresh_discards_the_old_run_but_never_other_files(tmp_path):
    folder = tmp_path / "run"
    with Run(folder, {"a": 1}, quiet=True) as run:
        assert run.unit("x", lambda: 1) == 1
        (folder / "notes.txt").write_text("a system's own file")
    with Run(folder, {"a": 2}, fresh=True, quiet=True) as run:
        assert run.unit("x", lambda: 2) == 2
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FewstepError, match=r"thesis\.txt"):
        Run(tmp_path, {"a": 1}, fresh=True, quiet=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_failed_save_leaves_nothing_and_the_unit_open(tmp_path):
    def save(_, draft):
        draft.write_text("half")
        raise RuntimeError("died")

    with Run(tmp_path, quiet=True) as run:
        with pytest.raises(RuntimeError, match="died"):
            run.unit("x", lambda: 1, save=save, load=Path.read_text)
        assert not run.done("x")
        assert not (tmp_path / "artifacts").exists()


def test_a_lost_artifact_is_computed_again(tmp_path):
    with Run(tmp_path, quiet=True) as run:
        for _ in range(2):
            got = run.unit("x", lambda: "hi", save=lambda v, p: p.write_text(v), load=Path.read_text, artifact="x.txt")
            assert got == "hi"
            run.artifact("x.txt").unlink()


@pytest.mark.parametrize("name", ["", "../x", "a//b", "/etc/x", "a b", ".hidden", "a/../b"])
def test_unit_names_cannot_leave_the_folder(tmp_path, name):
    with Run(tmp_path, quiet=True) as run, pytest.raises(FewstepError, match="unfit name"):
        run.unit(name, lambda: 1)


def test_result_that_json_cannot_hold_names_the_unit(tmp_path):
    with Run(tmp_path, quiet=True) as run:
        with pytest.raises(FewstepError, match="'x'"):
            run.unit("x", lambda: float("nan"))
        with pytest.raises(FewstepError, match="both save and load"):
            run.unit("x", lambda: 1, load=Path.read_text)


def test_log_survives_a_line_cut_short(tmp_path):
    with Run(tmp_path, quiet=True) as run:
        run.log("hello", value=1)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"time": 1, "eve')
    with Run(tmp_path, quiet=True) as run:
        run.log("again")
        assert [e["event"] for e in run.events()] == ["started", "hello", "started", "again"]


def test_unwritable_folder_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FewstepError, match="cannot write"):
        Run(tmp_path / "file" / "run", quiet=True)


@given(st.dictionaries(st.sampled_from("abc"), st.integers() | st.dictionaries(st.sampled_from("de"), st.integers())))
def test_a_recipe_does_not_differ_from_itself_and_differs_when_changed(recipe):
    assert differences(recipe, recipe) == {}
    assert "z" in differences(recipe, {**recipe, "z": 1})


def test_environment_is_plain_json_and_names_the_versions():
    found = json.loads(json.dumps(environment()))
    assert found["torch"].startswith("2.")
    assert found["threads"] >= 1
    assert found["device"]
