"""`fewstep generate` for every kind of pipeline: labels, negative prompts, sizes, videos, and what does not fit."""

import pytest
from PIL import Image
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.pipelines import save_pipeline
from tests.pipelines import tiny_pipelines as tiny


def call(*arguments):
    return CliRunner().invoke(app, ["generate", *map(str, arguments)])


def opened(file):
    with Image.open(file) as picture:
        picture.load()
        return picture.copy(), getattr(picture, "n_frames", 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")

    def made(kind):
        if not (folder / kind).exists():
            save_pipeline(tiny.MAKERS[kind](folder / f"parts-{kind}"), folder / kind)
        return folder / kind

    (folder / "parts-sd").mkdir()
    (folder / "parts-wan").mkdir()
    (folder / "parts-ddim").mkdir()
    return made


def test_class_labels_by_number_and_name(tmp_path):
    for name, label in (("a.png", "3"), ("b.png", "digit 3"), ("c.png", "7")):
        done = call("--model", "mnist-dit", "--label", label, "--steps", 2, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
    a, b, c = (opened(tmp_path / f"{name}.png")[0].tobytes() for name in "abc")
    assert a == b != c


def test_negative_prompt_and_size_reach_the_pipeline(models, tmp_path):
    common = ["--model", models("sd"), "-p", "a cat", "-p", "b dog", "--guidance", 5, "--steps", 2]
    for name, more in (("a", []), ("b", ["--negative-prompt", "c fox"])):
        done = call(*common, *more, "--height", 16, "--width", 24, "--out", tmp_path / f"{name}.png")
        assert done.exit_code == 0, done.output
    a, b = (opened(tmp_path / f"{name}.png")[0] for name in "ab")
    assert a.size == (24, 16 + 2 + 16)
    assert a.tobytes() != b.tobytes()


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_videos_move(models, ending, tmp_path):
    out = tmp_path / f"clip.{ending}"
    settings = [a for key, value in tiny.CALLS["wan"].items() for a in ("--set", f"{key}={value}")]
    done = call("--model", models("wan"), "-p", "a cat", "--steps", 2, *settings, "--out", out)
    assert done.exit_code == 0, done.output
    _, frames = opened(out)
    assert frames > 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--model", "mnist-dit", "-p", "three"], "--label"),
        (["--model", "mnist-dit", "--label", "10"], "0 to 9"),
        (["--model", "mnist-dit", "--label", "3", "--height", "8"], "height"),
        (["-p", "cat", "--label", "3"], "--label"),
        ([], "--prompt"),
        (["-p", "cat", "--negative-prompt", "dog"], "guidance"),
        (["-p", "cat", "--zoom", "100000"], "zoom"),
        (["-p", "cat", "--out", "cat.mp4"], ".gif"),
        (["-p", "cat", "--out", "cat.gif"], ".png"),
        (["-p", "cat", "--set", "steps"], "KEY=VALUE"),
    ],
)
def test_what_does_not_fit_is_told(arguments, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.exit_code == 2, done.output
    assert word in " ".join(done.output.split())
    assert not list(tmp_path.iterdir())


def test_a_sheet_that_is_too_large_is_refused():
    import torch

    from fewstep.errors import FewstepError
    from fewstep.report.images import image_grid

    with pytest.raises(FewstepError, match="zoom 100000"):
        image_grid(torch.zeros(1, 3, 8, 8), zoom=100_000)
