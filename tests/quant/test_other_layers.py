"""Convolutions of 1 to 3 dimensions, transposed ones and embeddings in low bits: against float and the definition."""

import copy

import pytest
import torch
from torch import nn

from fewstep.pipelines.low_bit.stream import load_quantized
from fewstep.quant import QuantLayer, Scheme, dequantize, quantize
from fewstep.quant.calibration import calibrate
from fewstep.quant.described import report_of
from fewstep.quant.fake import to_fake, to_packed
from fewstep.quant.fidelity import sqnr
from fewstep.quant.linear_conv import make_layer
from fewstep.quant.methods import method_of, store
from fewstep.quant.mixed import quantize_mixed
from fewstep.quant.modules import weight_rows
from fewstep.quant.patches import patches
from tests.pipelines import tiny_pipelines as tiny

KINDS = {
    "Conv1d": (nn.Conv1d, (11,)), "Conv2d": (nn.Conv2d, (7, 6)), "Conv3d": (nn.Conv3d, (4, 5, 6)),
    "ConvTranspose1d": (nn.ConvTranspose1d, (9,)), "ConvTranspose2d": (nn.ConvTranspose2d, (5, 4)),
    "ConvTranspose3d": (nn.ConvTranspose3d, (3, 4, 3)),
}  # fmt: skip
SHAPES = [{}, {"groups": 2}, {"stride": 2, "padding": 1}, {"stride": 2, "dilation": 2, "padding": 1, "groups": 2}]


def convolution(kind, seed=0, **options):
    torch.manual_seed(seed)
    make, size = KINDS[kind]
    if options.get("stride") == 2 and "Transpose" in kind:
        options["output_padding"] = 1
    return make(8, 6, 3, **options), torch.randn(2, 8, *size)


def by_hand(weight, scheme, rows_first):
    """Nearest symmetric 8-bit codes of each row, written out with loops over rows."""
    matrix = rows_first(weight).flatten(1).double()
    found = torch.stack([(row / (row.abs().max() / 127)).round() * (row.abs().max() / 127) for row in matrix])
    return found


