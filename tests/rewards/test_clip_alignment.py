"""The alignment reward against transformers' own forward pass, on a tiny CLIP with random weights."""

import pytest
import torch

from fewstep.clip import Preprocessing, load_clip, read_preprocessing
from fewstep.metrics import load_features
from fewstep.rewards import load_reward
from fewstep.zoo.text import text_config, tokens_of, train_tokenizer

PROMPTS = ["a red ball", "two green trees and a house", "a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(0)
    tokenizer = train_tokenizer(PROMPTS, vocabulary=600, max_length=12)
    text = text_config(tokenizer, 32, 2) | {"projection_dim": 16}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 16, "patch_size": 4, "projection_dim": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    with torch.no_grad():  # larger weights than the initialisation: cosines that differ
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.ndim > 1 else None
    out = tmp_path_factory.mktemp("tiny-clip")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    side = {"height": 16, "width": 16}
    CLIPImageProcessorPil(
        size=side, do_center_crop=False, crop_size=side, image_mean=[0.5] * 3, image_std=[0.25, 0.5, 0.5]
    ).save_pretrained(out)
    return out


def bytes_images(n, high, wide, seed=0):
    return torch.randint(0, 256, (n, 3, high, wide), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_score_is_the_cosine_of_transformers(folder):
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = bytes_images(3, 16, 16)
    model = CLIPModel.from_pretrained(folder).eval().requires_grad_(False)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(list(images.numpy()), return_tensors="pt").pixel_values
    tokens = tokens_of(AutoTokenizer.from_pretrained(folder), PROMPTS)
    with torch.no_grad():
        out = model(input_ids=tokens, pixel_values=pixels)
    expected = (out.logits_per_image / model.logit_scale.exp()).diagonal()
    assert float(expected.std()) > 1e-3
    found = load_reward(f"clip:{folder}").score(images.float() / 255, PROMPTS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_prompts_in_any_company_and_order_score_the_same(folder):
    reward = load_reward(f"clip:{folder}")
    images = bytes_images(3, 16, 16).float() / 255
    together = reward.score(images, PROMPTS)
    again = reward.score(images.flip(0), PROMPTS[::-1]).flip(0)
    torch.testing.assert_close(again, together, rtol=1e-4, atol=1e-5)
    alone = load_reward(f"clip:{folder}").score(images[1:2], PROMPTS[1:2])
    torch.testing.assert_close(alone, together[1:2], rtol=1e-4, atol=1e-5)


def test_gradient_reaches_the_pixels_and_is_right(folder):
    reward = load_reward(f"clip:{folder}")
    images = (bytes_images(2, 24, 20).float() / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score(images, PROMPTS[:2]).sum(), images)
    step = 1e-3 * gradient / gradient.norm()  # along the gradient: the largest signal for float32
    with torch.no_grad():
        rise = reward.score(images + step, PROMPTS[:2]).sum() - reward.score(images - step, PROMPTS[:2]).sum()
    assert float(rise) == pytest.approx(2e-3 * float(gradient.norm()), rel=0.05)
    assert all(p.grad is None for p in reward.function.args[0].model.parameters())


def test_values_outside_the_range_keep_their_gradient(folder):
    reward = load_reward(f"clip:{folder}")
    images = torch.full((1, 3, 16, 16), 1.2, requires_grad=True)
    (gradient,) = torch.autograd.grad(reward.score(images, ["a cat"]).sum(), images)
    assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("shape", [(40, 40), (48, 32), (20, 33)])
def test_resize_and_crop_follow_the_pil_processor(shape):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    small = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    images = (torch.nn.functional.interpolate(small, shape, mode="bilinear") * 255).round().to(torch.uint8)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    expected = processor(list(images.numpy()), return_tensors="pt").pixel_values
    found = Preprocessing(24, 24, 24)(images.float() / 255)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 3 / 255 / 0.25  # PIL rounds to bytes twice


def test_processor_settings_are_read_or_the_published_ones_taken(folder, tmp_path):
    found = read_preprocessing(str(folder), 16)
    assert found == Preprocessing(16, 16, None, (0.5,) * 3, (0.25, 0.5, 0.5))
    assert read_preprocessing(str(tmp_path), 224) == Preprocessing(224, 224, 224)


def test_features_are_the_unit_image_embedding(folder):
    net = load_features(f"clip:{folder}")
    images = bytes_images(5, 16, 16)
    features = net(images)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net(images, batch=2), features, rtol=1e-4, atol=1e-5)
    clip = load_clip(str(folder))
    cosine = (features.float() * clip.text_features(PROMPTS[:1])).sum(1)
    torch.testing.assert_close(cosine, load_reward(f"clip:{folder}").score(images / 255, PROMPTS[:1] * 5))
