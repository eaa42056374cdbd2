"""GGUF files: read back by diffusers and by the gguf package, to the last bit."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.pipelines.low_bit.gguf_file import export_gguf, readable
from fewstep.quant import QuantLayer, quantize

pytestmark = pytest.mark.extra("gguf")
Evaluate = Callable[..., torch.Tensor]


def flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=False,
    ).eval()  # fmt: skip


def contents(file: Path) -> dict[str, tuple[str, torch.Tensor]]:
    """Type and values of every tensor, by the gguf package alone."""
    import gguf

    found = {}
    for tensor in gguf.GGUFReader(str(file)).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found[tensor.name] = tensor.tensor_type.name, torch.from_numpy(values.copy())
    return found


@pytest.mark.parametrize(("kind", "scheme"), [("Q8_0", None), ("Q4_0", None), ("Q4_0", "w4a16"), ("Q8_0", "w8a8g32")])
def test_diffusers_reads_a_transformer(kind: str, scheme: str | None, evaluate: Evaluate, tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig

    model = flux()
    model.save_config(tmp_path / "config")  # type: ignore[operator]
    if scheme:
        quantize(model, scheme)
    report = export_gguf(model, tmp_path / "model.gguf", kind)
    assert report.loader
    loaded = FluxTransformer2DModel.from_single_file(
        str(tmp_path / "model.gguf"), config=str(tmp_path / "config"), local_files_only=True,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32), torch_dtype=torch.float32,
    )  # fmt: skip
    twin = copy.deepcopy(model)
    stored = contents(tmp_path / "model.gguf")
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.Linear | QuantLayer):
            plain = module.to_float() if isinstance(module, QuantLayer) else module
            how, values = stored[f"{name}.weight"]
            values = values.view(module.weight.shape)  # type: ignore[operator]
            # diffusers multiplies codes and scales in float16
            plain.weight = nn.Parameter(values if how == "F32" else values.half().float())
            parent, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(parent), leaf, plain)
    assert torch.allclose(evaluate(loaded), evaluate(twin), atol=1e-5)
    kinds = {stored[f"{n}.weight"][0] for n, m in model.named_modules() if isinstance(m, nn.Linear | QuantLayer)}
    assert kind in kinds
    assert stored["x_embedder.weight"][0] == "F32"  # four inputs are no block
    assert report.bytes == (tmp_path / "model.gguf").stat().st_size


@pytest.mark.parametrize(("kind", "scheme"), [("Q4_0", "w4a16"), ("Q8_0", "w8a16g32")])
def test_codes_go_over_as_they_are(kind: str, scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 24), nn.SiLU(), nn.Linear(40, 8), nn.Conv2d(3, 4, 3), nn.LayerNorm(8))
    quantize(model, scheme, rules=())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = export_gguf(model, tmp_path / "m.gguf", kind)
    stored = contents(tmp_path / "m.gguf")
    assert set(stored) == {f"{n}.{p}" for n in (0, 2, 3, 4) for p in ("weight", "bias")}
    for n in (0, 2, 3):
        layer = model[n]
        assert isinstance(layer, QuantLayer)
        assert torch.equal(stored[f"{n}.weight"][1].flatten(), layer.dequantize().flatten())
    assert report.exact == ["0"]
    assert stored["0.weight"][0] == kind
    assert stored["2.weight"][0] == stored["3.weight"][0] == "F32"  # 40 columns are no blocks; convolutions stay
    assert not report.loader
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_first_and_conditioning_layers_get_eight_bits(tmp_path: Path) -> None:
    export_gguf(flux(), tmp_path / "m.gguf", "Q4_0")
    stored = contents(tmp_path / "m.gguf")
    assert stored["time_text_embed.text_embedder.linear_1.weight"][0] == "Q8_0"
    assert stored["proj_out.weight"][0] == "Q8_0"
    assert stored["transformer_blocks.0.attn.to_q.weight"][0] == "Q4_0"


def test_mistakes_are_named(build_unet: Callable[[], nn.Module], tmp_path: Path) -> None:
    from fewstep.quant.split import split_skips

    with pytest.raises(FewstepError, match="Q4_0"):
        export_gguf(flux(), tmp_path / "m.gguf", "Q4_O")
    split = build_unet()
    split_skips(split)
    with pytest.raises(FewstepError, match="SplitConv2d"):
        export_gguf(split, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
    assert "FluxTransformer2DModel" in readable()


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(FewstepError, match=r"fewstep\[gguf\]"):
        export_gguf(flux(), tmp_path / "m.gguf")
