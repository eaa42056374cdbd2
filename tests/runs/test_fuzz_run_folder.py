"""What hand editing, half a copy or malice make of a run folder is a clean refusal, or a run that goes on."""

import json

import pytest

from fewstep.errors import FewstepError
from fewstep.ownership import MARKER
from fewstep.runs import Run
from fewstep.runs.records import read_record
from tests.fuzzing import damaged, mutations, refuses_cleanly

RECIPE = {"kind": "squares", "search": {"steps": 4, "seed": 0, "times": [1.5, 0.5]}, "model": "emoji", "about": "é"}


def work(folder):
    with Run(folder, RECIPE, quiet=True) as run:
        value = run.unit("one/a", lambda: {"k": 3, "list": [1.0, 2.0]})
        text = run.unit("two", lambda: "b", save=lambda v, p: p.write_text(v), load=lambda p: p.read_text())
        assert run.seconds().keys() == {"one/a", "two"}
        run.log("looked")
        assert all(isinstance(event["event"], str) for event in run.events())
        return value, text


@pytest.fixture(autouse=True)
def known_environment(monkeypatch):
    """Asking git takes longer than all else."""
    monkeypatch.setattr("fewstep.runs.run.environment", lambda: {"fewstep": "0.1"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("run") / "run"
    work(place)
    return place


COUNTS = [pytest.param(1, id="short"), pytest.param(20, id="long", marks=pytest.mark.thorough)]


@pytest.mark.parametrize("times", COUNTS)
def test_a_mutated_record_is_refused_or_is_the_one_that_was_written(folder, tmp_path, times):
    file = folder / "units" / "one" / "a.json"
    whole = file.read_bytes()
    wanted, changed = json.loads(whole), tmp_path / "a.json"

    def same():
        found = refuses_cleanly(lambda: read_record(changed))
        assert found is None or (found["value"], found["seconds"]) == (wanted["value"], wanted["seconds"])
        return found is not None

    kept = 0
    for document in mutations(wanted, 500 * times):
        changed.write_text(json.dumps(document, default=str))
        if "digest" in document:  # one of an older version cannot be checked
            kept += same()
        else:
            refuses_cleanly(lambda: read_record(changed))
    for data in damaged(whole, 500 * times):
        changed.write_bytes(data)
        if b'"digest"' in data:
            kept += same()
    assert kept < 100 * times


@pytest.mark.parametrize("times", COUNTS)
@pytest.mark.parametrize("name", ["recipe.yaml", "log.jsonl", "owner.json", "run.lock", MARKER, "units/two.json"])
def test_a_damaged_folder_is_refused_or_goes_on_with_what_it_had(folder, times, name):
    file = folder / name
    whole = file.read_bytes() if file.exists() else b'{"process": 12}\n'
    before = work(folder)
    files = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    for data in damaged(whole or b"\n", 60 * times):
        file.write_bytes(data)
        assert refuses_cleanly(lambda: work(folder)) in (None, before)
        for kept, content in files.items():
            if kept != file:
                if kept.name not in ("log.jsonl", "owner.json"):
                    assert kept.read_bytes() == content
                else:
                    kept.write_bytes(content)
        file.write_bytes(files[file]) if file in files else file.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1, 1]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "[" * 5000, "!!python/object/apply:os.system ['true']",
        "a: 1\n? [x, y]\n: 2\n", "2001-01-01", "a: " + "9" * 5000, "\t", "a: .nan\nb: .inf", "- 1\n- 2\n",
    ],
)  # fmt: skip
def test_yaml_that_is_no_recipe_of_ours(tmp_path, text):
    work(tmp_path)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(FewstepError):
        work(tmp_path)


def test_parts_of_another_kind(tmp_path):
    for name in ("log.jsonl", "recipe.yaml", "owner.json", "run.lock", "units", "artifacts"):
        place = tmp_path / name.replace(".", "-")
        work(place)
        part = place / name
        if part.is_dir():
            part.rename(place / "away")
            part.write_text("a file")
        else:
            part.unlink(missing_ok=True)
            part.mkdir()
            (part / "inner").write_text("a folder")
        with pytest.raises(FewstepError):
            work(place)
