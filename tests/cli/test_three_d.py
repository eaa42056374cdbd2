"""`fewstep articulate`: a newcomer's mesh opens, and others' files stay."""

import json

import pytest
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.jobs import articulating
from fewstep.tasks.articulation import beliefs
from fewstep.tasks.articulation.objects import box

OUT = ("joint.json", "moving.glb", "motion.gif", "turntable.gif", "report.html")


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def cabinet(tmp_path_factory):
    """A body of centimetres with a door whose hinge is at the left of its front."""
    lines, count = [], 0
    for name, mesh in (("body", box((0, 0, 0), (60, 40, 90))), ("door", box((0, -3, 0), (60, 0, 90)))):
        lines += [f"o {name}", *(f"v {x} {y} {z}" for x, y, z in mesh.vertices.tolist())]
        lines += ["f " + " ".join(str(k + 1 + count) for k in face) for face in mesh.faces.tolist()]
        count += len(mesh.vertices)
    file = tmp_path_factory.mktemp("mesh") / "cabinet.obj"
    file.write_text("\n".join(lines))
    return file


@pytest.fixture
def small(monkeypatch):
    """Less furniture to compare with, and smaller pictures."""
    monkeypatch.setattr(beliefs, "PER_FAMILY", 8)
    monkeypatch.setattr(articulating, "SIDE", 32)
    monkeypatch.setattr(articulating, "TURN", 4)
    beliefs._library.cache_clear()
    yield
    beliefs._library.cache_clear()


def test_a_named_part_gets_a_joint_and_files_to_look_at(cabinet, tmp_path, small):
    out = tmp_path / "out"
    words = ("articulate", cabinet, "the door opens", "--part", "door", "--steps", 1, "--out", out)
    done = call(*words)
    assert done.exit_code == 0, done.output
    assert all((out / name).is_file() for name in OUT)
    joint = json.loads((out / "joint.json").read_text())
    assert joint["part"] == "door"
    assert joint["type"] in ("revolute", "prismatic")
    assert sum(x * x for x in joint["axis"]) == pytest.approx(1, rel=1e-4)
    assert "data:image/gif;base64," in (out / "report.html").read_text()
    assert "exists already" in " ".join(call(*words).output.split())
    (out / "mine.txt").write_text("notes")
    assert "did not write it" in " ".join(call(*words, "--overwrite").output.split())


def test_what_cannot_be_articulated_is_said_before_any_work(cabinet, tmp_path):
    missing = call("articulate", cabinet, "the door opens", "--part", "dor", "--out", tmp_path / "a")
    assert missing.exit_code == 2
    assert "no such part" in missing.output
    assert "door" in missing.output
    assert "up is y or z" in call("articulate", cabinet, "it opens", "--part", "door", "--up", "x").output
    assert not (tmp_path / "a").exists()
