"""`fewstep diagnose` on tiny pipelines: what it writes, that it resumes, and what it refuses."""

import pytest
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.cli.shell import call_arguments
from fewstep.errors import FewstepError, IdentityError
from fewstep.files import read_json
from fewstep.jobs.inspect import InspectSettings, inspect, job
from fewstep.jobs.pipeline_recipe import PipelineRecipe
from fewstep.pipelines import plan_of, save_pipeline
from fewstep.plan import Identity
from fewstep.runs import Run
from tests.pipelines import tiny_pipelines as tiny

SMALL = {"steps": 2, "samples": 2, "probes": 1, "fine": 1}


@pytest.mark.parametrize("name", ["dit", "ddpm", "sd3"])
def test_every_kind_of_pipeline_is_inspected(name, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "ALTERNATIVES", {plan: job.ALTERNATIVES[plan] for plan in ("DDIM", "UniPC")})
    save_pipeline(tiny.MAKERS[name](tmp_path), tmp_path / "pipe")
    settings = InspectSettings.of(str(tmp_path / "pipe"), **SMALL)
    with Run(tmp_path / "run", quiet=True) as run:
        report = inspect(settings, run, **tiny.CALLS[name])
        units = run.seconds()
    results = read_json(tmp_path / "run" / "results.json")
    assert "<svg" in report.read_text()
    assert {"DDIM", "UniPC"} < set(results["plans"])
    for plan in results["plans"].values():
        assert sum(plan["share"]) == pytest.approx(1, abs=1e-3)
    for level in results["levels"]:
        assert 0 <= level["gap"]["mean"] <= 2 + 1e-6
    if name == "dit":
        with Run(tmp_path / "run", quiet=True) as run:  # again: everything is kept
            inspect(settings, run, **tiny.CALLS[name])
            assert run.seconds() == units


def test_a_plan_of_another_model_is_refused(tmp_path):
    pipe = tiny.MAKERS["sd"](tmp_path)
    save_pipeline(pipe, tmp_path / "pipe")
    plan_of(pipe, 2, **tiny.CALLS["sd"]).replace(identity=Identity(model="0" * 16)).save(tmp_path / "plan.json")
    settings = InspectSettings.of(str(tmp_path / "pipe"), plan=str(tmp_path / "plan.json"), **SMALL)
    with Run(tmp_path / "run", quiet=True) as run, pytest.raises(IdentityError, match="belongs to model"):
        inspect(settings, run, **tiny.CALLS["sd"])


def test_a_stochastic_plan_is_left_out_and_others_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "ALTERNATIVES", {"DDIM": job.ALTERNATIVES["DDIM"]})
    monkeypatch.setattr(job, "LEVELS", 2)
    save_pipeline(tiny.MAKERS["sdxl"](tmp_path), tmp_path / "pipe")  # Euler ancestral
    with Run(tmp_path / "run", quiet=True) as run:
        inspect(InspectSettings.of(str(tmp_path / "pipe"), **SMALL), run, **tiny.CALLS["sdxl"])
    assert set(read_json(tmp_path / "run" / "results.json")["plans"]) == {"DDIM", "DDIM, errors equalised"}


def test_the_command_says_what_is_wrong():
    result = CliRunner().invoke(app, ["inspect", "emoji-teachr"])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    with pytest.raises(FewstepError, match="KEY=VALUE"):
        call_arguments(["height"])
    assert call_arguments(["height=16", "clean_caption=false"]) == {"height": 16, "clean_caption": False}
    with pytest.raises(FewstepError, match="samples"):
        InspectSettings.of("x", samples=1)


def test_a_variant_reaches_the_pipeline_and_older_runs_go_on(tmp_path, monkeypatch):
    seen = []

    def opened(recipe):
        seen.append(recipe.variant)
        raise FewstepError("seen enough")

    monkeypatch.setattr(PipelineRecipe, "opened", opened)
    done = CliRunner().invoke(app, ["inspect", "emoji-student", "--variant", "fp16", "--out", str(tmp_path / "run")])
    assert "seen enough" in done.output
    assert seen == ["fp16"]
    assert "variant" not in InspectSettings.of("x").plain()  # runs made before there were variants know none