def outputs_first(layer):
    """(out, in / groups, ...) of a transposed convolution's weight (in, out / groups, ...), entry by entry."""
    if "Transpose" not in type(layer).__name__:
        return lambda weight: weight

    def order(weight):
        count, per = layer.groups, weight.shape[1]
        rows = [
            torch.stack([weight[g * (weight.shape[0] // count) + i, o] for i in range(weight.shape[0] // count)])
            for g in range(count)
            for o in range(per)
        ]
        return torch.stack(rows)

    return order


@pytest.mark.parametrize("options", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_is_the_float_one_of_its_rounded_weight_and_inputs(kind, options):
    source, x = convolution(kind, **options)
    model = nn.Sequential(copy.deepcopy(source))
    report = quantize(model, "w8a8", rules=())
    layer = model[0]
    assert report.rows[0].kind == kind
    assert report.rows[0].shape == tuple(source.weight.shape)
    expected = by_hand(source.weight.detach(), "w8a8", outputs_first(source))
    assert torch.allclose(layer.dequantize().flatten(1).double(), expected, atol=1e-6)
    twin = copy.deepcopy(source).double()
    twin.weight = nn.Parameter(layer.weight.double())
    step = x.double().abs().flatten(1).amax(1).view(2, *[1] * (x.ndim - 1)) / 127
    assert torch.allclose(model(x).double(), twin((x.double() / step).round() * step), atol=1e-5)
    assert sqnr(source(x), model(x)) > 30
    assert torch.allclose(layer.to_float()(x), twin(x.double()).float(), atol=1e-5)


@pytest.mark.parametrize("scheme", ["w4a16", "w4a8-asym", "nf4", "nvfp4a8", "w3a8tensor", "w4a8-r2", "w4a4g16-ag4"])
@pytest.mark.parametrize("kind", ["Conv1d", "Conv3d", "ConvTranspose2d", "ConvTranspose3d"])
def test_any_scheme_serves_and_its_trainable_twin_is_the_same_function(kind, scheme):
    source, x = convolution(kind)
    model = nn.Sequential(copy.deepcopy(source))
    quantize(model, scheme, rules=())
    low = model(x)
    assert sqnr(source(x), low) > 8
    fake = to_fake(copy.deepcopy(model))
    assert torch.allclose(fake(x), low, atol=1e-4)
    assert torch.allclose(to_packed(fake)(x), low, atol=1e-4)
    started = to_fake(copy.deepcopy(model), {"0": source.weight.detach()})
    assert torch.allclose(to_packed(started)(x), low, atol=0.25 * float(low.detach().abs().max()))


@pytest.mark.parametrize("options", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_patches_are_the_rows_of_the_product(kind, options):
    source, x = convolution(kind, **options)
    rows = patches(source, x).unflatten(-1, (source.groups, -1))  # (samples, positions, groups, K)
    weight = weight_rows(source).detach().flatten(1).unflatten(0, (source.groups, -1))
    product = torch.einsum("npgk,gok->ngop", rows, weight).flatten(1, 2)
    expected = (source(x) - source.bias.view(-1, *[1] * (x.ndim - 2))).flatten(2)
    assert torch.allclose(product, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"])
def test_a_transposed_convolution_takes_the_size_of_its_output(kind):
    torch.manual_seed(0)
    make, size = KINDS[kind]
    source, x = make(8, 6, 3, stride=2, padding=1), torch.randn(2, 8, *size)
    model = nn.Sequential(copy.deepcopy(source))
    quantize(model, "w8a16", rules=())
    twin = copy.deepcopy(source)
    twin.weight = nn.Parameter(model[0].weight)
    fake = to_fake(copy.deepcopy(model))[0]
    for more in (0, 1):
        wanted = [2 * (side - 1) + 1 + more for side in size]
        for given in (wanted, torch.Size([2, 6, *wanted])):
            expected = twin(x, output_size=given)
            assert list(expected.shape[2:]) == wanted
            assert torch.allclose(model[0](x, output_size=given), expected, atol=1e-5)
            assert torch.allclose(fake(x, output_size=given), expected, atol=1e-5)
    assert torch.allclose(model(x), twin(x), atol=1e-5)  # nothing of it stays
    with pytest.raises(ValueError, match="output size"):
        model[0](x, output_size=[side * 3 for side in size])
    plain = make_layer(KINDS[kind.replace("Transpose", "")][0](8, 6, 3), Scheme(8, 16))
    with pytest.raises(TypeError, match="output_size"):
        plain(x, output_size=wanted)


@pytest.mark.parametrize("kind", ["Conv1d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d"])
def test_calibrated_methods_lower_the_error_of_the_outputs(kind):
    source, x = convolution(kind)
    x[:, 3] *= 30  # an outlier channel
    model = nn.Sequential(source)
    seen = calibrate(model, lambda c, s: model(x), [None, None], [0, 1])
    truth, left = model(x), {}
    for method, scheme in (("rtn", "w3a16"), ("gptq", "w3a16"), ("rtn ", "w8a8"), ("smoothquant", "w8a8")):
        low = copy.deepcopy(model)
        quantize(low, scheme, rules=(), method=method.strip(), calibration=seen)
        left[method] = sqnr(truth, low(x))
    assert left["gptq"] > left["rtn"]
    assert left["smoothquant"] > left["rtn "]


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w4a16-asym", "w3a16tensor", "nf4", "mxfp4a16", "nvfp4a16"])
def test_an_embedding_looks_up_dequantized_rows(scheme):
    torch.manual_seed(0)
    source = nn.Embedding(50, 24, padding_idx=3)
    layer = make_layer(source, Scheme.parse(scheme))
    layer.load(store(source.weight, layer.scheme, method_of("rtn")))
    which = torch.tensor([[3, 49, 0], [7, 7, 12]])
    assert torch.equal(layer(which), layer.dequantize()[which])
    assert sqnr(source(which), layer(which)) > 10
    assert layer(which.int()).shape == (2, 3, 24)
    assert layer(torch.tensor(4)).shape == (24,)
    assert torch.equal(layer.to_float()(which), layer(which))
    half = copy.deepcopy(layer).to(torch.bfloat16)(which)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), layer(which), rtol=1e-2, atol=1e-6)


def paella():
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

    model = PaellaVQModel(embed_dim=16, bottleneck_blocks=1, levels=2, num_vq_embeddings=64, latent_channels=4).eval()
    return model, (torch.rand(1, 3, 16, 16),), {"ConvTranspose2d", "Embedding"}


def unet3d():
    from diffusers import UNet3DConditionModel

    model = UNet3DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    ).eval()  # fmt: skip
    return model, (torch.randn(1, 4, 3, 8, 8), 10, torch.randn(1, 4, 16)), {"Conv3d"}


def unet1d():
    from diffusers import UNet1DModel

    model = UNet1DModel(
        in_channels=2, out_channels=2, extra_in_channels=0, use_timestep_embedding=False, block_out_channels=(16, 32),
        down_block_types=("DownBlock1D", "DownBlock1D"), up_block_types=("UpBlock1D", "UpBlock1D"),
    ).eval()  # fmt: skip
    return model, (torch.randn(1, 2, 64), 10), {"Conv1d"}


def dit():
    return tiny.dit(None).transformer, (torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.tensor([3])), {"Embedding"}


@pytest.mark.parametrize("make", [paella, unet3d, unet1d, dit])
def test_models_with_such_layers_load_as_they_were_saved_and_read_in_slices_alike(make, tmp_path):
    model, given, kinds = make()
    full = copy.deepcopy(model)
    report = quantize(model, "w4a8")
    assert kinds <= {row.kind for row in report.rows if row.quantized}
    with torch.no_grad():
        truth, low = full(*given).sample, model(*given).sample
        assert sqnr(truth, low) > 10
        model.save_pretrained(tmp_path / "low")
        again = type(model).from_pretrained(tmp_path / "low")
        assert torch.equal(again(*given).sample, low)
        shapes = {row.name: (row.kind, row.shape, row.bits, row.bytes_after) for row in report.rows if row.quantized}
        found = {row.name: (row.kind, row.shape, row.bits, row.bytes_after) for row in report_of(again).rows}
        assert shapes.items() <= found.items()
        if make is not paella:  # no public class of diffusers
            full.save_pretrained(tmp_path / "full")
            assert torch.equal(load_quantized(tmp_path / "full", "w4a8")[0](*given).sample, low)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.position = nn.Embedding(40, 32), nn.Embedding(8, 32, max_norm=1.0)
        self.mix, self.up = nn.Conv1d(32, 32, 3, padding=1), nn.ConvTranspose1d(32, 16, 4, 2, 1)

    def forward(self, ids):
        return self.up(self.mix(self.table(ids).mT))


def test_an_embedding_gets_eight_bits_unless_they_are_named():
    ids = torch.arange(24).view(2, 12)
    model = Words()
    truth = model(ids)
    low = copy.deepcopy(model)
    rows = {row.name: row for row in quantize(low, "w4a8-asym").rows}
    assert (rows["table"].bits, rows["table"].kernel) == ("w8a16", "lookup, rows dequantized")
    assert rows["table"].bytes_after == 40 * (32 + 4)
    assert "lookup" in rows["table"].reason
    assert rows["position"].bits == "32 float"
    assert rows["position"].reason == "its rows are rescaled at every call"
    assert {rows["mix"].bits, rows["up"].bits} == {"w4a8-asym"}
    assert sqnr(truth, low(ids)) > 15
    fake = to_fake(copy.deepcopy(low))
    assert torch.allclose(fake(ids), low(ids), atol=1e-4)
    assert not any(isinstance(m, QuantLayer) for m in dequantize(low).modules())

    mixed = copy.deepcopy(model)
    quantize_mixed(mixed, {"mix": "w4a8", "up": "float", "table": "w4a8"})
    assert str(mixed.table.scheme) == "w4a16"
    assert isinstance(mixed.up, nn.ConvTranspose1d)
    named = copy.deepcopy(model)
    quantize(named, "w8a8", skip=["table"])
    assert isinstance(named.table, nn.Embedding)
