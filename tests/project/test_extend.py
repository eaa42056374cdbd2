"""The examples of docs/extend run as they are printed, are short, and show what they say."""

import re
import runpy

import pytest
import torch

from fewstep.distillation import method
from fewstep.metrics import FEATURES
from fewstep.rewards import REWARDS
from fewstep.solvers.registry import KNOWN
from tests import ROOT

FOLDER = ROOT / "docs" / "extend"


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """What an example registers is forgotten after it."""
    for table in (KNOWN, method.PRESETS, REWARDS, FEATURES):
        monkeypatch.setattr(table, "own", {name: table[name] for name in table})


@pytest.fixture
def said(capsys):
    """What an example prints, by its name."""

    def run(name):
        torch.manual_seed(0)
        runpy.run_path(str(FOLDER / f"{name}.py"))
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda f: f.stem)
def test_an_example_fits_on_a_screen_and_stands_on_the_page(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 40
    assert f"docs/extend/{file.name}" in (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")


def test_the_solver_is_of_the_order_that_it_states(said):
    first, second = (float(x) for x in re.findall(r"by ([\d.]+) and ([\d.]+)", said("solver"))[0])
    assert first == pytest.approx(4, rel=0.15)
    assert second == pytest.approx(4, rel=0.15)


def test_the_method_trains_a_student(said):
    before, after = (float(x) for x in re.findall(r"update (\d+), after 60 (\d+)", said("method"))[0])
    assert after < before / 20


def test_the_reward_prefers_the_symmetric_picture(said):
    mirrored, inverted = (float(x) for x in re.findall(r"[\d.]+", said("reward"))[:2])
    assert mirrored == 1
    assert inverted < 0.7


def test_the_features_see_blur(said):
    sharp, blurred = (float(x) for x in re.findall(r"'frechet:edges': ([\d.]+)", said("features")))
    assert blurred > 20 * sharp


def test_the_family_is_read_and_follows_another_plan(said):
    assert said("family").split() == ["VPDiscrete", "epsilon", "10", "->", "4", "(2,", "3,", "8,", "8)"]
