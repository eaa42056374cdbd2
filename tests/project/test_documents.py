"""The documents say what the code does: their commands parse, their Python compiles, their files exist."""

import ast
import json
import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from typer.main import get_command

from fewstep.cli import app
from fewstep.distillation.method import method
from fewstep.errors import FewstepError
from fewstep.plan import Plan
from fewstep.process import RectifiedFlow
from fewstep.recipes.loader import resolve
from tests import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/fewstep/**/README.md")])
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="tests run outside of a checkout")


def commands():
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            found = re.match(r"(?:\$ )?(?:\.venv/bin/)?(fewstep (?!--).*?)(?:\s+#.*|\s+->.*)?$", line)
            if found:
                yield pytest.param(found[1], id=f"{page.name}: {found[1]}")


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_documents_parse(command):
    _, *arguments = shlex.split(command)
    group = get_command(app)
    context = group.make_context("fewstep", arguments)
    while hasattr(group, "commands"):
        name, group, arguments = group.resolve_command(context, arguments)
        context = group.make_context(name, list(arguments), parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere_and_python_compiles(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        ast.parse(code)


def test_the_python_of_the_readme_runs_as_it_is_printed_and_says_what_stands_below_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code, promised = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, flags=re.DOTALL).groups()
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) <= 10
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert tuple(names["small"].shape) == (8, 3, 64, 64)
    assert 0 <= float(names["small"].min()) < float(names["small"].max()) <= 1
    number = r"[\d,]*\.?\d+"
    said = capsys.readouterr().out
    assert re.sub(number, "N", said) == re.sub(number, "N", promised)
    found, shown = ([float(n.replace(",", "")) for n in re.findall(number, each)] for each in (said, promised))
    assert found == pytest.approx(shown, rel=0.05)  # rounding differs between processors


def test_the_readme_fits_on_a_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150


def test_the_plan_in_the_documents_is_a_plan():
    text = (ROOT / "docs" / "plan-file.md").read_text(encoding="utf-8")
    written = json.loads(re.search(r"```json\n(.*?)```", text, flags=re.DOTALL)[1])
    assert Plan.from_dict(written).to_dict() == written
    for key in written:
        assert f"`{key}" in text
    with pytest.raises(FewstepError, match="steps"):
        Plan.from_dict({**written, "steps": 2})


def test_every_folder_of_the_package_says_what_it_is():
    silent = [
        folder.relative_to(ROOT).as_posix()
        for folder in (ROOT / "src" / "fewstep").iterdir()
        if (folder / "__init__.py").exists() and not (folder / "README.md").exists()
    ]
    assert silent == []


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_names_the_mend_when_no_python_fits(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    command = ["make", "-C", str(tmp_path), "demo", "CANDIDATES=no-such-python"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Python >= 3.10" in done.stderr
    assert "PYTHON=" in done.stderr
    assert not (tmp_path / ".venv").exists()


def recipes():
    for page in PAGES:
        for k, text in enumerate(re.findall(r"```yaml\n(kind: distill\n.*?)```", page.read_text("utf-8"), re.DOTALL)):
            yield pytest.param(text, id=f"{page.name}-{k}")


@pytest.mark.parametrize("text", recipes())
def test_recipes_of_the_pages_are_methods_that_fit_their_trainings(text):
    recipe = resolve(yaml.safe_load(text))
    made = method(recipe.method, RectifiedFlow(), **recipe.method_options())
    assert made.updates <= recipe.train.steps
