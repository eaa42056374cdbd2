"""Frozen encoders: transformers' own models by folder, with random weights, and our small one."""

import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetModel,
)

from fewstep.errors import FewstepError
from fewstep.latents import Encoder, load_encoder, small_encoder

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
MODELS = {
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**SHAPE)), 1),
    "dinov2-with-registers": (
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SHAPE, num_register_tokens=4)),
        5,
    ),
    "dinov3": (
        lambda: DINOv3ViTModel(DINOv3ViTConfig(**SHAPE, intermediate_size=32, num_register_tokens=2)),
        3,
    ),
}


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    make, first = MODELS[request.param]
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(tmp_path / "model")
    return model, first, tmp_path / "model"


@torch.no_grad()
def test_published_models_give_their_patch_tokens_in_place(saved):
    model, first, folder = saved
    x = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    encoder = load_encoder(folder)
    assert (encoder.patch, encoder.width) == (7, 16)
    tokens = encoder(x)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    hidden = model(pixel_values=(x - mean[:, None, None]) / std[:, None, None]).last_hidden_state
    assert tokens.shape == (2, 16, 4, 4)
    assert hidden.shape[1] == first + 16
    for row, col in ((0, 0), (1, 3), (3, 2)):
        torch.testing.assert_close(tokens[:, :, row, col], hidden[:, first + 4 * row + col])


@torch.no_grad()
def test_an_encoder_is_rebuilt_from_its_settings(saved):
    encoder = load_encoder(saved[2])
    other = Encoder.of(encoder.settings).eval()
    other.load_state_dict(encoder.state_dict())
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(other(x, (3, 5)), encoder(x, (3, 5)))
    assert encoder(x, (3, 5)).shape == (2, 16, 3, 5)


@torch.no_grad()
def test_the_small_encoder_comes_back_with_its_colours(tmp_path):
    encoder = small_encoder(32, 8, width=16, layers=1, heads=2).eval()
    encoder.save_pretrained(tmp_path)
    again = load_encoder(tmp_path)
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again(x), encoder(x))
    assert again.mean == (0.5, 0.5, 0.5)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())


def test_what_is_no_transformer_of_pictures_is_refused(tmp_path):
    with pytest.raises(FewstepError, match="no such encoder"):
        load_encoder(tmp_path / "absent")
    with pytest.raises(FewstepError, match="cannot load an encoder"):
        load_encoder(tmp_path)
    small = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    ResNetModel(small).save_pretrained(tmp_path / "resnet")
    with pytest.raises(FewstepError, match="no square patches"):
        load_encoder(tmp_path / "resnet")
