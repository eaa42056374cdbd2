import copy
import dataclasses

import pytest
import torch
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel
from torch import nn

from fewstep.denoiser import Backbone, Denoiser, Guided, fingerprint
from fewstep.errors import FewstepError, IdentityError
from fewstep.executor import sample
from fewstep.plan import Identity
from fewstep.prediction import KINDS, Prediction
from fewstep.process import VE, RectifiedFlow, VPContinuous, VPDiscrete
from fewstep.solvers import ddim, grids
from fewstep.weights import fingerprint_of, same_weights
from tests.core.toys import golden, levels, toy

PROCESSES = [VPDiscrete.from_betas(), VPContinuous(), VE(), RectifiedFlow(3.0)]


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4, norm_num_groups=4,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_every_denoiser_predicts_everything(process, kind):
    """The contract: whatever the network says, `predict` re-expresses it as anything else, exactly."""
    mixture, prediction = golden(), Prediction(kind)
    denoiser = Denoiser(mixture.network(process, prediction), process, prediction)
    x, t = torch.linspace(-2, 2, 5).double().reshape(5, 1), 0.3 * process.noisiest
    alpha, sigma = levels(process, t)
    data, noise = mixture.estimates(x, alpha, sigma)
    torch.testing.assert_close(denoiser(x, t), data, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(denoiser.predict(x, t, "epsilon"), noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(denoiser.predict(x, t, "velocity"), noise - data, rtol=1e-9, atol=1e-9)


def test_guidance_is_that_of_diffusers():
    """arXiv 2207.12598 in diffusers' convention: without + scale (with - without)."""
    condition, negative = torch.randn(3, 5), torch.randn(3, 5)

    def network(x, time, words, fixed):
        return toy(x, time) * words.mean(1, keepdim=True) + fixed

    x, time = torch.randn(3, 4), torch.tensor(500.0)
    guided = Guided(network, {"words": condition, "fixed": 2}, {"words": negative, "fixed": 2}, 7.5)
    without, within = (network(x, time, w, 2) for w in (negative, condition))
    torch.testing.assert_close(guided(x, time), without + 7.5 * (within - without))
    alone = Guided(network, {"words": condition, "fixed": 2}, {"words": negative, "fixed": 2}, 1.0)
    assert torch.equal(alone(x, time), within)


def test_guidance_takes_a_time_per_sample():
    """As the statistics of DPM-Solver-v3 ask for."""

    def network(x, time, words):
        return x * time.reshape(-1, 1) + words

    x, times = torch.randn(3, 4), torch.tensor([1.0, 2.0, 3.0])
    guided = Guided(network, {"words": torch.ones(3, 4)}, {"words": torch.zeros(3, 4)}, 2.0)
    torch.testing.assert_close(guided(x, times), x * times.reshape(-1, 1) + 2)


def test_guidance_pairs_nested_conditions():
    seen = {}

    def network(x, time, added):
        seen.update(added)
        return x

    positive, negative = {"added": {"text": torch.ones(2, 3)}}, {"added": {"text": torch.zeros(2, 3)}}
    Guided(network, positive, negative, 2.0)(torch.randn(2, 4), torch.tensor(1.0))
    assert torch.equal(seen["text"], torch.cat([torch.zeros(2, 3), torch.ones(2, 3)]))


def test_guidance_without_a_negative_is_refused():
    with pytest.raises(FewstepError, match="needs the negative condition"):
        Guided(toy, {}, None, 3.0)


@torch.no_grad()
def test_backbone_of_a_unet(unet):
    x, words, time = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8), torch.tensor(431.0)
    ours = Backbone(unet)(x, time, encoder_hidden_states=words)
    assert torch.equal(ours, unet(x, 431, words).sample)


@torch.no_grad()
def test_backbone_drops_a_learned_variance():
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, cross_attention_dim=8,
        sample_size=8, patch_size=2, norm_num_groups=1, caption_channels=6,
    ).eval()  # fmt: skip
    x, words = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 6)
    added = {"resolution": None, "aspect_ratio": None}
    ours = Backbone(model)(x, torch.tensor(100.0), encoder_hidden_states=words, added_cond_kwargs=added)
    theirs = model(x, words, torch.tensor([100, 100]), added).sample
    assert theirs.shape[1] == 8
    assert torch.equal(ours, theirs[:, :4])


