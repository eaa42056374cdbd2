import os

import pytest
import torch
from typer.testing import CliRunner

from fewstep.cli.app import app
from fewstep.errors import FewstepError
from fewstep.report import ImageGrid, Page, save_page
from fewstep.report.index import index_page
from fewstep.runs import Run
from fewstep.runs.shown import REPORT, runs_in


@pytest.fixture
def runs(tmp_path):
    for k, name in enumerate(["first", "deep/second", "third"]):
        with Run(tmp_path / name, {"kind": f"kind-{k}"}, quiet=True) as run:
            run.unit("one", lambda: 1)
        if name != "third":
            picture = torch.full((3, 4, 4), k / 4)
            blocks = [ImageGrid("", [[picture]], ["cat"], ["float"])]
            save_page(Page(f"Title <{k}>", f"What <{k}> found.", blocks), tmp_path / name / REPORT)
        for file in (tmp_path / name / REPORT, tmp_path / name / "log.jsonl"):
            if file.exists():
                os.utime(file, (1e9 + k, 1e9 + k))
    (tmp_path / "first" / "artifacts").mkdir(exist_ok=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("kind: not ours")
    return tmp_path


def test_runs_are_listed_the_newest_first(runs):
    found = runs_in(runs)
    assert [(e.path.name, e.kind, e.finished) for e in found] == [
        ("third", "kind-2", False), ("second", "kind-1", True), ("first", "kind-0", True),
    ]  # fmt: skip
    assert [e.title for e in found[1:]] == ["Title <1>", "Title <0>"]
    assert found[1].summary == "What <1> found."
    assert found[1].picture.startswith("data:image/png")
    assert found[1].picture != found[2].picture
    assert "1 finished unit" in found[0].title
    assert not found[0].picture


def test_a_run_whose_recipe_is_broken_is_listed_all_the_same(runs):
    (runs / "third" / "recipe.yaml").write_text("[")
    assert {e.kind for e in runs_in(runs)} == {"unknown", "kind-0", "kind-1"}


def test_links_of_the_index_lead_to_the_reports(runs):
    (runs / "pages").mkdir()
    page = index_page(runs_in(runs), runs / "pages")
    addresses = [item[0] for item in page.blocks[0].items]
    assert addresses == ["../third", "../deep/second/report.html", "../first/report.html"]
    assert all((runs / "pages" / address).exists() for address in addresses)
    assert "2 finished" in page.summary


def test_the_command_writes_an_index_and_never_over_a_file_of_others(runs):
    result = CliRunner().invoke(app, ["runs", str(runs)])
    assert result.exit_code == 0
    assert "kind-1" in result.output
    text = (runs / "index.html").read_text()
    assert "Title &lt;1&gt;" in text
    assert "first/report.html" in text
    assert CliRunner().invoke(app, ["runs", str(runs)]).exit_code == 0  # again: ours
    (runs / "mine.html").write_text("<html>mine</html>")
    result = CliRunner().invoke(app, ["runs", str(runs), "--page", str(runs / "mine.html")])
    assert result.exit_code != 0
    assert (runs / "mine.html").read_text() == "<html>mine</html>"


def test_a_folder_without_runs_is_no_error_and_one_that_is_absent_is(tmp_path):
    assert "no runs" in CliRunner().invoke(app, ["runs", str(tmp_path)]).output
    with pytest.raises(FewstepError, match="no such folder"):
        runs_in(tmp_path / "absent")
