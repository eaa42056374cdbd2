"""Jobs in several processes: the same numbers as in one, and none of them is needed alive."""

import json
import time

import pytest

from fewstep.cli import app
from fewstep.files import read_json
from fewstep.pipelines import save_pipeline
from tests import processes
from tests.jobs.fewer import fewer_pictures
from tests.jobs.test_q_sched import settings
from tests.jobs.test_quantize_job import AUTO
from tests.jobs.test_quantize_job import SMALL as QUANTIZE
from tests.jobs.test_search_job import SMALL as SCHEDULE
from tests.pipelines import tiny_pipelines as tiny

# what was measured by a clock, and what tells when and where
CLOCKS = ("seconds", "environment", "speed")


def command(recipe, overrides, out):
    return ["run", recipe, "--out", str(out), *(word for told in overrides for word in ("--set", told))]


def call(words, *_):
    fewer_pictures(pytest.MonkeyPatch())
    raise SystemExit(app(words, standalone_mode=False) or 0)


def whole(once):
    """A run of one process, and what it was told."""

    def make(folder):
        told = [*settings("sd", folder), "piece=1", "batch=3"]
        alone = processes.start(call, command("q-sched", told, folder / "one"))
        alone.join()
        assert alone.exitcode == 0
        (folder / "told.json").write_text(json.dumps(told))

    folder = once("q-sched-in-one-process", make)
    return folder / "one", json.loads((folder / "told.json").read_text())


def together(words, out):
    """Two processes of one command, started."""
    files = [out.with_suffix(f".{k}.txt") for k in range(2)]
    return processes.start_together(call, words, files=files), files


def finished(words, out):
    """Two processes of one command, at their end."""
    running, files = together(words, out)
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0], "".join(file.read_text()[-3000:] for file in files)


def numbers(out):
    found = read_json(out / "results.json")
    return {key: value for key, value in found.items() if key not in CLOCKS}


def artifacts(out):
    """Every file that a run made but its report, whose tables have times, and configurations, which name the folder."""
    kept = [file for file in (out / "artifacts").rglob("*") if file.is_file()]
    named = ("config.json", "model_index.json", "fewstep.json")
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in kept if file.name not in named}


def shared_pieces(out):
    """Names of the pieces that lie there while a run goes on."""
    return list((out / "artifacts" / "scratch" / "shared").rglob("*.safetensors"))


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path, once):
    one, overrides = whole(once)
    two = tmp_path / "two"
    finished(command("q-sched", overrides, two), two)
    assert numbers(one) == numbers(two)
    assert artifacts(one) == artifacts(two)
    assert not (two / "artifacts" / "scratch").exists()
    told = [two.with_suffix(f".{k}.txt").read_text() for k in range(2)]
    assert "Done." in told[0]
    assert "Done." not in told[1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_a_process_that_is_killed_is_not_missed(victim, tmp_path, once):
    one, overrides = whole(once)
    two = tmp_path / "two"
    running, files = together(command("q-sched", overrides, two), two)
    while len(shared_pieces(two)) < 8 and all(process.is_alive() for process in running):
        time.sleep(0.005)
    running[victim].kill()
    for process in running:
        process.join()
    assert running[victim].exitcode < 0, "the run ended before it could be killed"
    assert running[1 - victim].exitcode == 0, files[1 - victim].read_text()[-3000:]
    assert numbers(one) == numbers(two)
    events = [json.loads(line)["event"] for line in (two / "log.jsonl").read_text().splitlines()]
    assert events.count("succeeded") == (victim == 0)
    assert not (two / "artifacts" / "scratch").exists()
    assert (two / "report.html").exists()


OTHERS = {
    "schedule": [*SCHEDULE, "search.method=s3", "search.q_sched=4", "piece=2", "guidance=1"],
    "quantize": [*QUANTIZE, *AUTO, "budget=180kB", "allocation.joint=false", "calibration.items=2"],
    "auto": [
        "steps=2", "space.steps=[1, 2]", "space.solvers=[own]", "space.schemes=[none, w4a8row int8]", "space.q_sched=0",
        "space.parts=[none]", "search.reference_steps=4", "search.rounds=3", "search.items=8", "evaluation.items=4",
        "evaluation.pictures=0", "piece=2",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", ["schedule", *(pytest.param(n, marks=pytest.mark.thorough) for n in OTHERS if n != "schedule")]
)
def test_other_jobs_find_the_same_too(recipe, tmp_path):
    kind = {"schedule": "ddim", "quantize": "dit", "auto": "sd"}[recipe]
    save_pipeline(tiny.MAKERS[kind](tmp_path), tmp_path / "model")
    overrides = [f"model={tmp_path / 'model'}", f"call={json.dumps(tiny.CALLS.get(kind, {}))}", *OTHERS[recipe]]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = processes.start(call, command(recipe, overrides, one), out=tmp_path / "one.txt")
    finished(command(recipe, overrides, two), two)
    alone.join()
    assert alone.exitcode == 0, (tmp_path / "one.txt").read_text()[-3000:]
    ours, theirs = (read_json(out / "results.json") for out in (one, two))
    # which points `auto` looks at twice is a question of times
    same = {"schedule": ("search", "evaluation"), "quantize": ("allocation", "parts"), "auto": ("plans",)}[recipe]
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    units = [{file.name: read_json(file).get("value") for file in out.glob("units/point-*")} for out in (one, two)]
    assert all(units[0][name] == units[1][name] for name in units[0].keys() & units[1].keys())
