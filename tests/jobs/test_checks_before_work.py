"""Every command says what is wrong before it opens a model, and its dry run says it too."""

import pytest
import torch
import yaml
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.errors import FewstepError
from fewstep.jobs import distill, search
from fewstep.jobs.pipeline_recipe import PipelineRecipe
from fewstep.pipelines import load_pipeline
from fewstep.pipelines.conditions import class_label, conditions_of
from fewstep.recipes.loader import load
from fewstep.runs import Run


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


WRONG = [
    ("quantize emoji-student --method rtnn", "'rtn'"),
    ("quantize emoji-student --scheme w5a8", "w5a8"),
    ("quantize emoji-student --set evaluation.conditions=absent.txt", "absent.txt"),
    ("quantize emoji-student --set calibration.conditions=[]", "empty"),
    ("search emoji-student --method jiont", "joint"),
    ("search emoji-student --set search.features=randm", "'random'"),
    ("search emoji-student --set search.objective=distribution", "gradient"),
    ("search emoji-student --method s3 --set search.objective=distribution --set search.items=4", "eight"),
    ("search emoji-student --set evaluation.seeds=[3,3]", "twice"),
    ("search emoji-student --q-sched 1.5", "0 or at least 2"),
    ("search emoji-student --method ld3 --budget 5", "search.budget of at least 13"),
    ("quantize emoji-student --scheme w4a8 --q-sched 1", "0 or at least 2"),
    ("distill dmd2 --set train.q_sched=1", "0 or at least 2"),
    ("run q-sched --set search.objective=jaq --set search.budget=5", "Give at least 6"),
    ("distill dmdd", "'dmd'"),
    ("distill dmd2 --data no-pictures", "no-pictures"),
    ("distill dmd2 --set evaluation.features=[random,randm]", "'random'"),
    ("distill dmd2 --set train.trackers=[tensorbord]", "tensorboard"),
    ("distill dmd2 --set train.quantize=w5a8", "w5a8"),
    ("distill dmd2 --set results=.", "results is a folder"),
]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
@pytest.mark.parametrize(("command", "word"), WRONG, ids=[c for c, _ in WRONG])
def test_mistakes_are_told_before_a_model_is_opened(command, word, dry, tmp_path, monkeypatch):
    monkeypatch.setattr(PipelineRecipe, "opened", lambda recipe: pytest.fail("the pipeline was opened"))
    done = call(*command.split(), "--out", tmp_path / "run", *dry)
    assert done.exit_code == 2, done.output
    assert word in " ".join(done.output.split())


@pytest.mark.parametrize(
    "command", ["search mnist-dit", "quantize mnist-dit", "distill dmd2", "distill lcm --model emoji-teacher"]
)
def test_a_dry_run_shows_what_is_meant(command, tmp_path):
    done = call(*command.split(), "--dry-run", "--out", tmp_path / "no")
    assert done.exit_code == 0, done.output
    shown = yaml.safe_load(done.stdout)
    assert shown["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert shown["evaluation"]["conditions"] == ("emoji:evaluation" if "emoji" in command else list(range(10)))
    if "distill" in command:
        left = [name for name, value in shown["train"].items() if value is None]
        assert left == []
    assert not (tmp_path / "no").exists()


def test_what_a_dry_run_shows_runs_as_it_is(tmp_path):
    file = tmp_path / "shown.yaml"
    file.write_text(call("distill", "dmd2", "--dry-run").stdout)
    assert load(file) == load(file).resolved()


def test_class_labels_are_numbers_or_names_of_the_pipeline():
    pipe = load_pipeline("mnist-dit")
    assert class_label(pipe, "digit 3") == class_label(pipe, "3") == class_label(pipe, 3) == 3
    assert conditions_of(pipe, ["digit 9", 0]) == [9, 0]
    for wrong, word in [(10, "0 to 9"), (-1, "0 to 9"), ("digit 11", "Did you mean"), ("cat", "digit 0")]:
        with pytest.raises(FewstepError, match=word):
            class_label(pipe, wrong)


@pytest.mark.parametrize("kind", ["schedule", "distill"])
def test_held_out_labels_are_checked_before_the_work(kind, tmp_path):
    recipe = load(kind, ["model=mnist-dit", "evaluation.conditions=[3, 10]"])
    with Run(tmp_path / "run", recipe.plain(), quiet=True) as run, pytest.raises(FewstepError, match="0 to 9"):
        {"schedule": search.run, "distill": distill.run}[kind](recipe, run)
    assert not list((tmp_path / "run").glob("units/*"))


def test_a_training_shorter_than_its_stages_is_refused_before_its_data_are_made(tmp_path):
    # stages that were asked for; the method's own would be laid over the training
    recipe = load("distill", ["method=slim_flow", "train.steps=2", "options.reflow_steps=100"])
    with Run(tmp_path / "run", recipe.plain(), quiet=True) as run, pytest.raises(FewstepError, match="stages take"):
        distill.run(recipe, run)
    assert not (tmp_path / "run" / "artifacts").exists()


def test_a_plan_to_inspect_is_read_before_the_pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr(PipelineRecipe, "opened", lambda recipe: pytest.fail("the pipeline was opened"))
    done = call("inspect", "emoji-student", "--plan", tmp_path / "absent.json", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "absent.json" in done.output.replace("\n", "")
