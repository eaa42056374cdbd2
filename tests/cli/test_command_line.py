import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from typer.main import get_command
from typer.testing import CliRunner

from fewstep.ascii import spell_out
from fewstep.cli import app
from fewstep.cli.doctor import warnings
from fewstep.cli.shell import EXAMPLES
from fewstep.data.prompts import load_prompts
from fewstep.errors import FewstepError
from fewstep.pipelines.probing import plan_of_scheduler
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.plan import Plan
from fewstep.recipes import Recipe, register
from tests import processes

GROUP = get_command(app)


class Echo(Recipe):
    text: str = "hello"
    fail: bool = False


def echo(recipe, run):
    if recipe.fail:
        raise FewstepError("the echo is broken", value=recipe.text, hint="Shout.")
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
        if command.hidden:  # a former name
            continue
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


def parameters(command):
    """All, those that come from a recipe too."""
    return command.get_params(command.context_class(command))


def test_no_help_loses_words_in_brackets():
    for words, command in commands():
        shown = "".join(call(*words, "--help").output.split())
        for text in (command.help or "", *(getattr(p, "help", None) or "" for p in parameters(command))):
            for bracketed in re.findall(r"\[\w+\]", text):
                assert bracketed in shown, words


FLOATS = [
    (words, p.opts[0])
    for words, command in commands()
    for p in parameters(command)
    if p.type_descriptor.annotation is float
]
"""Every option that takes a decimal number, with its command."""


@pytest.mark.parametrize(("words", "option"), FLOATS, ids=[" ".join((*w, o)) for w, o in FLOATS])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_no_option_takes_a_number_that_is_none(words, option, value, tmp_path):
    required = [p for p in parameters(dict(commands())[words]) if p.required]
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
        "import sys; from fewstep.cli import app; app(['--help'], standalone_mode=False);"
        "sys.exit(', '.join({'torch', 'diffusers', 'matplotlib', 'pydantic'} & set(sys.modules)) or 0)"
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


def test_a_failed_run_is_logged_and_gives_the_folder_back(recipe, tmp_path, monkeypatch):
    def half(recipe, run):
        run.unit("echo", lambda: recipe.text)
        raise FewstepError("died")

    monkeypatch.setattr(f"{__name__}.echo", half)
    call("run", recipe, "--out", tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", "finished", "stopped"]
    monkeypatch.undo()
    assert call("run", recipe, "--out", tmp_path / "out").exit_code == 0


def test_plan_import_show_export_round_trip(tmp_path):
    scheduler = DPMSolverMultistepScheduler()
    scheduler.save_pretrained(tmp_path / "pipe" / "scheduler")
    plan, again = tmp_path / "plan.json", tmp_path / "again.json"
    assert call("plan", "import", tmp_path / "pipe", "--steps", 5, "--out", plan).exit_code == 0
    assert Plan.load(plan) == plan_of_scheduler(scheduler, 5)

    shown = call("plan", "show", plan)
    assert shown.exit_code == 0
    assert "5 steps, epsilon" in shown.output
    assert Plan.load(plan).to_dict() == json.loads(call("plan", "show", plan, "--json").output)

    assert call("plan", "export", plan, tmp_path / "exported").exit_code == 0
    assert PlanScheduler.from_pretrained(tmp_path / "exported").plan == Plan.load(plan)
    assert call("plan", "import", tmp_path / "exported", "--steps", 5, "--out", again).exit_code == 0
    assert Plan.load(again) == Plan.load(plan)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_plan_is_shown_with_every_digit_at_every_width(width, tmp_path, monkeypatch):
    plan = plan_of_scheduler(DPMSolverMultistepScheduler(solver_order=3), 6)
    plan.save(tmp_path / "plan.json")
    monkeypatch.setenv("COLUMNS", str(width))
    shown = call("plan", "show", tmp_path / "plan.json").output
    assert max(map(len, shown.splitlines())) <= max(width, 60)
    for row in plan.rows:
        for value in (*row.state.values(), *row.output.values()):
            assert f"{float(value):+.4f}" in shown
        assert f"{float(row.sigma):.4f}" in shown
    assert "…" not in shown


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "cp1252", "utf-8"])
def test_streams_without_unicode_get_everything_spelled_out(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    spell_out(stream)
    stream.write("α² ≥ σ …│é☃")
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)
    if encoding == "utf-8":
        assert shown == "α² ≥ σ …│é☃"
    else:
        assert shown.startswith("alpha")
        assert "sigma" in shown
        assert shown.endswith("?")


