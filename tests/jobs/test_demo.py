"""The demo path itself, on the shipped model with a small budget: command, artifacts, report, what a user does next."""

import shutil

import pytest
import torch
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.files import read_json
from fewstep.jobs.q_sched.names import SYSTEMS
from fewstep.pipelines import load_pipeline

SMALL = ["search.budget=10", "search.count=2", "evaluation.count=4", "evaluation.seeds=[101, 102]"]
SMALL += ["search.seeds=[1]", "search.held_out=8", "evaluation.teacher_steps=4"]


def demo(place):
    done = CliRunner().invoke(app, ["demo", "--out", str(place), *(a for s in SMALL for a in ("--set", s))])
    assert done.exit_code == 0, done.output
    assert "report.html" in done.output.replace("\n", "")


@pytest.fixture(scope="module")
def folder(once):
    return once("demo", demo)


@pytest.fixture
def own(folder, tmp_path):
    """A copy to run in again: a run directory belongs to one process at a time."""
    return shutil.copytree(folder, tmp_path / "run")


@pytest.mark.slow
def test_demo_leaves_a_report_and_numbers_with_their_origin(folder):
    results = read_json(folder / "results.json")
    systems = results["evaluation"]["systems"]
    assert set(SYSTEMS) <= systems.keys()
    assert "teacher" in systems
    assert "emoji-student, quantized" in systems  # the unguided student at equal bytes
    for row in systems.values():
        metric = next(m for m in row if m.startswith("mmd:"))
        assert row[metric]["low"] <= row[metric]["mean"] <= row[metric]["high"]
    assert results["environment"]["torch"] == torch.__version__
    assert results["search"]["quantized"]["value"] >= results["search"]["quantized"]["identity_value"]
    page = (folder / "report.html").read_text()
    for part in ("What each step cost and won", "Equal prompts, equal seeds", "The landscape", "Every layer"):
        assert part in page
    assert (folder / "grid.png").stat().st_size > 10_000


@pytest.mark.slow
def test_calibration_and_evaluation_prompts_are_disjoint(folder):
    from fewstep.data import emoji_prompts

    assert not set(emoji_prompts("calibration")) & set(emoji_prompts("evaluation"))
    assert set(read_json(folder / "results.json")["evaluation"]["prompts_used"]) <= set(emoji_prompts("evaluation"))


@pytest.mark.slow
def test_the_saved_pipeline_draws_with_its_own_plan(folder):
    pipe = load_pipeline(folder / "artifacts" / "pipeline")
    image = pipe("red heart", num_inference_steps=4, guidance_scale=1.0, output_type="pt").images
    assert image.shape == (1, 3, 64, 64)
    assert float(image.std()) > 0.05


@pytest.mark.slow
def test_the_same_command_again_only_reads(own):
    before = {f: f.stat().st_mtime_ns for f in (own / "units").rglob("*.json")}
    demo(own)
    assert {f: f.stat().st_mtime_ns for f in (own / "units").rglob("*.json")} == before


@pytest.mark.slow
def test_another_recipe_in_the_same_folder_is_refused(own):
    done = CliRunner().invoke(app, ["demo", "--out", str(own), "--set", "scheme=w8a8"])
    assert done.exit_code == 2
    assert "scheme" in done.output
    assert "--fresh" in done.output
