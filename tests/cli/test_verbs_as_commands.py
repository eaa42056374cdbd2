"""Commands that do what a verb does: `tune` on a pipeline in low bits, `save`, and the names of `generate`."""

import inspect

import torch
from typer.main import get_command
from typer.testing import CliRunner

import fewstep as fs
from fewstep.cli import app
from fewstep.files import read_json
from tests.pipelines import tiny_pipelines as tiny


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_pipeline_in_low_bits_is_tuned_as_it_is_and_saved_with_its_plan(tmp_path):
    low = fs.quantize(tiny.MAKERS["sd"](tmp_path), "w4a8", progress=False, **tiny.CALLS["sd"])
    fs.save(low, tmp_path / "low")
    (tmp_path / "prompts.txt").write_text("a cat\nb dog\n")
    asked = [
        "tune", tmp_path / "low", "--prompts", tmp_path / "prompts.txt", "--alignment", "none",
        "--quality", "sharpness", "--steps", 2, "--blocks", "3", "--budget", 12, "--out", tmp_path / "run",
    ]  # fmt: skip
    for name, value in tiny.CALLS["sd"].items():
        asked += ["--set", f"call.{name}={value}"]
    assert call(*asked).exit_code == 0
    found = read_json(tmp_path / "run" / "results.json")
    assert found["recipe"]["scheme"] == "none"
    assert found["search"]["jaq"] >= found["search"]["jaq_untuned"]
    tuned = fs.Plan.load(tmp_path / "run" / "artifacts" / "plan-quantized-Q-Sched.json")
    made = fs.load(tmp_path / "run")
    assert made.scheduler.plan == tuned
    assert fs.quant_report(made).disk_after == fs.quant_report(low).disk_after
    assert call(*asked).exit_code == 0  # nothing is done again

    shown = call(
        "save", tmp_path / "low", tmp_path / "small", "--plan", tmp_path / "run/artifacts/plan-quantized-Q-Sched.json"
    )
    assert shown.exit_code == 0, shown.output
    small = fs.load(tmp_path / "small")
    drawn = [fs.generate(pipe, ["a cat"], seeds=[5], **tiny.CALLS["sd"]) for pipe in (made, small)]
    torch.testing.assert_close(*drawn)
    assert call("save", tmp_path / "low", tmp_path / "small").exit_code == 2
    again = call(*asked, "--scheme", "w4a8", "--out", tmp_path / "no")
    assert (again.exit_code, "low bits" in again.output) == (2, True)


def test_generate_has_the_names_and_defaults_of_its_verb():
    command = get_command(app).commands["generate"]
    options = {p.name: p for p in command.params}
    verb = {name: p.default for name, p in inspect.signature(fs.generate).parameters.items()}
    shared = options.keys() & verb.keys()
    assert shared == {"plan", "steps", "guidance"}
    assert all(options[name].default == verb[name] for name in shared)
