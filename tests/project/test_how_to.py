"""The Python of the pages for users runs as it is printed, from the first line of a page to its last."""

import re

import pytest

from fewstep.jobs.q_sched import objective
from tests import ROOT

BLOCK = re.compile(r"(<!-- not run by the tests: .* -->\n)?```python\n(.*?)```", flags=re.DOTALL)
PAGES = {
    page: [code for skip, code in BLOCK.findall(page.read_text(encoding="utf-8")) if not skip]
    for page in [ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
}


LONG = {"tune"}  # the main job, which test_demo runs too


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=pytest.mark.thorough if page.stem in LONG else ())
        for page, code in PAGES.items()
        if code
    ],
)
def test_the_python_of_a_page_runs_as_it_is_printed(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(objective, "REFERENCE", 16)  # pictures of the teacher, which take longest
    exec(compile("\n".join(PAGES[page]), page.name, "exec"), {})
    assert "object at 0x" not in capsys.readouterr().out
