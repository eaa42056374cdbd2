"""`fewstep distill` in two processes: one owner of the run directory, killed and resumed bit for bit, shares."""

import json
import os
import time

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fewstep.cli import app
from fewstep.files import read_json, read_tensors
from fewstep.pipelines import backbone_of, load_pipeline, save_pipeline
from tests import processes
from tests.jobs.fewer import fewer_pictures
from tests.pipelines import tiny_pipelines as tiny

SETTINGS = {
    "teacher.steps": 4, "teacher.solver": "ddim", "data.count": 40, "evaluation.items": 20, "options.each": "true",
    "evaluation.reference": 40, "evaluation.seeds": "[7]", "evaluation.pictures": 0, "train.checkpoint_every": 2,
    "batch": 500, "train.learning_rate": 1e-3, "train.pictures_every": 6, "options.ratio": 2, "train.warmup": 3,
}  # fmt: skip
COMMON = ["distill", "dmd2", "--steps", "2", "--guidance", "2", "--train-steps", "12", "--batch", "4"]


def arguments(model, out, **more):
    told = [f"{key}={value}" for key, value in {**SETTINGS, **more}.items()]
    return [*COMMON, "--model", str(model), "--out", str(out), *(x for item in told for x in ("--set", item))]


def torchrun(command):
    """As the command `torchrun --standalone --nproc_per_node 2`, which makes the variables of its two processes."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        start_method="fork",
    )  # fmt: skip
    elastic_launch(config, call)(command)


def call(command):
    fewer_pictures(pytest.MonkeyPatch())
    app(command, standalone_mode=False)


def one_after_the_other(whole, shared, broken, index):
    """Three commands in one of two processes: plain, in shares, and the one that will be killed."""
    call(whole)
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")  # as accelerate's configuration file does
    call(shared)
    del os.environ["ACCELERATE_USE_FSDP"]
    call(broken)


def until_killed(commands, mark):
    """Two processes run the commands one after the other, until there is a checkpoint; what they printed."""
    files = [mark.parents[5] / f"{k}.txt" for k in range(2)]
    running = processes.start_together(one_after_the_other, *commands, files=files)
    while not mark.exists() and all(process.is_alive() for process in running):
        time.sleep(0.002)
    for process in running:
        process.kill()
    for process in running:
        process.join()
    return [file.read_text() for file in files]


def state(run):
    return read_tensors(run / "artifacts" / "student" / "student.safetensors")


@pytest.mark.slow
def test_two_processes_share_a_run_and_a_killed_one_goes_on(tmp_path):
    """Bit for bit; with shares (FSDP2) the same up to rounding, though the roll-out's calls differ by process."""
    model, places = tmp_path / "model", [tmp_path / name for name in ("whole", "shared", "broken")]
    save_pipeline(tiny.dit(None), model)
    whole, shared, broken = places
    mark = broken / "artifacts" / "scratch" / "train" / "checkpoint" / "progress.json"
    first, second = until_killed([arguments(model, place) for place in places], mark)
    assert mark.exists(), first[-3000:] + second[-3000:]
    assert 0 < read_json(mark)["step"] < 12, "the run ended before it could be killed"
    again = processes.start(torchrun, arguments(model, broken), out=tmp_path / "again.txt")
    again.join()
    told = (tmp_path / "again.txt").read_text()
    assert again.exitcode == 0, told[-3000:]
    assert told.count("Done.") == 1

    a, b, c = state(whole), state(broken), state(shared)
    assert a.keys() == b.keys() == c.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    histories = [read_json(place / "artifacts" / "student" / "record.json")["history"] for place in (whole, broken)]
    assert histories[0] == histories[1]
    start = backbone_of(load_pipeline(model)).state_dict()
    moved, apart = (sum((x[k] - y[k]).double().square().sum() for k in start) for x, y in ((a, start), (a, c)))
    assert moved > 0
    assert apart < 1e-4 * moved

    assert first.count("✓ train") == 2, "whole and shared"
    assert "✓" not in second, "the second process prints nothing"
    assert "Done." not in second
    events = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events].count("started") == 1
    assert sorted(e["unit"] for e in events if e["event"] == "finished") == sorted(
        f.relative_to(whole / "units").with_suffix("").as_posix() for f in (whole / "units").rglob("*.json")
    )
    for place in (whole, broken):
        assert (place / "report.html").exists()
        assert not (place / "artifacts" / "scratch").exists()
        assert (place / "artifacts" / "samples" / "000012.png").exists()
        assert load_pipeline(place / "artifacts" / "pipeline").scheduler.plan.steps == 2
