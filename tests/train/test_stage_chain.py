"""Every stage runs on the user's own pictures and leaves a folder that plain diffusers or transformers opens."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.files import read_json
from fewstep.jobs.zoo import run
from fewstep.pipelines import backbone_of

SMALL = ["size=32", "steps=2", "batch=8", "warmup=0", "device=cpu"]


def draw(place: Path) -> None:
    """Twelve coloured discs and squares with captions."""
    rng, images, captions = np.random.default_rng(0), [], []
    rows, columns = np.mgrid[:32, :32] - 15.5
    for index in range(12):
        inside = np.hypot(rows, columns) < 10 if index % 2 else np.maximum(abs(rows), abs(columns)) < 9
        image = np.full((32, 32, 3), 255, np.uint8)
        image[inside] = rng.integers(0, 200, 3)
        images.append(image)
        captions.append(f"{'disc' if index % 2 else 'square'} number {index}")
    np.savez(place / "shapes.npz", images=np.stack(images), captions=np.array(captions))


def train(pictures: Path, root: Path) -> None:
    own = [f"data={pictures}", *SMALL]
    run("vae", [*own, "channels=[8,8,16]"], root / "vae")
    run("clip", [*own, "width=32", "layers=1", "text_width=16", "text_layers=1"], root / "clip")
    shape = ["channels=[16,32]", "text_width=16", "text_layers=1"]
    run("teacher", [*own, f"vae={root / 'vae'}", *shape], root / "teacher")
    run("student", [*own, f"teacher={root / 'teacher'}"], root / "student")
    guided = [f"teacher={root / 'teacher'}", f"init={root / 'student'}", "lora=2", "guidance=8", "learning_rate=0.1"]
    run("student", [*own, *guided], root / "guided")
    run("quality", [*own, f"teacher={root / 'teacher'}", "generated=8"], root / "quality")
    run("oms", [*own, f"pipeline={root / 'teacher'}", "channels=[8,16]"], root / "oms")


def train_by_class(root: Path) -> None:
    """The class-conditional stages, on an npz in the layout of MNIST."""
    rng, arrays = np.random.default_rng(0), {}
    for split in ("train", "test"):
        arrays[f"x_{split}"] = rng.integers(0, 256, (24, 28, 28)).astype(np.uint8)
        arrays[f"y_{split}"] = np.arange(24) % 3 + 4
    np.savez(root / "digits.npz", **arrays)
    own = [f"data={root / 'digits.npz'}", *SMALL]
    run("vae", [*own, "channels=[8,8,16]"], root / "vae")
    run("dit", [*own, f"vae={root / 'vae'}", "width=16", "layers=1", "heads=2", "patch=2"], root / "dit")
    run("classifier", [*own, "widths=[8,16]"], root / "classifier")
    run("oms", [*own, f"pipeline={root / 'dit'}", "width=16", "layers=1"], root / "oms")


@pytest.fixture(scope="module")
def pictures(once) -> Path:
    return once("shapes", draw) / "shapes.npz"


@pytest.fixture(scope="module")
def trained(pictures, once) -> Path:
    return once("stages", functools.partial(train, pictures))


@pytest.fixture(scope="module")
def by_class(once) -> Path:
    return once("stages-by-class", train_by_class)


def test_class_pipeline_opens_in_plain_diffusers_and_knows_its_classes(by_class):
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(by_class / "dit", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.labels == {"digit 4": 0, "digit 5": 1, "digit 6": 2}
    draws = {
        scale: pipe([0, 2], scale, torch.Generator().manual_seed(0), num_inference_steps=2, output_type="pt").images
        for scale in (1.0, 3.0)
    }
    assert draws[1.0].shape == (2, 3, 32, 32)
    assert all(torch.isfinite(images).all() for images in draws.values())
    tables = [block.norm1.emb.class_embedder.embedding_table.weight for block in pipe.transformer.transformer_blocks]
    assert all(not table[3:1000].any() for table in tables)  # rows of classes that do not exist


def test_classifier_judges_and_gives_features(by_class):
    from fewstep.metrics import load_features
    from fewstep.metrics.classifier import load_classifier

    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert load_features(f"classifier:{by_class / 'classifier'}")(images).shape == (5, 32)
    judge = load_classifier(by_class / "classifier")
    votes = torch.stack([judge.score(images, [f"digit {n}"] * 5) for n in (4, 5, 6)])
    assert torch.equal(votes.sum(0), torch.ones(5))  # each image is seen as exactly one class
    with pytest.raises(FewstepError, match="digit 7"):
        judge.score(images[:1], ["digit 7"])


@pytest.mark.parametrize("kind", ["trained", "by_class"])
def test_one_more_step_runs_with_the_pipeline_it_was_trained_for(kind, request):
    from fewstep.pipelines import load_pipeline
    from fewstep.pipelines.one_more_step import OneMoreStep

    root = request.getfixturevalue(kind)
    pipe = load_pipeline(root / ("teacher" if kind == "trained" else "dit"))
    oms = OneMoreStep.from_pretrained(root / "oms", guidance=2.0)
    prompts = ["disc number 1", "square number 4"] if kind == "trained" else ["digit 5", 0]
    channels = backbone_of(pipe).config.in_channels
    assert oms.start(pipe, prompts, [0, 1], steps=2).shape == (2, channels, 8, 8)


def test_captions_that_are_no_classes_are_refused(pictures, trained, tmp_path):
    np.savez(tmp_path / "one.npz", images=np.zeros((4, 32, 32, 3), np.uint8), captions=np.array(["disc"] * 4))
    with pytest.raises(FewstepError, match="different captions"):
        run("dit", [f"data={tmp_path / 'one.npz'}", *SMALL, f"vae={trained / 'vae'}"], tmp_path / "out")


@pytest.mark.parametrize(("name", "steps"), [("teacher", 3), ("student", 2)])
def test_pipelines_open_in_plain_diffusers_and_draw(trained, name, steps):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(trained / name, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(["a disc", "square number 4"], num_inference_steps=steps, guidance_scale=2.0, output_type="pt").images
    assert out.shape == (2, 3, 32, 32)
    assert torch.isfinite(out).all()


def test_an_adapter_on_an_earlier_student_is_stored_alone_and_is_what_the_pipeline_holds(trained):
    from diffusers import UNet2DConditionModel

    def weights(network):
        return torch.cat([t.flatten() for _, t in sorted(network.state_dict().items())])

    before, after = (
        UNet2DConditionModel.from_pretrained(trained / name, subfolder="unet", dtype=torch.float32)
        for name in ("student", "guided")
    )
    start, end = weights(before), weights(after)
    before.load_lora_adapter(trained / "guided" / "lora", prefix=None, weight_name="pytorch_lora_weights.safetensors")
    kinds = {type(layer.get_base_layer()) for layer in before.modules() if hasattr(layer, "get_base_layer")}
    assert kinds == {torch.nn.Linear, torch.nn.Conv2d}
    before.fuse_lora()
    before.unload_lora()
    moved = (end - start).abs().max()
    assert moved > 0.01
    assert (weights(before) - end).abs().max() < 0.01 * moved + 1e-3 * end.abs().max()  # stored in half precision


def test_clip_opens_in_plain_transformers(trained):
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(trained / "clip", dtype=torch.float32)
    tokens = CLIPTokenizer.from_pretrained(trained / "clip")(["disc", "square"], padding=True, return_tensors="pt")
    out = model(pixel_values=torch.zeros(3, 3, 32, 32), **tokens)
    assert out.logits_per_image.shape == (3, 2)


def test_every_stage_says_what_it_did(trained):
    for name in ("vae", "clip", "teacher", "student", "guided", "quality", "oms"):
        record, stage = read_json(trained / name / "training.json"), "student" if name == "guided" else name
        assert record["stage"] == stage
        assert record["steps"] == 2
        assert record["command"].startswith(f"fewstep train {stage} --set data=")
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
