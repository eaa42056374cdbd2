"""`fewstep align` killed and resumed, and in two processes."""

import time

import pytest
import torch

from fewstep.cli import app
from fewstep.distillation.chain import evenly
from fewstep.files import read_json, read_tensors
from fewstep.pipelines import attach, identity_of, load_pipeline, process_of, save_pipeline
from tests import processes
from tests.jobs.fewer import fewer_pictures
from tests.pipelines import tiny_pipelines as tiny

SETTINGS = {
    "steps": 2, "train.batch": 2, "train.lora": 2, "train.every": 3, "train.steps": 6, "train.checkpoint_every": 1,
    "evaluation.items": 20, "evaluation.reference": 40, "evaluation.seeds": "[7]", "evaluation.features": "[pixels]",
    "evaluation.judge": "none", "evaluation.pictures": 1, "train.learning_rate": 1e-3, "batch": 8,
    "evaluation.real": "emoji",
}  # fmt: skip


def arguments(model, out):
    told = [f"{key}={value}" for key, value in SETTINGS.items()]
    command = ["align", str(model), "--method", "pso", "--reward", "colourfulness", "--out", str(out)]
    return [*command, *(word for one in told for word in ("--set", one))]


def call(*commands):
    fewer_pictures(pytest.MonkeyPatch())
    for words in commands:
        if isinstance(words, list):
            app(words, standalone_mode=False)


def student(folder):
    """A pipeline of two steps that noises anew."""
    pipe = tiny.one_block_diffusion(folder / "tokens")
    process, prediction = process_of(pipe)
    attach(pipe, evenly(process, 2).plan(process, prediction).replace(identity=identity_of(pipe, 1.0)))
    save_pipeline(pipe, folder / "student")
    return folder / "student"


def leg(run, updates):
    folder = run / "artifacts" / f"leg-{updates}"
    return read_tensors(folder / "student.safetensors"), read_json(folder / "check.json")


def numbers(check):
    return {key: value for key, value in check.items() if key != "seconds"}


@pytest.mark.slow
@pytest.mark.thorough  # the same runs and shares as in test_distill_processes, by the same trainer
def test_a_killed_alignment_goes_on_bit_for_bit_and_two_processes_share_one(tmp_path):
    model, whole, broken, two = student(tmp_path), *(tmp_path / name for name in ("whole", "broken", "two"))
    running = processes.start(call, arguments(model, whole), arguments(model, broken), out=tmp_path / "first.txt")
    mark = broken / "artifacts" / "scratch" / "train" / "checkpoint" / "progress.json"
    while running.is_alive() and not (mark.exists() and read_json(mark)["step"] > 3):
        time.sleep(0.002)
    running.kill()
    running.join()
    told = (tmp_path / "first.txt").read_text()
    assert mark.exists(), told[-3000:]
    assert 3 < read_json(mark)["step"] < 6, "within the second leg"
    assert told.count("Memory before activations") == 2
    assert told.index("Memory before activations") < told.index("check-0")

    files = [tmp_path / "two-0.txt", tmp_path / "two-1.txt"]
    for process in processes.start_together(call, arguments(model, two), files=files):
        process.join()
        assert process.exitcode == 0, "".join(file.read_text()[-2000:] for file in files)
    again = processes.start(call, arguments(model, broken), out=tmp_path / "again.txt")
    again.join()
    assert again.exitcode == 0, (tmp_path / "again.txt").read_text()[-3000:]

    for updates in (3, 6):
        (a, one), (b, other) = leg(whole, updates), leg(broken, updates)
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert numbers(one) == numbers(other)
    results = [read_json(run / "results.json") for run in (whole, broken, two)]
    assert results[0]["checks"][0]["real"] > 0
    assert results[0]["checks"][0] == results[1]["checks"][0] == results[2]["checks"][0], "drawn in shares or alone"
    assert (two / "report.html").exists()
    assert not (two / "artifacts" / "scratch").exists()
    assert load_pipeline(two / "artifacts" / "pipeline").scheduler.plan.steps == 2
    assert "Done." in files[0].read_text()
    assert "✓" not in files[1].read_text(), "the second process prints nothing"
    moved, start = leg(two, 6)[0], leg(whole, 6)[0]
    assert any(not torch.equal(moved[key], start[key]) for key in start), "two processes train on twice as much"