def ascii_command(*words):
    """As with PYTHONIOENCODING=ascii."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii", errors="strict")
    command(*words)


def test_a_plan_is_shown_on_a_terminal_that_knows_ascii_alone(tmp_path):
    plan_of_scheduler(DPMSolverMultistepScheduler(), 3).save(tmp_path / "plan.json")
    done = processes.start(ascii_command, "plan", "show", tmp_path / "plan.json", out=tmp_path / "told.txt")
    done.join()
    shown = (tmp_path / "told.txt").read_bytes()
    assert done.exitcode == 0, shown
    assert "alpha" in shown.decode("ascii")


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
    found = "\n".join(warnings(versions, machine, free=0.5))
    for word in ("pip install -U 'torch>=2.6'", "pip install 'diffusers>=0.42'", "OMP_NUM_THREADS=2", "0.5 GB"):
        assert word in found
    assert "transformers" not in found


def test_what_others_wrote_is_refused_and_what_we_wrote_needs_a_word(tmp_path):
    DPMSolverMultistepScheduler().save_pretrained(tmp_path / "scheduler")
    plan = tmp_path / "plan.json"
    make = ["plan", "import", tmp_path / "scheduler", "--steps", 4, "--out", plan]
    assert call(*make).exit_code == 0
    again = call(*make)
    assert (again.exit_code, "--overwrite" in again.output) == (2, True)
    assert call(*make, "--overwrite").exit_code == 0

    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years of work")
    for flags in ([], ["--overwrite"]):
        assert call("plan", "export", plan, thesis, *flags).exit_code == 2
        assert call("plan", "export", plan, tmp_path / "scheduler", *flags).exit_code == 2  # diffusers wrote it
    assert [p.name for p in thesis.iterdir()] == ["chapter.tex"]
    assert call("plan", "export", plan, tmp_path / "ours").exit_code == 0
    assert call("plan", "export", plan, tmp_path / "ours", "--overwrite").exit_code == 0

    (tmp_path / "weights.safetensors").write_bytes(b"the user's")
    spread = Plan.load(plan).scaled(torch.rand(4, 4, 1, 1), [1.0] * 4)
    with pytest.raises(FewstepError, match=r"weights\.safetensors"):
        spread.save(tmp_path / "weights.json")
    assert not (tmp_path / "weights.json").exists()
    spread.save(tmp_path / "spread.json")
    spread.save(tmp_path / "spread.json", overwrite=True)


@pytest.mark.parametrize("name", ["cat.bmp", "cat", "photo.png"])
def test_a_picture_is_refused_before_it_is_drawn(tmp_path, name):
    (tmp_path / "photo.png").write_bytes(b"\x89PNG of my own")
    shown = call("generate", "--model", tmp_path / "no-such-model", "--prompt", "cat", "--out", tmp_path / name)
    assert shown.exit_code == 2
    assert name in shown.output.replace("\n", "")
    assert "cannot open the pipeline" not in shown.output


def test_a_mistyped_model_leaves_nothing_behind(tmp_path):
    shown = call("inspect", tmp_path / "emoji-techer", "--out", tmp_path / "runs" / "mine")
    assert shown.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_anywhere_is_one_message(recipe, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "scores.jsonl")

    monkeypatch.setattr(f"{__name__}.echo", full)
    monkeypatch.delenv("FEWSTEP_DEBUG", raising=False)
    shown = call("run", recipe, "--out", tmp_path / "out")
    assert shown.exit_code == 2
    assert "scores.jsonl" in shown.output
    assert "No space left" in shown.output


class Wait(Recipe):
    pass


def wait(recipe, run):
    run.unit("first", lambda: 1)
    (run.path.parent / "reached").touch()
    time.sleep(60)


register("wait", f"{__name__}:Wait", f"{__name__}:wait")


def command(*words):
    """The command, in a process of its own."""
    # a shell that starts the tests in the background lets them ignore the interrupt, and what they start as well
    signal.signal(signal.SIGINT, signal.default_int_handler)
    app([str(word) for word in words])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_request_to_end_is_answered_as_ctrl_c_is(tmp_path, number, code):
    (tmp_path / "wait.yaml").write_text("kind: wait\n")
    out = tmp_path / "out"
    process = processes.start(command, "run", tmp_path / "wait.yaml", "--out", out, out=tmp_path / "told.txt")
    while not (tmp_path / "reached").exists():
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.join()
    said = (tmp_path / "told.txt").read_text()
    assert process.exitcode == code
    assert "The same command goes on" in said
    assert "Traceback" not in said
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["event"] == "stopped"
    assert not (out / "owner.json").exists()


def test_paths_and_files_as_people_have_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "echo.yaml").write_bytes("kind: echo\n".encode(encoding))
        assert call("run", "~/echo.yaml", "--out", f"~/out-{encoding}").exit_code == 0
        assert (tmp_path / f"out-{encoding}" / "recipe.yaml").exists()
    (tmp_path / "prompts.txt").write_bytes("a cat\na dog\n".encode("utf-8-sig"))
    assert load_prompts("~/prompts.txt") == ["a cat", "a dog"]
    for word in ("echo\0.yaml", "echo.yaml\0"):
        assert call("run", word, "--out", tmp_path / "no").exit_code == 2
    assert call("run", tmp_path / "echo.yaml", "--out", f"{tmp_path}/o\0ut").exit_code == 2
    assert call("plan", "show", f"{tmp_path}/o\0ut").exit_code == 2
