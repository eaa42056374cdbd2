"""What is imported when: looking at the package or at a help text loads no heavy library; all verbs stay callable."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import fewstep
from tests import ROOT, processes

HEAVY = {
    "torch", "diffusers", "transformers", "torchao", "accelerate", "peft", "numpy", "scipy", "sklearn", "optuna",
    "cmaes", "matplotlib", "PIL",
}  # fmt: skip

PACKAGE = """
import fewstep
dir(fewstep), fewstep.__all__, fewstep.__version__
"""
HELP = """
from typer.main import get_command
from typer.testing import CliRunner
from fewstep.cli import app

def shown(command, words):
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0, (words, done.output)
    for name, inner in getattr(command, "commands", {}).items():
        shown(inner, [*words, name])

shown(get_command(app), [])
"""


def output(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("code", "more"), [(PACKAGE, {"pydantic", "rich", "typer"}), (HELP, set())], ids=["package", "help"]
)
def test_no_heavy_library_is_loaded_by(code, more):
    loaded = output(code + "\nimport sys\nprint(*(name for name in sys.modules if '.' not in name))")
    assert (HEAVY | more) & set(loaded) == set()


def import_all_and_ask():
    missing = {}
    for found in pkgutil.walk_packages(fewstep.__path__, "fewstep."):
        if not found.name.endswith("__main__"):
            try:
                importlib.import_module(found.name)
            except ModuleNotFoundError as error:  # of an extra that is not installed
                missing[found.name] = error.name
    assert all(not (name or "fewstep").startswith("fewstep") for name in missing.values()), missing
    taken = [name for name in fewstep.__all__ if type(getattr(fewstep, name)) is type(fewstep)]
    assert not taken, f"a module of the same name hides them: {taken}"
    silent = [name for name in fewstep.__all__ if not callable(getattr(fewstep, name))]
    assert not silent, silent


def test_every_public_name_is_callable_whatever_is_imported(tmp_path):
    """`fewstep.schedules.tuning` could not be a function and a package: importing it would hide the function."""
    process = processes.start(import_all_and_ask, out=tmp_path / "told.txt")
    process.join()
    assert process.exitcode == 0, (tmp_path / "told.txt").read_text()


def test_tests_are_a_package_that_leaves_the_import_path_alone():
    """CONTRIBUTING.md, "Tests": each worker imports them by their full names, from the root of the checkout."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert [f.parent for f in files if not (f.parent / "__init__.py").exists()] == []
    trick = "sys" + ".path"
    assert [f.relative_to(ROOT).as_posix() for f in files if trick in f.read_text(encoding="utf-8")] == []
