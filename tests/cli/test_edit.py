"""`fewstep edit`: a folder of any pictures, a mask, a report, and what cannot be edited."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.pipelines import save_pipeline
from tests.pipelines import tiny_pipelines as tiny


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd")
    save_pipeline(tiny.stable_diffusion(folder), folder / "model")
    return folder / "model"


@pytest.fixture
def pictures(tmp_path):
    """A grey one of 16 bits, one with transparency, one of odd size, one that is broken."""
    rng, folder = np.random.default_rng(0), tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(rng.integers(0, 65536, (16, 16), dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)).save(folder / "clear.png")
    Image.fromarray(rng.integers(0, 256, (11, 19, 3), dtype=np.uint8)).save(folder / "odd.jpg")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_a_folder_is_edited_and_what_fails_is_listed(model, pictures, tmp_path):
    out = tmp_path / "out"
    options = ("--model", model, "--strength", 0.5, "--steps", 2, "--out", out)
    done = call("edit", pictures, "b dog", *options, "--report")
    assert done.exit_code == 1, done.output
    assert "3 of 4" in done.output
    assert "broken.png" in done.output
    found = {file.name: Image.open(file) for file in out.glob("*.???") if file.suffix != ".html"}
    assert {name: picture.size for name, picture in found.items()} == {
        "clear.png": (16, 16),
        "deep.png": (16, 16),
        "odd.jpg": (19, 11),
    }
    before = np.asarray(Image.open(pictures / "clear.png"))
    assert np.array_equal(np.asarray(found["clear.png"])[..., 3], before[..., 3])
    page = (out / "report.html").read_text(encoding="utf-8")
    for column in ("2 steps", "20 steps", "strength 1", "what changed"):
        assert column in page
    assert "0 of 4" in call("edit", pictures, "b dog", *options).output
    assert "3 of 4" in call("edit", pictures, "b dog", *options, "--overwrite").output


def test_zero_strength_and_the_mask_keep_pixels(model, pictures, tmp_path):
    source = pictures / "clear.png"
    before = np.asarray(Image.open(source)).astype(int)
    call("edit", source, "b dog", "--model", model, "--strength", 0, "--out", tmp_path / "same")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "same" / "clear.png")), before)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[2:9, 3:12] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    done = call("edit", source, "b dog", "--model", model, "--mask", tmp_path / "mask.png", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    after = np.asarray(Image.open(tmp_path / "out" / "clear.png")).astype(int)
    assert np.array_equal(after[mask == 0], before[mask == 0])
    assert np.abs(after - before)[mask > 0].max() > 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--strength", "0.1"], "less than one of 4 steps"),
        (["--strength", "1.5"], "between 0 and 1"),
        (["--model", "mnist-dit"], "does not edit"),
    ],
)
def test_what_cannot_be_done_is_said(options, says, model, pictures, tmp_path):
    given = options if "--model" in options else [*options, "--model", model]
    done = call("edit", pictures, "b dog", *given, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
