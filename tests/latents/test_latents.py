"""One interface to pixels, a VAE, frozen features and frozen features with a residual."""

import math

import pytest
import torch
from diffusers import AutoencoderKL

from fewstep.errors import FewstepError
from fewstep.latents import (
    FeatureAutoencoder,
    Latent,
    PixelAutoencoder,
    load_latent,
    open_autoencoder,
    small_encoder,
    time_shift,
)
from fewstep.latents.features import feature_std

SIZE, CHANNELS = 16, (8, 8, 8)


def pictures(count, seed=0):
    """Smooth pictures (N, 3, SIZE, SIZE) in [0, 1] of different brightness."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * torch.rand(count, 1, 1, 1, generator=generator)
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def vae(**config):
    torch.manual_seed(0)
    shape = {"block_out_channels": (8, 8), "latent_channels": 2, "norm_num_groups": 4, "sample_size": SIZE}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**shape, **blocks, **config).eval()


def features(residual_channels=0):
    torch.manual_seed(0)
    encoder = small_encoder(SIZE, 4, width=8, layers=1, heads=2)
    settings = {"sample_size": SIZE, "block_out_channels": CHANNELS, "norm_num_groups": 4}
    residual = {"width": 8, "layers": 1, "heads": 2}
    made = FeatureAutoencoder.around(
        encoder, residual_channels=residual_channels, residual_settings=residual, **settings
    )
    made.measure(pictures(200))
    return made.eval()


def pixels():
    made = PixelAutoencoder(SIZE)
    made.measure(pictures(200))
    return made


KINDS = {"pixels": pixels, "vae": lambda: vae(scaling_factor=0.3), "rae": features, "svg": lambda: features(3)}


@pytest.fixture(params=KINDS)
def latent(request):
    return request.param, Latent(KINDS[request.param]())


@torch.no_grad()
def test_every_kind_tells_what_it_is_and_survives_its_folder(latent, tmp_path):
    name, one = latent
    x = pictures(5, 1)
    z = one.encode(x)
    assert one.kind == name
    assert z.shape[1:] == one.shape
    assert one.decode(z).shape == x.shape
    one.save_pretrained(tmp_path / "latent")
    files = {file.name for file in (tmp_path / "latent").iterdir()}
    assert files == {"config.json", "diffusion_pytorch_model.safetensors", "fewstep.json"}
    again = load_latent(tmp_path / "latent")
    assert (again.kind, again.shape, again.size) == (one.kind, one.shape, one.size)
    torch.testing.assert_close(again.encode(x), z)
    torch.testing.assert_close(again.decode(z), one.decode(z))
    assert not any(p.requires_grad for p in again.module.parameters())


@torch.no_grad()
def test_a_latent_does_not_depend_on_its_batch_mates(latent):
    _, one = latent
    x, bright = pictures(4, 1), torch.ones(3, 3, SIZE, SIZE)
    alone, beside = one.encode(x), one.encode(torch.cat([x, bright]))[:4]
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_alignment_of_the_published_code_would_depend_on_them():
    """With statistics of the batch, which training uses, the test above fails: it is able to."""
    svg = features(3).train()
    x, bright = pictures(4, 1), torch.ones(3, 3, SIZE, SIZE)
    alone, beside = svg.features(x), svg.features(torch.cat([x, bright]))[:4]
    assert (alone - beside)[:, 8:].abs().max() > 0.05
    torch.testing.assert_close(alone[:, :8], beside[:, :8], atol=1e-5, rtol=1e-5)  # the frozen tokens do not


@pytest.mark.parametrize("name", ["pixels", "rae", "svg"])
@torch.no_grad()
def test_channels_are_standardised_over_the_pictures_that_were_measured(name):
    z = Latent(KINDS[name]()).encode(pictures(200))
    channels = z.shape[1]
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(channels), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(channels), atol=1e-3, rtol=0)


@torch.no_grad()
def test_the_residual_takes_mean_and_deviation_of_the_frozen_tokens():
    svg = features(3)
    z = svg.features(pictures(200))
    tokens, residual = z[:, :8], z[:, 8:]
    for ours, theirs in zip(feature_std(residual), feature_std(tokens), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    raw = svg.residual.raw(pictures(200))
    assert abs(feature_std(raw)[1] - feature_std(tokens)[1]) > 0.01  # which they did not have before


@torch.no_grad()
def test_a_dropped_residual_is_the_learned_token():
    svg = features(3)
    svg.residual.missing += torch.tensor([1.0, 2.0, 3.0])
    z = svg.features(pictures(2), torch.tensor([True, False]))
    assert torch.equal(z[0, 8:].flatten(1), torch.tensor([[1.0], [2.0], [3.0]]).expand(3, 16))
    assert torch.equal(z[1], svg.features(pictures(2))[1])


def test_gradients_reach_residual_and_decoder_but_never_the_frozen_encoder():
    svg = features(3).train()
    assert not svg.encoder.training
    svg.decoder(svg.features(pictures(4))).square().mean().backward()
    moved = {name.split(".")[0] for name, p in svg.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"decoder", "residual"}


@pytest.mark.parametrize(
    ("config", "shift", "scale"),
    [
        ({"scaling_factor": 0.3}, 0.0, 0.3),
        ({"scaling_factor": 0.3, "shift_factor": 0.5}, 0.5, 0.3),
        (
            {"scaling_factor": 0.5, "latents_mean": [1.0, 2.0], "latents_std": [0.5, 4.0]},
            torch.tensor([1.0, 2.0])[:, None, None],
            0.5 / torch.tensor([0.5, 4.0])[:, None, None],
        ),
    ],
)
@torch.no_grad()
def test_an_autoencoder_of_diffusers_is_normalised_as_its_configuration_says(config, shift, scale):
    module = vae(**config)
    x = pictures(3)
    mean = module.encode(2 * x - 1).latent_dist.mean
    one = Latent(module)
    torch.testing.assert_close(one.encode(x), (mean - shift) * scale)
    torch.testing.assert_close(one.decode(one.encode(x)), (module.decode(mean).sample / 2 + 0.5).clamp(0, 1))


@torch.no_grad()
def test_shipped_names_and_pipeline_folders_give_their_autoencoder(tmp_path):
    assert load_latent("mnist-dit").shape == (8, 4, 4)
    assert load_latent("emoji-teacher").shape == (4, 8, 8)
    assert load_latent("pixels", 24).shape == (3, 24, 24)
    x = pictures(2)
    torch.testing.assert_close(load_latent("pixels", SIZE).encode(x), 2 * x - 1)  # nothing measured: [-1, 1]


def test_the_shift_of_times_follows_the_number_of_numbers():
    assert time_shift(768 * 16 * 16) == pytest.approx(6.93, abs=0.005)  # arXiv 2511.13019
    assert time_shift(768 * 32 * 32) == pytest.approx(13.86, abs=0.005)
    assert time_shift(4 * 32 * 32) == time_shift(100) == 1
    assert Latent(features()).shift == 1
    assert time_shift(400, base=100) == pytest.approx(math.sqrt(4))


def test_what_is_no_autoencoder_is_refused(tmp_path):
    with pytest.raises(FewstepError, match="fewstep train vae"):
        open_autoencoder(tmp_path / "absent")
    with pytest.raises(FewstepError, match="no autoencoder"):
        open_autoencoder("mnist-features-absent")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(FewstepError, match="UNet2DModel"):
        open_autoencoder(tmp_path)
    with pytest.raises(FewstepError, match="multiples"):
        features().tokens(torch.zeros(1, 3, SIZE, SIZE + 2))
