"""A method written out names every part that was given, and only those."""

import pytest
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.distillation.method import method, options_of, presets
from fewstep.distillation.outline import outline
from fewstep.process import RectifiedFlow


@pytest.mark.parametrize("name", presets())
def test_every_method_is_written_without_addresses_of_objects(name):
    written = outline(method(name, RectifiedFlow()))
    assert written.startswith("terms:")
    assert " at 0x" not in written
    assert max(map(len, written.splitlines())) < 110


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("tdm", {"overlap": True}, "times: last_interval(whole=True)"),
        ("dmd2", {"ratio": 3}, "tracking: UpdateRule(ratio=3)"),
        ("lcm", {"decay": 0.5}, "target: TargetNetwork(decay=0.5)"),
    ],
)
def test_an_option_changes_its_line(name, change, line):
    assert next(iter(change)) in options_of(name)
    assert line not in outline(method(name, RectifiedFlow()))
    assert line in outline(method(name, RectifiedFlow(), **change))


def test_the_command_line_shows_a_method_with_its_overrides():
    shown = CliRunner().invoke(app, ["distill", "tdm", "--show", "--steps", "2", "--set", "options.overlap=true"])
    assert shown.exit_code == 0, shown.output
    assert "times: (1, 0.5)" in shown.output
    assert "last_interval(whole=True)" in shown.output
