"""`fewstep plan` on pipeline folders: what the pipeline does, and a plan that it does not ignore."""

import diffusers
from typer.testing import CliRunner

from fewstep.cli.app import app
from fewstep.pipelines import load_pipeline, plan_of
from fewstep.plan import Plan
from tests.pipelines import tiny_pipelines as tiny


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_pipeline_folder_is_read_as_the_pipeline_calls_its_scheduler(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    pipe.scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, **tiny.BETAS)
    pipe.save_pretrained(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path / "pipe" / "scheduler"):
        result = run("plan", "import", place, "--steps", 4, "--out", tmp_path / f"{place.name}.json")
        assert result.exit_code == 0, (result.output, result.exception)
        assert Plan.load(tmp_path / f"{place.name}.json").steps == 5


def test_a_plan_is_exported_into_a_pipeline_that_follows_it(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    pipe.save_pretrained(tmp_path / "pipe")
    plan = plan_of(pipe, 3, **tiny.CALLS["sd"])
    plan.save(tmp_path / "plan.json")
    before = (tmp_path / "pipe" / "scheduler" / "scheduler_config.json").read_bytes()
    assert run("plan", "export", tmp_path / "plan.json", tmp_path / "pipe" / "scheduler").exit_code != 0
    assert (tmp_path / "pipe" / "scheduler" / "scheduler_config.json").read_bytes() == before
    result = run("plan", "export", tmp_path / "plan.json", tmp_path / "new", "--pipeline", tmp_path / "pipe")
    assert result.exit_code == 0, (result.output, result.exception)
    assert load_pipeline(tmp_path / "new").scheduler.plan.steps == 3
