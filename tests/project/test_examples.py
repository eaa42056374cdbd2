"""The examples run as they stand, end with what they promise, and stay short."""

import re
import runpy
import sys

import pytest
from PIL import Image

from tests import ROOT
from tests.processes import start

EXAMPLES = ROOT / "examples"


def execute(name, folder):
    sys.argv = [name, folder]
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def shown(name, folder):
    """What an example prints."""
    file = folder / "shown.txt"
    process = start(execute, name, str(folder / "made"), out=file, HF_HUB_OFFLINE="1")
    process.join(250)
    text = file.read_text()
    assert process.exitcode == 0, text
    return text


def numbers(text, between=": "):
    """The first number of each line `name: ... number ...`, by name."""
    found = (line.partition(between) for line in text.splitlines())
    return {name: float(match[0]) for name, _, rest in found if (match := re.search(r"-?\d+\.\d+", rest))}


def picture(file):
    with Image.open(file) as image:
        assert len(image.convert("L").getcolors(1 << 24)) > 20
    return True


@pytest.mark.thorough  # its parts are those of test_search_job
def test_a_pipeline_is_replanned(tmp_path):
    text = shown("replan_pipeline", tmp_path)
    found = numbers(text)
    assert found["searched (GITS)"] < found["DPM-Solver++ 2M"] < found["its own scheduler"]
    assert "DiTPipeline with a plan of 6 steps" in text
    assert picture(tmp_path / "made" / "digits.png")


@pytest.mark.slow
@pytest.mark.thorough  # the main job, as test_demo runs it
def test_a_pipeline_is_quantized_and_tuned(tmp_path):
    found = numbers(shown("quantize_and_tune", tmp_path))
    assert found["2 bits"] < found["2 bits, tuned"] < found["full precision"]
    assert picture(tmp_path / "made" / "emoji.png")
    assert (tmp_path / "made" / "pipeline" / "model_index.json").is_file()


def test_an_own_network_is_distilled(tmp_path):
    found = numbers(shown("distil_own_network", tmp_path))
    assert found["student, 2 calls"] < found["teacher, 2 calls"] / 3
    assert found["real digits"] < found["student, 2 calls"]
    assert picture(tmp_path / "made" / "digits.png")
    assert (tmp_path / "made" / "student" / "plan.json").is_file()


def test_an_own_network_is_quantized(tmp_path):
    text = shown("quantize_own_network", tmp_path)
    found = numbers(text)
    assert found["8 bits, looked at"] < found["8 bits, blind"] / 3
    assert found["3 bits, tuned"] < found["3 bits"]
    assert text.count("outliers") == 1
    assert picture(tmp_path / "made" / "digits.png")


def test_a_solver_and_a_method_are_added(tmp_path):
    found = numbers(shown("add_solver_and_method", tmp_path))
    assert found["adams_bashforth, 12 calls"] < found["ddim, 12 calls"] / 1.5
    assert found["student, 1 call"] < found["teacher, 1 call"] / 10
    assert picture(tmp_path / "made" / "ring.png")


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_an_example_is_short_and_stands_alone(file):
    lines = file.read_text().splitlines()
    assert len([line for line in lines if line.strip()]) < 60
    assert not re.search(r"^(from|import) (tests|examples|benchmarks)", "\n".join(lines), re.M)
    assert f"python examples/{file.name} FOLDER" in lines[2]
