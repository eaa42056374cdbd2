"""Features by hooks, heads, and the losses of both sides."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.distillation.adversary import LOSSES, discriminator_loss, generator_loss
from fewstep.distillation.core import Batch
from fewstep.distillation.discriminator import (
    ConvHead,
    Discriminator,
    MeanHead,
    NetworkFeatures,
    PointHead,
    as_tokens,
    discriminator_heads,
    encoder_features,
    samples,
)
from fewstep.distillation.rollout import between
from fewstep.distillation.taps import features, watch
from fewstep.distillation.times import fixed_times, uniform_times
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from tests.distillation.gaussians import FLOW, batch_of, cast_of, generator, made_of, normal

SIZE = 6


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Linear(2, 5)
        self.mid = nn.Linear(5, 3)
        self.up = nn.Linear(3, 1)
        self.reached = []

    def forward(self, x, time, label=None):
        hidden = torch.tanh(self.down(torch.cat([x, time[:, None] / 1000], 1)))
        hidden = torch.tanh(self.mid(hidden))
        self.reached.append(len(x))
        return self.up(hidden)


def layers():
    network = Layers()
    return Denoiser(network, FLOW, Prediction("velocity")), network


def cast_with(kind="point", source=None, who="critic"):
    model, network = layers()
    networks = cast_of(normal(0, 1), model) if who == "critic" else cast_of(model)
    torch.manual_seed(1)
    adversary = discriminator_heads(source or NetworkFeatures(who, ("down", "mid")), kind)(networks, (1,))
    return replace(networks, adversary=adversary), network, adversary


def x_and_t():
    return torch.randn(SIZE, 1, generator=generator()), torch.full((SIZE,), 0.3, dtype=torch.float64)


# --- features


@pytest.mark.parametrize("early", [True, False])
def test_features_are_the_outputs_of_named_modules(early):
    model, network = layers()
    x, t = x_and_t()
    network.reached.clear()
    seen = features(model, ("mid", "down"), x, t, None, early)
    down = network.down(torch.cat([x, torch.full((SIZE, 1), 0.3)], 1))
    assert list(seen) == ["mid", "down"]
    assert torch.allclose(seen["down"], down)
    assert torch.allclose(seen["mid"], network.mid(torch.tanh(down)))
    assert network.reached == ([] if early else [SIZE])
    assert not network.down._forward_hooks


def test_hooks_are_gone_after_an_error():
    model, network = layers()
    with pytest.raises(RuntimeError, match="mine"), watch(model, ("down",)):
        raise RuntimeError("mine")
    assert not network.down._forward_hooks


def test_features_of_a_diffusers_network():
    from diffusers import UNet2DModel

    from fewstep.denoiser import Backbone

    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    model = Denoiser(Backbone(unet), FLOW, Prediction("velocity"))
    taps = NetworkFeatures("teacher", ("down_blocks.0", "mid_block"))
    adversary = discriminator_heads(taps, "conv", hidden=8)(cast_of(model), (3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    networks = replace(cast_of(model), adversary=adversary)
    seen = taps(networks, Batch(2, (3, 8, 8)), x, torch.full((2,), 0.5, dtype=torch.float64))
    assert {name: feature.shape[1] for name, feature in seen.items()} == {"down_blocks.0": 8, "mid_block": 16}
    assert adversary(seen).shape == (2, 2)
    batch = Batch(2, (3, 8, 8), clean=torch.randn(2, 3, 8, 8))
    loss, _ = discriminator_loss(taps, uniform_times())(networks, batch, made_of(x), generator())
    loss.backward()
    assert all(p.grad is not None for p in adversary.parameters())
    assert all(p.grad is None for p in unet.parameters())


def test_names_and_networks_are_checked():
    model, _ = layers()
    with pytest.raises(FewstepError, match="no module 'middle'"), watch(model, ("middle",)):
        pass
    with pytest.raises(FewstepError, match="only modules"), watch(normal(0, 1), ("mid",)):
        pass


# --- heads


def test_heads_of_maps_tokens_and_vectors():
    pictures, tokens, vectors = torch.randn(2, 6, 4, 4), torch.randn(2, 9, 6), torch.randn(2, 6)
    assert [tuple(as_tokens(f).shape) for f in (pictures, tokens, vectors)] == [(2, 16, 6), (2, 9, 6), (2, 1, 6)]
    assert torch.equal(as_tokens(pictures)[:, 5], pictures[:, :, 1, 1])
    head = PointHead(6)
    assert [head(f).shape[1] for f in (pictures, tokens, vectors)] == [16, 9, 1]
    assert ConvHead(6, 8, layers=1)(pictures).shape == (2, 1)
    assert torch.allclose(MeanHead("channels")(pictures), pictures.mean(1).flatten(1))
    assert torch.allclose(MeanHead("positions")(tokens), tokens.mean(1))
    assert not list(MeanHead().parameters())


def test_small_maps_get_a_head_that_fits():
    maps = {"deep": torch.randn(2, 6, 2, 2), "wide": torch.randn(2, 4, 16, 16)}

    def source(networks, batch, x, t):
        return maps

    discriminator = discriminator_heads(source, "conv", hidden=8)(cast_of(normal(0, 1)), (1,))
    assert discriminator(maps).shape == (2, 2)


def test_channels_are_found_or_given():
    _, _, adversary = cast_with()
    shapes = [head.net[0].in_features for head in adversary.heads.values()]
    assert shapes == [5, 3]
    given = discriminator_heads(NetworkFeatures("critic", ("down",)), channels={"a.b": 4})(cast_of(normal(0, 1)), (1,))
    assert given({"a.b": torch.randn(2, 4)}).shape == (2, 1)

    def needy(networks, batch, x, t):
        raise TypeError("label is missing")

    with pytest.raises(FewstepError, match="label is missing"):
        discriminator_heads(needy)(cast_of(normal(0, 1)), (1,))
    with pytest.raises(FewstepError, match="unknown head"):
        discriminator_heads(samples, "big")


# --- losses


@pytest.mark.parametrize("name", ["softplus", "bce"])
def test_the_best_logit_is_the_log_density_ratio(name):
    # of densities 3 : 1, by minimising the expected loss of the discriminator
    logit = torch.linspace(-4, 4, 8001)
    _, judge = LOSSES[name]
    never = torch.full_like(logit, -1e9)
    loss = 0.75 * (judge(logit, never) - judge(1e9 - never, never)) + 0.25 * judge(1e9 - never, logit)
    assert float(logit[loss.argmin()]) == pytest.approx(math.log(3), abs=0.01)


def test_hinge():
    fool, judge = LOSSES["hinge"]
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert judge(real, fake).tolist() == [0.0, 2.0]
    assert fool(fake).tolist() == [2.0, -0.5]


@pytest.mark.parametrize("loss", list(LOSSES))
def test_the_students_gradient_is_that_of_plain_back_propagation(loss):
    networks, network, adversary = cast_with()
    x = x_and_t()[0].requires_grad_(True)
    term = generator_loss(NetworkFeatures("critic", ("down", "mid")), fixed_times((0.3,)), loss, scale=0.7)
    value, numbers = term(networks, batch_of(SIZE), made_of(x), generator(1))
    value.backward()
    assert float(numbers["pull"]) == pytest.approx(float((SIZE * x.grad).square().mean().sqrt()))
    assert all(p.grad is None for p in (*network.parameters(), *adversary.parameters()))
    found = x.grad.clone()
    g = generator(1)
    torch.randint(1, (SIZE,), generator=g)
    noisy = 0.7 * x + 0.3 * torch.randn(SIZE, 1, generator=g)
    down = network.down(torch.cat([noisy, torch.full((SIZE, 1), 0.3)], 1))
    logits = adversary({"down": down, "mid": network.mid(torch.tanh(down))})
    plain = 0.7 * LOSSES[loss][0](logits).mean()
    assert float(value.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    assert torch.allclose(found, torch.autograd.grad(plain, x)[0], atol=1e-6)


def test_fooling_moves_samples_towards_what_looks_real():
    class Line(nn.Module):
        def forward(self, features):
            return 3 * features["samples"]

    x = x_and_t()[0].requires_grad_(True)
    value, _ = generator_loss(samples, None)(
        replace(cast_of(normal(0, 1)), adversary=Line()), batch_of(SIZE), made_of(x), None
    )
    value.backward()
    assert bool((x.grad < 0).all())


def test_the_judge_sees_both_sides_alike():
    seen = {}

    def source(networks, batch, x, t):
        seen.update(x=x, t=t, size=batch.size, label=batch.condition["label"])
        return {"x": x}

    adversary = Discriminator({"x": MeanHead()})
    networks = replace(cast_of(normal(0, 1)), adversary=adversary)
    batch = batch_of(SIZE, clean=torch.full((SIZE, 1), 5.0), condition={"label": torch.arange(SIZE)})
    made = made_of(torch.full((SIZE, 1), -5.0, requires_grad=True))
    for same in (True, False):
        discriminator_loss(source, uniform_times(), same_noise=same, penalty=2.0)(networks, batch, made, generator())
        real, fake, jittered = seen["x"].chunk(3)
        t = seen["t"].chunk(3)
        assert torch.equal(t[0], t[1])
        assert torch.equal(seen["label"], torch.arange(SIZE).repeat(3))
        alpha, sigma = (1 - t[0].float())[:, None], t[0].float()[:, None]
        noises = (real - alpha * 5) / sigma, (fake + alpha * 5) / sigma
        assert torch.allclose(*noises, atol=1e-4) is same
        assert float((jittered - real).std()) == pytest.approx(0.1, rel=0.6)
        assert not seen["x"].requires_grad


def test_the_judges_loss_and_penalty():
    def source(networks, batch, x, t):
        return {"x": x}

    networks = replace(cast_of(normal(0, 1)), adversary=Discriminator({"x": MeanHead()}))
    batch = batch_of(2000, clean=torch.full((2000, 1), 2.0))
    made = made_of(torch.full((2000, 1), -1.0))
    plain, numbers = discriminator_loss(source, None)(networks, batch, made, generator())
    assert float(plain) == pytest.approx(math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)), rel=1e-5)
    assert (float(numbers["real"]), float(numbers["fake"])) == (2, -1)
    rough, numbers = discriminator_loss(source, None, penalty=100.0, jitter=0.1)(networks, batch, made, generator())
    assert float(rough - plain) == pytest.approx(100 * 0.1**2, rel=0.1)  # the slope of this discriminator is 1


@pytest.mark.parametrize("train_source", [True, False])
def test_whom_the_judge_trains(train_source):
    networks, network, adversary = cast_with()
    x = x_and_t()[0].requires_grad_(True)
    term = discriminator_loss(NetworkFeatures("critic", ("down", "mid")), uniform_times(), train_source=train_source)
    loss, _ = term(networks, batch_of(SIZE, clean=torch.randn(SIZE, 1)), made_of(x), generator())
    loss.backward()
    assert x.grad is None
    assert all(p.grad is not None for p in adversary.parameters())
    assert (network.down.weight.grad is not None) is train_source
    assert network.up.weight.grad is None


def test_features_cost_one_call_and_no_output_layers():
    networks, network, _ = cast_with(source=NetworkFeatures("critic", ("down", "mid"), early=True))
    rows = []
    network.down.register_forward_hook(lambda module, arguments, output: rows.append(len(output)))
    network.reached.clear()
    taps, batch = NetworkFeatures("critic", ("down", "mid")), batch_of(SIZE, clean=torch.randn(SIZE, 1))
    discriminator_loss(taps, uniform_times())(networks, batch, made_of(x_and_t()[0]), generator())
    generator_loss(taps, uniform_times())(networks, batch, made_of(x_and_t()[0].requires_grad_(True)), generator())
    assert rows == [2 * SIZE, SIZE]
    assert network.reached == []


def test_an_encoder_outside_sees_decoded_clean_samples():
    seen = []

    def encode(pixels):
        seen.append(pixels)
        return {"vector": pixels.flatten(1)}

    source = encoder_features(encode, decode=lambda latents: 2 * latents)
    networks = replace(cast_of(normal(0, 1)), adversary=Discriminator({"vector": MeanHead()}))
    x = x_and_t()[0].requires_grad_(True)
    loss, _ = generator_loss(source, None, scale=1.0)(networks, batch_of(SIZE), made_of(x), generator())
    loss.backward()
    assert torch.equal(seen[0], 2 * x)
    assert torch.allclose(x.grad, -2 * torch.sigmoid(-2 * x.detach()) / SIZE)


def test_active_samples_alone():
    networks, network, _ = cast_with()
    rows = []
    network.down.register_forward_hook(lambda module, arguments, output: rows.append(len(output)))
    x = x_and_t()[0].requires_grad_(True)
    time = torch.tensor([1.0, 0.25, 0.25, 1.0, 0.5, 0.25], dtype=torch.float64)
    made, batch = replace(made_of(x), time=time), batch_of(SIZE, clean=torch.randn(SIZE, 1))
    taps = NetworkFeatures("critic", ("down", "mid"))
    loss, _ = generator_loss(taps, uniform_times(), active=between(0.0, 0.5))(networks, batch, made, generator())
    loss.backward()
    assert ((x.grad != 0).flatten() == (time <= 0.5)).all()
    discriminator_loss(taps, uniform_times(), active=between(0.0, 0.5))(networks, batch, made, generator())
    assert rows == [4, 8]
    for term in (
        generator_loss(taps, uniform_times(), active=between(2, 3)),
        discriminator_loss(taps, uniform_times(), active=between(2, 3)),
    ):
        loss, _ = term(networks, batch, made, generator())
        loss.backward()
        assert float(loss.detach()) == 0
    assert rows == [4, 8]


def test_mistakes_are_named():
    networks, _, _ = cast_with()
    with pytest.raises(FewstepError, match="unknown adversarial loss"):
        generator_loss(samples, None, "wasserstein")
    with pytest.raises(FewstepError, match="real data"):
        discriminator_loss(samples, None)(networks, batch_of(SIZE), made_of(x_and_t()[0]), generator())
    with pytest.raises(FewstepError, match="needs a adversary"):
        generator_loss(samples, None)(cast_of(normal(0, 1)), batch_of(SIZE), made_of(x_and_t()[0]), generator())
