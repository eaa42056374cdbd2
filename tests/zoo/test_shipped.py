"""The shipped models open in plain diffusers and transformers, are small, and do what their card says."""

import json
from pathlib import Path

import pytest
import torch

from fewstep.data import load_emoji, load_mnist
from fewstep.errors import FewstepError
from fewstep.zoo import SHIPPED, shipped


def _files():
    return [file for name in SHIPPED for file in shipped(name).rglob("*.safetensors")]


def test_weights_are_half_precision_and_small():
    from safetensors import safe_open

    for family, limit in (("emoji", 27e6), ("mnist", 6e6)):
        assert sum(file.stat().st_size for file in _files() if family in file.parts) < limit
    for file in _files():
        with safe_open(file, "pt") as tensors:
            kinds = {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        assert kinds == {"F16"}, file


@pytest.mark.parametrize("name", ["emoji-student", "emoji-teacher"])
def test_pipelines_have_the_standard_parts(name):
    index = json.loads((shipped(name) / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["safety_checker"] == [None, None]


def test_the_guided_student_is_an_adapter_in_the_student_s_weights():
    from fewstep.pipelines import backbone_of, load_pipeline

    plain, guided = (load_pipeline(name) for name in ("emoji-student", "emoji-student-guided"))
    for name in ("vae", "text_encoder"):
        assert all(map(torch.equal, getattr(plain, name).parameters(), getattr(guided, name).parameters()))
    before, after = (backbone_of(pipe).state_dict() for pipe in (plain, guided))
    assert before.keys() == after.keys()  # no adapter is left: it can be quantized
    assert not torch.equal(before["conv_in.weight"], after["conv_in.weight"])
    adapter = next(shipped("emoji-student-guided").rglob("*.safetensors"))
    assert adapter.stat().st_size < 2e6


def test_digit_pipeline_is_plain_diffusers():
    index = json.loads((shipped("mnist-dit") / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "DiTPipeline"
    assert index["transformer"] == ["diffusers", "DiTTransformer2DModel"]
    assert index["id2label"] == {str(n): f"digit {n}" for n in range(10)}


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_generators_and_rewards_saw_training_data_only_and_the_judge_is_another_model(name):
    record = json.loads((shipped(name) / "training.json").read_text(encoding="utf-8"))
    assert Path(record["settings"]["data"]).stem == name.partition("-")[0]
    assert record["settings"].get("split", "train") == ("all" if name == "emoji-judge" else "train")
    reward = json.loads((shipped("emoji-clip") / "training.json").read_text(encoding="utf-8"))
    if name == "emoji-judge":
        assert record["seed"] != reward["seed"]
        assert record["settings"]["width"] != reward["settings"]["width"]


@pytest.mark.parametrize("name", ["emoji-clip", "emoji-judge"])
def test_clip_prefers_the_true_caption_on_held_out_pictures(name):
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(shipped(name), dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(shipped(name))
    images, captions = load_emoji("evaluation")
    images, captions = images[::5], captions[::5]
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        scores = model(pixel_values=images.float() / 127.5 - 1, **tokens).logits_per_image
    better = (scores.diag()[:, None] > scores).float().sum(1) / (len(captions) - 1)
    assert better.mean() > 0.9  # chance is one half


def test_quality_prefers_real_to_spoiled():
    from fewstep.jobs.zoo.corrupt import corrupted
    from fewstep.rewards.quality import QualityNet

    net = QualityNet.from_pretrained(shipped("emoji-quality"), dtype=torch.float32).eval()
    real = load_emoji("evaluation").images[::4].float() / 255
    spoiled = corrupted(real, torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert (net(real) > net(spoiled)).float().mean() > 0.9


def test_digits_are_of_the_class_that_was_asked_for():
    from fewstep.metrics.classifier import load_classifier
    from fewstep.pipelines import load_pipeline

    pipe = load_pipeline("mnist-dit")
    names = sorted(pipe.labels) * 6
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(names))]
    labels = pipe.get_label_ids(names)
    images = pipe(labels, guidance_scale=1.5, generator=generators, num_inference_steps=12, output_type="pt").images
    assert images.shape == (60, 3, 32, 32)
    judge = load_classifier(shipped("mnist-features"))
    assert judge.score(images, names).mean() > 0.9
    assert judge.score(images, names[1:] + names[:1]).mean() < 0.1  # the next class along


def test_classifier_knows_held_out_digits():
    from fewstep.metrics.classifier import load_classifier

    images, captions = load_mnist()
    judge = load_classifier(shipped("mnist-features"))
    assert judge.score(images[::5].float() / 255, captions[::5]).mean() > 0.985


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "guidance"), [("emoji-student", 4, 1.0), ("emoji-teacher", 12, 3.0)])
def test_captions_matter(name, steps, guidance):
    """The judge finds the prompt among eight others for most pictures: chance is one in eight."""
    from diffusers import DiffusionPipeline
    from transformers import CLIPModel, CLIPTokenizer

    pipe = DiffusionPipeline.from_pretrained(shipped(name), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    prompts = load_emoji("evaluation").captions[::32][:8]
    generators = [torch.Generator().manual_seed(seed) for seed in range(16)]
    out = pipe(
        prompts * 2, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="pt"
    ).images
    judge = CLIPModel.from_pretrained(shipped("emoji-judge"), dtype=torch.float32).eval()
    tokens = CLIPTokenizer.from_pretrained(shipped("emoji-judge"))(
        prompts, padding="max_length", truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        scores = judge(pixel_values=2 * out - 1, **tokens).logits_per_image
    right = (scores.argmax(1) == torch.arange(8).repeat(2)).float().mean()
    assert right >= 0.5


def test_an_unknown_model_is_told_with_the_nearest():
    with pytest.raises(FewstepError, match="'emoji-student'"):
        shipped("emoji-studnt")
