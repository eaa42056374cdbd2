"""`fewstep restore` and `fewstep upscale`: a folder of any pictures, and what cannot be restored."""

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
    folder = tmp_path_factory.mktemp("pixels")
    save_pipeline(tiny.unconditional(folder), folder / "model")
    return folder / "model"


@pytest.fixture
def pictures(tmp_path):
    """A grey one of 16 bits, one with transparency, one of odd size, one that is broken."""
    rng, folder = np.random.default_rng(0), tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(rng.integers(0, 65536, (6, 8), dtype=np.uint16)).save(folder / "deep.png")
    Image.fromarray(rng.integers(0, 256, (6, 8, 4), dtype=np.uint8)).save(folder / "clear.png")
    Image.fromarray(rng.integers(0, 256, (5, 3, 3), dtype=np.uint8)).save(folder / "odd.jpg")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_a_folder_is_enlarged_and_what_fails_is_listed(model, pictures, tmp_path):
    out = tmp_path / "out"
    options = ("--model", model, "--factor", 2, "--steps", 2, "--rule", "ddnm", "--out", out)
    done = call("upscale", pictures, *options, "--report")
    assert done.exit_code == 1, done.output
    assert "3 of 4" in done.output
    assert "broken.png" in done.output
    found = {file.name: Image.open(file) for file in out.glob("*.???") if file.suffix != ".html"}
    assert {name: picture.size for name, picture in found.items()} == {
        "deep.png": (16, 12),
        "clear.png": (16, 12),
        "odd.jpg": (6, 10),
    }
    assert found["deep.png"].mode.startswith("I")
    assert found["clear.png"].mode == "RGBA"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "20 steps" in page
    assert "spread of 4 draws" in page
    # what stands there stays, unless asked, and the measurement is kept: the small picture comes back
    assert "0 of 4" in call("upscale", pictures, *options).output
    assert "3 of 4" in call("upscale", pictures, *options, "--overwrite").output


def test_restoring_one_picture_draws_what_the_mask_does_not_know(model, pictures, tmp_path):
    mask = np.full((6, 8), 255, dtype=np.uint8)
    mask[2:4, 2:5] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    source = pictures / "clear.png"
    done = call("restore", source, "--model", model, "--operator", "inpainting", "--mask", tmp_path / "mask.png",
                "--rule", "ddnm", "--out", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    before, after = (np.asarray(Image.open(place)).astype(int) for place in (source, tmp_path / "out" / "clear.png"))
    assert np.abs(before - after)[mask > 0].max() <= 1
    assert np.abs(before - after)[mask == 0].max() > 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--operator", "blurr:1"], "unknown operator"),
        (["--operator", "denoise", "--rule", "magic"], "unknown guidance"),
        (["--operator", "denoise", "--model", "mnist-dit"], "does not restore"),
    ],
)
def test_what_cannot_be_done_is_said(options, says, model, pictures):
    given = options if "--model" in options else [*options, "--model", model]
    done = call("restore", pictures, *given)
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
