"""What is added to a library when it is imported; tests/project/test_fresh_interpreter.py opens what that is for."""

import importlib.machinery
import sys

import pytest

from fewstep.registration import ImportWatcher


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """A library that keeps a list, and a package that adds to it when the library is imported."""
    (tmp_path / "a_library.py").write_text("METHODS = []\n")
    (tmp_path / "an_addition.py").write_text("import a_library\n\na_library.METHODS.append(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [ImportWatcher({"a_library": "an_addition"}), *sys.meta_path])
    yield
    for name in ("a_library", "an_addition"):
        sys.modules.pop(name, None)


def test_the_addition_comes_once_after_the_import_and_also_after_a_failed_one(modules, tmp_path):
    text = (tmp_path / "a_library.py").read_text()
    (tmp_path / "a_library.py").write_text("raise OSError('half there')")
    with pytest.raises(OSError, match="half there"):
        import a_library
    (tmp_path / "a_library.py").write_text(text + "# another size: Python keeps compiled files by size and second\n")
    importlib.invalidate_caches()
    import a_library

    assert a_library.METHODS == [1]
    assert isinstance(a_library.__spec__.loader, importlib.machinery.SourceFileLoader)
    assert "an_addition" in sys.modules
