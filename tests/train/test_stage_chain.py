"""Every stage runs on the user's own pictures and leaves a folder that plain diffusers or transformers opens."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.files import read_json
from fewstep.train import run

SMALL = ["size=32", "steps=2", "batch=8", "warmup=0", "device=cpu"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Twelve coloured discs and squares with captions."""
    rng, images, captions = np.random.default_rng(0), [], []
    rows, columns = np.mgrid[:32, :32] - 15.5
    for index in range(12):
        inside = np.hypot(rows, columns) < 10 if index % 2 else np.maximum(abs(rows), abs(columns)) < 9
        image = np.full((32, 32, 3), 255, np.uint8)
        image[inside] = rng.integers(0, 200, 3)
        images.append(image)
        captions.append(f"{'disc' if index % 2 else 'square'} number {index}")
    path = tmp_path_factory.mktemp("data") / "shapes.npz"
    np.savez(path, images=np.stack(images), captions=np.array(captions))
    return path


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    own = [f"data={pictures}", *SMALL]
    run("vae", [*own, "channels=[8,8,16]"], root / "vae")
    run("clip", [*own, "width=32", "layers=1", "text_width=16", "text_layers=1"], root / "clip")
    shape = ["channels=[16,32]", "text_width=16", "text_layers=1"]
    run("teacher", [*own, f"vae={root / 'vae'}", *shape], root / "teacher")
    run("student", [*own, f"teacher={root / 'teacher'}"], root / "student")
    run("quality", [*own, f"teacher={root / 'teacher'}", "generated=8"], root / "quality")
    return root


@pytest.mark.parametrize(("name", "steps"), [("teacher", 3), ("student", 2)])
def test_pipelines_open_in_plain_diffusers_and_draw(trained, name, steps):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(trained / name, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(["a disc", "square number 4"], num_inference_steps=steps, guidance_scale=2.0, output_type="pt").images
    assert out.shape == (2, 3, 32, 32)
    assert torch.isfinite(out).all()


def test_clip_opens_in_plain_transformers(trained):
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(trained / "clip", dtype=torch.float32)
    tokens = CLIPTokenizer.from_pretrained(trained / "clip")(["disc", "square"], padding=True, return_tensors="pt")
    out = model(pixel_values=torch.zeros(3, 3, 32, 32), **tokens)
    assert out.logits_per_image.shape == (3, 2)


def test_every_stage_says_what_it_did(trained):
    for name in ("vae", "clip", "teacher", "student", "quality"):
        record = read_json(trained / name / "training.json")
        assert record["stage"] == name
        assert record["steps"] == 2
        assert record["command"].startswith(f"fewstep train {name} --set data=")
        assert np.isfinite(record["losses"][-1]["loss"])
        assert not (trained / name / "result").exists()


def test_weights_are_half_precision(trained):
    from safetensors import safe_open

    for file in trained.rglob("*.safetensors"):
        if "checkpoint" in file.parts:
            continue
        with safe_open(file, "pt") as tensors:
            kinds = {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        assert kinds == {"F16"}, file


def test_a_missing_earlier_stage_is_named(pictures, tmp_path):
    with pytest.raises(FewstepError, match="fewstep train vae"):
        run("teacher", [f"data={pictures}", *SMALL, f"vae={tmp_path}"], tmp_path / "out")


def test_a_setting_out_of_range_and_an_unknown_one_are_refused(tmp_path):
    with pytest.raises(FewstepError, match=r"learning_rate"):
        run("vae", ["learning_rat=1"], tmp_path)
    with pytest.raises(FewstepError, match=r"steps"):
        run("vae", ["steps=0"], tmp_path)
    with pytest.raises(FewstepError, match=r"'vae'"):
        run("vaee", [], tmp_path)
