import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep import FewstepQuantConfig
from fewstep.errors import FewstepError
from fewstep.quant import QuantLayer, quantize

Build = Callable[[], nn.Module]
Evaluate = Callable[..., torch.Tensor]


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w3a16"])
def test_saved_model_loads_with_diffusers_alone_and_is_bit_identical(
    build: Build, evaluate: Evaluate, scheme: str, tmp_path: Path
) -> None:
    model = build()
    report = quantize(model, scheme)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "fewstep"
    assert config["scheme"] == report.scheme
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
        assert loaded.state_dict()[name].dtype == tensor.dtype
    assert torch.equal(evaluate(loaded), evaluate(model))
    loaded.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    assert torch.equal(evaluate(again), evaluate(model))


def test_the_file_shrinks_as_the_report_says(build_unet: Build, tmp_path: Path) -> None:
    sizes = {}
    for scheme in (None, "w8a8", "w4a8", "w2a8"):
        model = build_unet()
        report = quantize(model, scheme) if scheme else None
        model.save_pretrained(tmp_path / str(scheme))
        file = tmp_path / str(scheme) / "diffusion_pytorch_model.safetensors"
        sizes[scheme] = file.stat().st_size
        if report:
            header = int.from_bytes(file.read_bytes()[:8], "little") + 8
            assert sizes[scheme] - header == report.disk_after
    assert sizes["w8a8"] < 0.35 * sizes[None]
    assert sizes["w2a8"] < sizes["w4a8"] < 0.7 * sizes["w8a8"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loading_in_half_precision_keeps_codes_and_scales(
    build_unet: Build, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = build_unet()
    quantize(model, "w4a8")
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, torch_dtype=dtype)
    assert loaded.dtype == dtype
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLayer):
            twin = loaded.get_submodule(name)
            assert torch.equal(twin.dequantize(), layer.dequantize())
            assert twin.weight.dtype == dtype


def test_a_half_precision_model_keeps_its_type(build_unet: Build, evaluate: Evaluate, tmp_path: Path) -> None:
    model = build_unet().to(torch.bfloat16)
    quantize(model, "w4a8")
    assert model.dtype == torch.bfloat16
    output = evaluate(model)
    assert output.dtype == torch.bfloat16
    model.save_pretrained(tmp_path)
    assert torch.equal(evaluate(type(model).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)), output)


def test_quantizing_while_loading(build_unet: Build, evaluate: Evaluate, tmp_path: Path) -> None:
    model = build_unet()
    model.save_pretrained(tmp_path / "float")
    loaded = type(model).from_pretrained(tmp_path / "float", quantization_config=FewstepQuantConfig("w4a8"))
    quantize(model, "w4a8")
    assert torch.equal(evaluate(loaded), evaluate(model))
    loaded.save_pretrained(tmp_path / "low")
    assert torch.equal(evaluate(type(model).from_pretrained(tmp_path / "low")), evaluate(model))


def test_a_whole_pipeline_saves_and_loads(build_unet: Build, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline

    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    parts = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
    pipe = StableDiffusionPipeline(
        vae=vae, unet=build_unet(), scheduler=DDIMScheduler(), requires_safety_checker=False, **parts
    )
    quantize(pipe.unet, "w4a8")
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, **parts)

    def image(pipeline: DiffusionPipeline) -> torch.Tensor:
        torch.manual_seed(3)
        prompt = torch.randn(1, 5, 16)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(
            prompt_embeds=prompt, guidance_scale=1.0, num_inference_steps=2, height=8, width=8, output_type="pt",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip

    assert torch.equal(image(loaded), image(pipe))
    for pipeline in (pipe, loaded):
        pipeline.to(torch.float64)  # casting is allowed, and changes no weight
        assert pipeline.unet.dtype == torch.float64


def test_broken_files_are_refused(build_unet: Build, tmp_path: Path) -> None:
    model = build_unet()
    quantize(model, "w4a8")
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())

    def change(**values: object) -> None:
        file.write_text(json.dumps({**config, "quantization_config": {**config["quantization_config"], **values}}))

    change(shceme="w4a8")
    with pytest.raises(FewstepError, match="scheme"):
        type(model).from_pretrained(tmp_path)
    change(version=99)
    with pytest.raises(FewstepError, match="version"):
        type(model).from_pretrained(tmp_path)
    change(layers={"w4a8": ["no.such.layer"]})
    with pytest.raises(FewstepError, match=r"no\.such\.layer"):
        type(model).from_pretrained(tmp_path)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(build_unet: Build, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = build_unet()
    quantize(model, "w4a8")
    model.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    for missing in ("conv_in.packed", "conv_in.scale"):
        tensors = load_file(file)
        save_file({name: t.clone() for name, t in tensors.items() if name != missing}, file)
        with pytest.raises(FewstepError, match=missing):
            type(model).from_pretrained(tmp_path)
        save_file({name: t.clone() for name, t in tensors.items()}, file)
