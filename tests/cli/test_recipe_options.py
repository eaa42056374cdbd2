"""Options of commands are the fields of their recipes: same names, defaults, limits and words."""

import json

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from fewstep.cli import app, diagnose, distill, following, quantize, search, tune

GROUP = get_command(app)
COMMANDS = {
    "quantize": quantize.FIELDS,
    "tune": tune.FIELDS,
    "search": search.FIELDS,
    "distill": distill.FIELDS,
    "diagnose": diagnose.FIELDS,
}


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def resolved(*arguments):
    """The recipe that a command would run."""
    shown = call(*arguments, "--dry-run")
    assert shown.exit_code == 0, shown.output
    return yaml.safe_load(shown.stdout)


def field(schema, key):
    section, _, rest = key.partition(".")
    info = schema.model_fields[section]
    return field(info.annotation, rest) if rest else info


def parameters(name):
    command = GROUP.commands[name]
    return {p.name: p for p in command.get_params(command.context_class(command))}


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_are_those_of_the_recipe(name):
    found = parameters(name)
    for word, key in COMMANDS[name].keys.items():
        info = field(COMMANDS[name].schema(), key)
        if not found[word].required:
            default = info.get_default(call_default_factory=True)
            assert found[word].default == (",".join(map(str, default)) if isinstance(default, list) else default), key


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name):
    """A field without a description would be an option without help."""
    assert [word for word in COMMANDS[name].keys if len(parameters(name)[word].help) < 10] == []


def test_given_values_reach_their_fields():
    made = resolved(
        "quantize", "emoji-student", "--scheme", "w8a8", "--parts", "backbone, text", "--items", 4, "--per-step",
        "--method", "svdquant:8", "--guidance", 2,
    )  # fmt: skip
    assert (made["scheme"], made["parts"], made["per_step"], made["guidance"]) == (
        "w8a8", ["backbone", "text"], True, 2.0,
    )  # fmt: skip
    assert (made["calibration"]["items"], made["method"]) == (4, "svdquant:8")
    made = resolved("distill", "lcm", "--steps", 2, "--train-steps", 50, "--batch", 4, "--data", "mnist", "--seed", 7)
    assert (made["method"], made["steps"], made["data"]["source"]) == ("lcm", 2, "mnist")
    assert (made["train"]["steps"], made["train"]["batch"], made["train"]["seed"]) == (50, 4, 7)
    assert made["batch"] == 32  # of the pipeline's calls, another field
    made = resolved("tune", "emoji-student", "--blocks", "4,5", "--budget", 20, "--quality", "sharpness")
    assert (made["search"]["seeds"], made["search"]["budget"], made["scheme"]) == ([4, 5], 20, "w4a8")
    assert made["rewards"]["quality"] == "sharpness"
    made = resolved("search", "emoji-teacher", "--steps", 5, "--teacher-steps", 30, "--method", "gits")
    assert (made["steps"], made["teacher"]["steps"], made["search"]["method"]) == (5, 30, "gits")


def test_set_reaches_what_is_no_option_and_wins():
    made = resolved("quantize", "emoji-student", "--items", 4, "--set", "calibration.items=5", "--set", "vae=w4a16")
    assert (made["calibration"]["items"], made["vae"], made["scheme"]) == (5, "w4a16", "w4a8")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["quantize", "emoji-student", "--effective-bits", 33], "less than or equal to 32"),
        (["quantize", "emoji-student", "--parts", "backbone,txet"], "'text'"),
        (["quantize", "emoji-student", "--method", "gtpq"], "gptq"),
        (["search", "emoji-teacher", "--steps", 0], "greater than or equal to 1"),
        (["search", "emoji-teacher", "--method", "gist"], "gits"),
        (["search", "emoji-teacher", "--solver", "heun"], "unipc"),
        (["distill", "dmd3"], "'dmd'"),
        (["distill", "dmd2", "--learning-rate", 0], "greater than 0"),
    ],
)
def test_what_the_recipe_refuses_is_refused(arguments, word):
    shown = call(*arguments, "--dry-run")
    assert shown.exit_code == 2
    assert word in " ".join(shown.output.replace("│", " ").split())


def left(out, **index):
    folder = out / "artifacts" / "pipeline"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_what_follows_a_job_fits_what_it_left(tmp_path):
    text = left(tmp_path / "a b", tokenizer=["transformers", "CLIPTokenizer"])
    tune, generate = following.after("quantize", tmp_path / "a b")
    assert tune == f"fewstep tune '{text}'"
    assert generate.startswith(f"fewstep generate --model '{text}' --prompt")
    labels = left(tmp_path / "labels", id2label={"0": "zero"})
    assert following.after("quantize", tmp_path / "labels") == [f"fewstep generate --model {labels} --label 0"]
    plain = left(tmp_path / "plain", unet=["diffusers", "UNet2DModel"])
    assert following.after("distill", tmp_path / "plain")[0] == f"fewstep generate --model {plain}"
    assert following.after("distill", tmp_path) == []


@pytest.mark.parametrize(("before", "terminal", "shown"), [([], "1", 1), (["--quiet"], "1", 0), ([], "", 0)])
def test_the_next_command_is_for_people_at_a_terminal(before, terminal, shown, tmp_path, monkeypatch):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", terminal)  # rich then takes the stream for a terminal
    found = {"versions": {}, "machine": {}, "kernels": {}, "warnings": []}
    monkeypatch.setattr("fewstep.cli.doctor.examine", lambda: found)
    assert call(*before, "doctor").output.count("Next: fewstep demo") == shown


def test_former_names_work_and_say_the_new_one(tmp_path):
    shown = call("inspect", tmp_path / "nothing", "--out", tmp_path / "out")
    assert "fewstep diagnose" in shown.output
    assert shown.exit_code == 2
    assert "fewstep diagnose" not in call("diagnose", tmp_path / "nothing", "--out", tmp_path / "out").output
    listed = call("--help").output
    assert "diagnose" in listed
    assert "inspect " not in listed
