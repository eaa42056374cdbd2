import json
import re
import shlex
import subprocess
import sys
from typing import get_type_hints

import pytest
import yaml
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from typer.main import get_command
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.cli.doctor import Report, warnings
from fewstep.cli.shell import EXAMPLES
from fewstep.errors import FewstepError
from fewstep.plan import Plan
from fewstep.plan.scheduler import PlanScheduler
from fewstep.recipes import Recipe, register

GROUP = get_command(app)


class Echo(Recipe):
    text: str = "hello"
    fail: bool = False


def echo(recipe, run):
    if recipe.fail:
        raise FewstepError("the echo is broken", value=recipe.text, mend="Shout.")
    run.unit("echo", lambda: recipe.text)
    return run.artifact("echo.txt")


register("echo", f"{__name__}:Echo", f"{__name__}:echo")


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "echo.yaml"
    file.write_text("kind: echo\n")
    return file


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def leaves(group=GROUP, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("words", list(leaves()), ids=" ".join)
def test_every_help_has_two_examples_of_its_own(words):
    shown = call(*words, "--help")
    assert shown.exit_code == 0
    assert len([e for e in EXAMPLES if shlex.split(e)[1 : 1 + len(words)] == list(words)]) >= 2
    assert shown.output.count("fewstep " + " ".join(words)) >= 2


def commands():
    for words in leaves():
        command = GROUP
        for word in words:
            command = command.commands[word]
        yield words, command


def test_no_help_loses_words_in_brackets():
    for words, command in commands():
        shown = "".join(call(*words, "--help").output.split())
        for text in (command.help or "", *(getattr(p, "help", None) or "" for p in command.params)):
            for bracketed in re.findall(r"\[\w+\]", text):
                assert bracketed in shown, words


def decimals(typer_app=app, path=()):
    """Every option that takes a decimal number, with its command."""
    for info in typer_app.registered_commands:
        words = (*path, info.name or info.callback.__name__)
        for name, kind in get_type_hints(info.callback).items():
            if kind is float:
                yield words, "--" + name.replace("_", "-")
    for group in typer_app.registered_groups:
        yield from decimals(group.typer_instance, (*path, group.name))


FLOATS = list(decimals())


@pytest.mark.parametrize(("words", "option"), FLOATS, ids=[" ".join((*w, o)) for w, o in FLOATS])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_no_option_takes_a_number_that_is_none(words, option, value, tmp_path):
    required = [p for p in dict(commands())[words].params if p.required]
    given = [a for p in required for a in ([p.opts[0], "x"] if p.opts[0].startswith("-") else ["x"])]
    shown = call(*words, *given, option, value)
    assert shown.exit_code == 2
    assert f"for '{option}'" in " ".join(shown.output.replace("│", " ").split())


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_parses(example):
    program, *arguments = shlex.split(example)
    assert program == "fewstep"
    command, context = GROUP, GROUP.make_context("fewstep", arguments)
    while hasattr(command, "commands"):
        name, command, arguments = command.resolve_command(context, arguments)
        context = command.make_context(name, list(arguments), parent=context)  # raises on an unknown option


def test_help_and_version_load_no_heavy_library():
    code = (
        "import sys, fewstep.cli; heavy = {'torch', 'diffusers', 'matplotlib', 'pydantic'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert call("--version").output.startswith("fewstep ")


def test_run_then_resume_then_another_recipe(recipe, tmp_path):
    out = tmp_path / "out"
    first = call("run", recipe, "--out", out)
    assert first.exit_code == 0
    assert "echo.txt" in first.output.replace("\n", "")
    assert yaml.safe_load((out / "recipe.yaml").read_text())["text"] == "hello"
    before = (out / "units" / "echo.json").read_bytes()
    assert call("run", recipe, "--out", out).exit_code == 0
    assert (out / "units" / "echo.json").read_bytes() == before

    changed = call("run", recipe, "--out", out, "--set", "text=bye")
    assert changed.exit_code == 2
    assert "--fresh" in changed.output
    assert call("run", recipe, "--out", out, "--set", "text=bye", "--fresh").exit_code == 0
    assert json.loads((out / "units" / "echo.json").read_text())["value"] == "bye"
    assert call("run", out / "recipe.yaml", "--out", tmp_path / "again").exit_code == 0


def test_dry_run_prints_the_recipe_and_writes_nothing(recipe, tmp_path):
    shown = CliRunner().invoke(
        app, ["run", str(recipe), "--dry-run", "--set", "text=[x]", "--out", str(tmp_path / "no")]
    )
    assert shown.exit_code == 2  # a list is no text
    shown = call("run", recipe, "--dry-run", "--set", "text='[red]x'", "--out", tmp_path / "no")
    assert "[red]x" in shown.output
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "txet=1"], ["txet", "'text'"]),
        (["--set", "fail=true"], ["the echo is broken", "Shout"]),
        (["--set", "text"], ["key=value"]),
    ],
)
def test_mistakes_are_one_message_without_traceback(recipe, tmp_path, monkeypatch, arguments, words):
    monkeypatch.delenv("FEWSTEP_DEBUG", raising=False)
    shown = call("run", recipe, "--out", tmp_path / "out", *arguments)
    assert shown.exit_code == 2
    assert shown.output.count("Error:") == 1
    assert "Traceback" not in shown.output
    for word in words:
        assert word in shown.output.replace("\n", " ")
    monkeypatch.setenv("FEWSTEP_DEBUG", "1")
    assert isinstance(call("run", recipe, "--out", tmp_path / "out", *arguments).exception, FewstepError)


