import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep.errors import FewstepError
from fewstep.pipelines.low_bit import stream
from fewstep.pipelines.low_bit.stream import load_quantized
from fewstep.quant import quantize

Build = Callable[[], nn.Module]
Evaluate = Callable[..., torch.Tensor]


SCHEMES = ("w8a8", "w4a8", "w4a16-asym", "w8a8tensor", "nf4", "nvfp4")
CASES = [
    *(("sd", scheme) for scheme in SCHEMES), *((kind, "w4a8") for kind in ("flux", "pixart")),
    pytest.param("sdxl", "w4a8", marks=pytest.mark.thorough),
]  # fmt: skip
"""Layers are rounded one by one: every scheme on one network, and every network by one scheme."""


@pytest.mark.parametrize(("build", "scheme"), CASES, indirect=["build"])
def test_it_is_the_model_that_quantize_makes(
    build: Build, evaluate: Evaluate, tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SLICE", 500)  # several slices per layer
    build().save_pretrained(tmp_path / "float")  # type: ignore[operator]
    expected = build()
    report = quantize(expected, scheme)
    model, streamed = load_quantized(tmp_path / "float", scheme)
    first, second = expected.state_dict(), model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert streamed == report
    assert torch.equal(evaluate(model), evaluate(expected))


def test_no_layer_is_in_memory_as_a_whole(build_unet: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_unet()
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    layers = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    sizes, real = [], stream.fit_grid
    monkeypatch.setattr(stream, "SLICE", 600)
    monkeypatch.setattr(stream, "fit_grid", lambda weight, *rest: sizes.append(weight.numel()) or real(weight, *rest))
    load_quantized(tmp_path, "w4a8")
    assert max(sizes) <= max(600, *(weight[0].numel() for weight in layers))
    assert sum(sizes) == sum(weight.numel() for weight in layers)


def test_sharded_half_precision_files_and_saving_again(build_unet: Build, evaluate: Evaluate, tmp_path: Path) -> None:
    build_unet().half().save_pretrained(tmp_path / "float", max_shard_size="60KB")  # type: ignore[operator]
    assert len(list((tmp_path / "float").glob("*.safetensors"))) > 2
    model, report = load_quantized(tmp_path / "float", "w4a8", dtype=torch.bfloat16, skip=["mid_block"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {row.reason for row in report.skipped} == {"kept on request"}
    model.save_pretrained(tmp_path / "low")  # type: ignore[operator]
    again = type(model).from_pretrained(tmp_path / "low", torch_dtype=torch.bfloat16)  # type: ignore[attr-defined]
    assert torch.equal(evaluate(again), evaluate(model))


def _drop_tensor(folder: Path) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k != "conv_in.weight"}, path)


def _spoil(folder: Path) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["mid_block.resnets.0.conv1.weight"][3, 2] = float("nan")
    save_file(tensors, path)


def _truncate(folder: Path) -> None:
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "cross_attention_dim": 24}))


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (_drop_tensor, "conv_in.weight"),
        (_spoil, "NaN"),
        (_truncate, "unreadable"),
        (_widen, "shape"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "diffusion_pytorch_model.safetensors").unlink(), "no safetensors"),
        (lambda folder: (folder / "config.json").write_text('{"_class_name": "Nothing"}'), "Nothing"),
    ],
)
def test_spoilt_folders_are_refused(
    build_unet: Build, tmp_path: Path, spoil: Callable[[Path], object], word: str
) -> None:
    build_unet().save_pretrained(tmp_path)  # type: ignore[operator]
    spoil(tmp_path)
    with pytest.raises(FewstepError, match=word):
        load_quantized(tmp_path, "w4a8")


def test_what_needs_the_whole_model_is_refused(build_unet: Build, tmp_path: Path) -> None:
    model = build_unet()
    model.save_pretrained(tmp_path / "fp16", variant="fp16")  # type: ignore[operator]
    with pytest.raises(FewstepError, match=r"fp16\.safetensors"):
        load_quantized(tmp_path / "fp16", "w4a8")
    assert load_quantized(tmp_path / "fp16", "w4a8", variant="fp16")[1].coverage > 0.9
    for scheme in ("w8a8-static", "w4a8-r8"):
        with pytest.raises(FewstepError, match="calibration"):
            load_quantized(tmp_path / "fp16", scheme, variant="fp16")
    quantize(model, "w4a8")
    model.save_pretrained(tmp_path / "low")  # type: ignore[operator]
    with pytest.raises(FewstepError, match="already"):
        load_quantized(tmp_path / "low", "w4a8")
