"""Files and folders that fewstep did not write are never replaced, by whatever writes to a path."""

import json

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.files import (
    atomic,
    check_free,
    read_json,
    read_tensors,
    read_text,
    user_path,
    write_folder,
    write_json,
    write_tensors,
    write_text,
)
from fewstep.ownership import MARKER


def fill(folder):
    (folder / "inner").mkdir()
    (folder / "inner" / "weights").write_text("w")
    (folder / "config.json").write_text("{}")


def test_a_folder_of_the_users_is_not_replaced(tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years")
    for over in ("nothing", "ours"):
        with pytest.raises(FewstepError, match=r"did not write it.*chapter\.tex"):
            write_folder(thesis, fill, over)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]
    assert (thesis / "chapter.tex").read_text() == "years"


def test_our_own_folder_is_replaced_when_asked_unless_a_strangers_file_lies_in_it(tmp_path):
    place = tmp_path / "pipeline"
    write_folder(place, fill)
    assert json.loads((place / MARKER).read_text())["files"] == {"config.json": 2, "inner/weights": 1}
    with pytest.raises(FewstepError, match="--overwrite"):
        write_folder(place, fill, "nothing")
    write_folder(place, lambda draft: (draft / "other").write_text("o"), "ours")
    assert sorted(p.name for p in place.iterdir()) == [MARKER, "other"]
    (place / ".DS_Store").write_text("dust")
    write_folder(place, fill, "ours")
    write_folder(place / "inner", lambda draft: (draft / "other").write_text("o"), "ours")  # a part of it
    write_folder(place, fill, "ours")
    (place / "config.json").write_text("changed by the user")
    with pytest.raises(FewstepError, match=r"config\.json"):
        write_folder(place, fill, "ours")
    (place / "config.json").unlink()
    (place / "inner" / "notes.txt").write_text("mine")
    with pytest.raises(FewstepError, match=r"inner/notes\.txt"):
        write_folder(place, fill, "ours")
    (place / "inner" / "notes.txt").unlink()
    (place / "inner" / "linked").symlink_to(tmp_path)
    with pytest.raises(FewstepError, match="inner/linked"):
        write_folder(place, fill, "ours")


@pytest.mark.parametrize(
    "content",
    [b"text", b"{}", b'{"a": {"fewstep": 1}}', b'["fewstep"]', b"{", b"\x89PNG", b"<html></html>", b"[" * 100_000,
     b"\xff" * 8 + b"{", (9).to_bytes(8, "little") + b'{"a": 1}}'],
)  # fmt: skip
def test_a_file_of_the_users_is_not_replaced(tmp_path, content):
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(FewstepError, match="did not write it"):
        write_text(file, "ours")
    assert file.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_our_own_files_are_known(tmp_path):
    write_json(tmp_path / "a", {"environment": {"fewstep": "0.1"}})
    write_json(tmp_path / "b", {"fewstep_plan": 1})
    write_tensors(tmp_path / "c", {"x": torch.ones(2)})
    write_tensors(tmp_path / "d", {"x": torch.ones(2)}, {"other": "metadata"})
    for name in "abcd":
        with pytest.raises(FewstepError, match="exists"):
            check_free(tmp_path / name)
        check_free(tmp_path / name, overwrite=True)
        write_text(tmp_path / name, "new")


def test_empty_places_hold_nothing_to_lose(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    write_text(tmp_path / "file", "a", "nothing")
    write_folder(tmp_path / "folder", fill, "nothing")
    assert (tmp_path / "file").read_text() == "a"


def test_links_are_followed_and_special_files_stay(tmp_path):
    write_json(tmp_path / "real.json", {"fewstep": 1})
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_json(tmp_path / "link.json", {"fewstep": 2})
    assert (tmp_path / "link.json").is_symlink()
    assert read_json(tmp_path / "real.json") == {"fewstep": 2}
    with pytest.raises(FewstepError, match="did not write"):
        write_text("/dev/null", "x")


def test_a_file_does_not_take_the_place_of_a_folder_of_ours(tmp_path):
    write_folder(tmp_path / "pipeline", fill)
    with pytest.raises(FewstepError, match="folder"):
        write_json(tmp_path / "pipeline", {"fewstep_plan": 1})
    assert (tmp_path / "pipeline" / "config.json").exists()


def test_a_failed_write_takes_back_the_folders_it_made(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "a" / "b" / "c"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


class RustError(Exception):
    """As the writers of tokenizers and safetensors raise, which is no OSError."""


def test_what_the_system_refuses_is_told_whatever_library_tells_it(tmp_path):
    def half(draft):
        (draft / "weights").write_text("half")
        raise RustError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(FewstepError, match="cannot write .*No space left on device"):
        write_folder(tmp_path / "a", half)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_names_that_no_file_can_have(tmp_path, name):
    for use in (read_json, read_text, read_tensors, check_free, lambda p: write_json(p, {})):
        with pytest.raises(FewstepError):
            use(f"{tmp_path}/{name}")


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_json("~/a.json", {"fewstep": 1})
    assert read_json("~/a.json") == {"fewstep": 1}
    assert (tmp_path / "a.json").exists()
    assert str(user_path("~no-such-user-here/a")) == "~no-such-user-here/a"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_any_editor(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes('{"é": 1}'.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"é": 1}


def test_text_that_is_none_and_numbers_that_are_too_long(tmp_path):
    (tmp_path / "a").write_bytes(b'{"a": "\xe9"}')
    (tmp_path / "b").write_text("[" + "9" * 5000 + "]")
    for name in "ab":
        with pytest.raises(FewstepError):
            read_json(tmp_path / name)
    write_json(tmp_path / "c", {"lone": "\ud800"})
    assert read_json(tmp_path / "c") == {"lone": "\ud800"}