@torch.no_grad()
def test_backbone_scales_the_time_of_flux():
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=6, pooled_projection_dim=5, axes_dims_rope=(2, 2, 4),
    ).eval()  # fmt: skip
    x = torch.randn(2, 16, 4)
    conditions = {
        "encoder_hidden_states": torch.randn(2, 3, 6), "pooled_projections": torch.randn(2, 5),
        "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(3, 3),
    }  # fmt: skip
    ours = Backbone(model, time_scale=1 / 1000)(x, torch.tensor(750.0), **conditions)
    theirs = model(hidden_states=x, timestep=torch.tensor([0.75, 0.75]), **conditions).sample
    torch.testing.assert_close(ours, theirs)


def test_backbone_casts_to_the_dtype_of_the_model():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4, dtype=torch.bfloat16)

        def forward(self, x, t, return_dict=True):
            return (self.layer(x),)

    assert Backbone(Half())(torch.randn(2, 4), torch.tensor(1.0)).dtype == torch.bfloat16


def test_backbone_of_an_unknown_signature_says_what_to_do():
    with pytest.raises(FewstepError, match="Linear.forward has no known state and time arguments"):
        Backbone(nn.Linear(2, 2))


@pytest.fixture(scope="module", params=["random", "stored in half"])
def copies(request, unet):
    """The network in three precisions, and in float32 again after bfloat16."""
    whole = copy.deepcopy(unet)
    with torch.no_grad():
        for number, parameter in enumerate(whole.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 1e-3)
    whole = whole.half().float() if request.param == "stored in half" else whole
    return [
        whole,
        copy.deepcopy(whole).half(),
        copy.deepcopy(whole).bfloat16(),
        copy.deepcopy(whole).bfloat16().float(),
    ]


def test_fingerprints_agree_over_precisions(copies):
    prints = [fingerprint(model) for model in copies]
    assert all(same_weights(one, other) for one in prints for other in prints)
    Identity(model=prints[2]).check(Identity(model=prints[0]))


def test_fingerprints_tell_networks_apart(copies):
    whole, original = copies[0], fingerprint(copies[0])
    assert fingerprint(copy.deepcopy(whole)) == original
    one_layer, all_layers = copy.deepcopy(whole), copy.deepcopy(whole)
    with torch.no_grad():
        one_layer.conv_in.weight.mul_(1.01)
        for parameter in all_layers.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert fingerprint(one_layer) != original
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert not same_weights(fingerprint(all_layers.to(dtype)), original)
    with pytest.raises(IdentityError, match="belongs to model"):
        Identity(model=original).check(Identity(model=fingerprint(all_layers)))


@pytest.mark.parametrize("text", ["", "abc", "x" * 16, "0" * 16 + "-" + "z" * 32, "0" * 15 + "b-" + "0" * 32])
def test_other_texts_are_no_fingerprints_of_a_network(text, unet):
    assert not same_weights(text, fingerprint(unet))
    assert same_weights(text, text)


def test_fingerprints_of_float8_and_offloaded_weights(unet):
    from accelerate import cpu_offload

    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in unet.state_dict().items()}
    moved = {**tensors, "conv_in.weight": (tensors["conv_in.weight"].float() * 2).to(torch.float8_e4m3fn)}
    assert fingerprint_of(tensors) != fingerprint_of(moved)
    away = copy.deepcopy(unet)
    cpu_offload(away, execution_device="cpu")
    assert away.conv_in.weight.is_meta
    assert fingerprint(away) == fingerprint(unet)
    with pytest.raises(FewstepError, match="not in memory"):
        fingerprint(copy.deepcopy(unet).to("meta"))


def test_rows_may_set_their_own_guidance():
    """Early rows without, late rows with: the executor asks the network at the scale of the row."""
    plan = ddim(PROCESSES[0], Prediction(), grids.trailing(PROCESSES[0], 3))
    rows = [dataclasses.replace(row, guidance=scale) for row, scale in zip(plan.rows, (1.0, None, 5.0), strict=True)]
    words, scales = {"words": torch.ones(1, 1)}, []

    def network(x, time, words):
        return 0.1 * x * words

    class Noting(Guided):
        def __call__(self, x, time):
            scales.append(self.scale)
            return super().__call__(x, time)

    guided = Noting(network, words, {"words": torch.zeros(1, 1)}, 2.0)
    sample(plan.replace(rows=tuple(rows)), guided, seeds=[0], shape=(4,))
    assert scales == [1.0, 2.0, 5.0]
    with pytest.raises(FewstepError, match="row 0 sets the guidance"):
        sample(plan.replace(rows=tuple(rows)), lambda x, time: x, seeds=[0], shape=(4,))


def test_the_last_value_of_a_large_tensor_is_looked_at():
    weights = torch.zeros(29_491_200, dtype=torch.uint8)  # the largest of Stable Diffusion 1.5's UNet
    before = fingerprint_of({"w": weights})
    weights[-1] = 1
    assert fingerprint_of({"w": weights}) != before
