"""Small packages as an installer leaves them: modules, and a `dist-info` folder with entry points."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent

import pytest

from fewstep.alignment.presets import ALIGNMENTS
from fewstep.distillation.method import PRESETS
from fewstep.metrics import FEATURES
from fewstep.pipelines.places import PIPELINES
from fewstep.quant.methods import METHODS as ROUNDING
from fewstep.rewards import REWARDS
from fewstep.schedules import METHODS
from fewstep.schedules.tuning import SEARCHERS
from fewstep.solvers.registry import KNOWN

REGISTRIES = (REWARDS, FEATURES, KNOWN, PRESETS, ALIGNMENTS, METHODS, SEARCHERS, ROUNDING, PIPELINES)


class Installer:
    """Writes packages into one folder of the import path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, name: str, code: str, version: str = "1.0", **groups: dict[str, str]) -> None:
        """A package of one module; groups: the last part of a group's name -> name -> place of the object."""
        (self.folder / f"{name}.py").write_text(dedent(code))
        info = self.folder / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        sections = (f"[fewstep.{g}]\n" + "".join(f"{k} = {v}\n" for k, v in e.items()) for g, e in groups.items())
        (info / "entry_points.txt").write_text("\n".join(sections))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """The installer; what it installed is gone after the test, from every table too."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    for table in REGISTRIES:
        monkeypatch.setattr(table, "own", {name: table[name] for name in table})
        monkeypatch.setattr(table, "brought", set(table.brought))
    yield Installer(folder)
    for name in [name for name, module in sys.modules.items() if str(folder) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]