def test_a_failed_run_is_logged_and_gives_the_folder_back(recipe, tmp_path):
    call("run", recipe, "--out", tmp_path / "out", "--set", "fail=true")
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", "stopped"]
    assert call("run", recipe, "--out", tmp_path / "out", "--fresh").exit_code == 0


def test_plan_import_show_export_round_trip(tmp_path):
    scheduler = DPMSolverMultistepScheduler()
    scheduler.save_pretrained(tmp_path / "pipe" / "scheduler")
    plan, again = tmp_path / "plan.json", tmp_path / "again.json"
    assert call("plan", "import", tmp_path / "pipe", "--steps", 5, "--out", plan).exit_code == 0
    assert Plan.load(plan) == Plan.from_scheduler(scheduler, 5)

    shown = call("plan", "show", plan)
    assert shown.exit_code == 0
    assert "5 steps, epsilon" in shown.output
    assert Plan.load(plan).document() == json.loads(call("plan", "show", plan, "--json").output)

    assert call("plan", "export", plan, tmp_path / "exported").exit_code == 0
    assert PlanScheduler.from_pretrained(tmp_path / "exported").plan == Plan.load(plan)
    assert call("plan", "import", tmp_path / "exported", "--steps", 5, "--out", again).exit_code == 0
    assert Plan.load(again) == Plan.load(plan)


def test_plan_mistakes_are_named(tmp_path):
    DDIMScheduler().save_pretrained(tmp_path / "ddim")
    DDIMScheduler(thresholding=True).save_pretrained(tmp_path / "bent")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "scheduler_config.json").write_text('{"_class_name": "DDIMSheduler"}')
    (tmp_path / "cut.json").write_text('{"fewstep_plan": 1, "rows": [')
    for arguments, word in [
        (["show", tmp_path / "ddim"], "--steps"),
        (["show", tmp_path / "empty"], "scheduler_config.json"),
        (["show", tmp_path / "bad", "--steps", "4"], "DDIMScheduler"),
        (["show", tmp_path / "cut.json"], "JSON"),
        (["show", tmp_path / "absent.json"], "absent.json"),
        (["import", tmp_path / "bent", "--steps", "4", "--out", tmp_path / "no.json"], "thresholding"),
    ]:
        shown = call("plan", *arguments)
        assert shown.exit_code == 2, arguments
        assert word in shown.output.replace("\n", ""), shown.output
    assert not (tmp_path / "no.json").exists()


def test_train_names_the_nearest_stage(tmp_path):
    shown = call("train", "teecher", "--out", tmp_path / "t")
    assert shown.exit_code == 2
    assert "'teacher'" in shown.output


def test_doctor_reports_versions_and_kernels():
    found = json.loads(call("doctor", "--json").output)
    assert found["versions"]["torch"].startswith("2.")
    assert {"w8a8 Linear", "w4a8 Conv2d"} <= set(found["kernels"])
    assert call("doctor").exit_code == 0


def test_doctor_says_how_to_mend():
    machine = {"kind": "cpu", "threads": 8, "cores": 2}
    versions = {"torch": "2.5.1+cpu", "diffusers": None, "transformers": "5.0", "accelerate": "1.0", "torchao": "0.18"}
    found = "\n".join(warnings(Report(versions, machine), free=0.5))
    for word in ("pip install -U 'torch>=2.6'", "pip install 'diffusers>=0.42'", "OMP_NUM_THREADS=2", "0.5 GB"):
        assert word in found
    assert "transformers" not in found
