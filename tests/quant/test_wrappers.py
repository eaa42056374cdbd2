"""Wrappers that rename, replace or move layers: taken off or refused, so that what is saved is what was made."""

import copy

import pytest
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.pipelines import load_pipeline, save_pipeline
from fewstep.quant import QuantLayer, calibrate, dequantize, quantize
from fewstep.quant.calls import recording
from fewstep.quant.first_token import keep_first_tokens
from fewstep.quant.mixed import quantize_mixed, quantize_stepped
from fewstep.quant.modules import eligible
from fewstep.quant.split import split_skips
from tests.pipelines import tiny_pipelines as tiny

CALL = (torch.ones(2, 4, 8, 8), 10, torch.linspace(-1, 1, 2 * 5 * 32).view(2, 5, 32))


def output(model):
    with torch.no_grad():
        return model(*CALL, return_dict=False)[0]


def low(pipe_or_model):
    return any(isinstance(m, QuantLayer) for m in pipe_or_model.modules())


def test_a_compiled_network_gets_the_same_bits_and_folder(tmp_path):
    pipe, plain = tiny.stable_diffusion(tmp_path), tiny.one_block_unet()
    pipe.unet = torch.compile(copy.deepcopy(plain), backend="eager")
    before = output(pipe.unet)  # compiled once in full precision
    report, expected = quantize(pipe.unet, "w4a8"), quantize(plain, "w4a8")
    assert report == expected
    assert {row.bits for row in report.rows if row.name in ("conv_in", "conv_out")} == {"w8a8"}
    after = output(pipe.unet)
    assert torch.equal(after, output(plain))
    assert not torch.equal(after, before)
    save_pipeline(pipe, tmp_path / "low")
    assert torch.equal(output(load_pipeline(tmp_path / "low").unet), after)


def test_every_way_of_quantizing_unwraps():
    names = eligible(tiny.one_block_unet())
    for act in (
        lambda m: quantize_mixed(m, dict.fromkeys(names, "w4a8")),
        lambda m: quantize_stepped(m, [dict.fromkeys(names, "w4a8"), dict.fromkeys(names, "w8a8")]),
    ):
        plain = tiny.one_block_unet()
        wrapped = torch.compile(copy.deepcopy(plain), backend="eager")
        act(plain)
        act(wrapped)
        with torch.compiler.set_stance("force_eager"):  # the test above compiles low bits, which takes long
            assert torch.equal(output(wrapped), output(plain))
        assert wrapped.config.quantization_config.to_dict() == plain.config.quantization_config.to_dict()


def with_lora(model):
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "style")
    return model


def with_a_compiled_block(model):
    model.mid_block = torch.compile(model.mid_block, backend="eager")
    return model


def with_fused_projections(model):
    model.fuse_qkv_projections()
    return model


def with_an_ip_adapter(model):
    attention = model.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.processor = nn.ModuleDict({"to_k_ip": nn.Linear(32, 32)})
    return model


def with_another_first_layer(model):
    model.conv_in = nn.Conv2d(8, 16, 3, padding=1)
    return model


def offloaded(model):
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def placed(model):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for module in model.modules():
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
    return model


def cast_by_layer(model):
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return model


def offloaded_in_groups(model):
    cpu = torch.device("cpu")
    model.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )
    return model


def in_float8(model):
    return model.to(torch.float8_e4m3fn)


def quantized_by_torchao(model):
    from torchao.quantization import IntxWeightOnlyConfig, quantize_

    quantize_(model, IntxWeightOnlyConfig(torch.int4))
    return model


@pytest.mark.parametrize(
    ("wrap", "what", "hint"),
    [
        (with_lora, "LoRA", "fuse_lora"),
        (with_a_compiled_block, "torch.compile", "Quantize first"),
        (nn.DataParallel, "DataParallel", "model.module"),
        (with_fused_projections, "to_qkv|to_kv", "unfuse_qkv_projections"),
        (with_an_ip_adapter, "to_k_ip", "unload_ip_adapter"),
        (with_another_first_layer, "conv_in", "Undo"),
        (offloaded, "offloaded|not loaded", "offload"),
        (placed, "placed", "remove_all_hooks"),
        (cast_by_layer, "hook of diffusers", "layerwise_casting"),
        (offloaded_in_groups, "hook of diffusers", "group_offload"),
        (in_float8, "eight bits", "bfloat16"),
        (quantized_by_torchao, "another library", "full-precision"),
    ],
)
def test_other_wrappers_are_refused_before_anything_changes(wrap, what, hint):
    model = wrap(tiny.unet())
    with pytest.raises(FewstepError, match=what) as refused:
        quantize(model, "w4a8")
    assert hint in str(refused.value)
    assert not low(model)


def test_calibration_of_a_compiled_network_is_refused():
    with pytest.raises(FewstepError, match="Quantize first"):
        calibrate(torch.compile(tiny.unet(), backend="eager"), lambda c, s: None, ["a"], [0])


def test_what_fewstep_itself_puts_around_layers_is_no_wrapper():
    model = tiny.unet()
    with recording(model) as calls:
        for prompt in (CALL[2], CALL[2].flip(-1)):
            model(*CALL[:2], torch.cat([torch.ones(2, 1, 32), prompt[:, 1:]], 1))
    assert split_skips(model)
    assert keep_first_tokens(model, calls)
    assert quantize(model, "w4a8").coverage > 0.8


def test_a_whole_model_offload_does_not_matter():
    from accelerate.hooks import CpuOffload, add_hook_to_module

    model, plain = tiny.unet(), tiny.unet()
    add_hook_to_module(model, CpuOffload(torch.device("cpu")))
    quantize(model, "w4a8")
    quantize(plain, "w4a8")
    assert torch.equal(output(model), output(plain))


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "z-image", "wan"])
def test_every_network_of_a_pipeline_comes_back_as_it_was_saved(kind, tmp_path):
    pipe = tiny.MAKERS[kind](tmp_path)
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    done = {}
    for name, part in parts.items():
        if eligible(part):
            quantize(part, "w4a8")
            done[name] = {k: v.clone() for k, v in part.state_dict().items()}
    assert any(name.startswith("text_encoder") for name in done)
    save_pipeline(pipe, tmp_path / "low")
    again = load_pipeline(tmp_path / "low")
    for name, state in done.items():
        found = again.components[name].state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items()), name


def test_a_part_that_was_quantized_on_its_own_is_not_saved(tmp_path):
    for quantized in (lambda p: p.unet.mid_block, lambda p: p.text_encoder.encoder):
        pipe = tiny.stable_diffusion(tmp_path)
        quantize(quantized(pipe), "w4a8")
        with pytest.raises(FewstepError, match="as a whole"):
            save_pipeline(pipe, tmp_path / "low")
        assert not (tmp_path / "low").exists()
    pipe = tiny.stable_diffusion(tmp_path)
    quantize(pipe.unet, "w4a8")
    pipe.unet.conv_in = copy.deepcopy(tiny.unet().conv_in)
    with pytest.raises(FewstepError, match="as a whole"):
        save_pipeline(pipe, tmp_path / "low")


def test_dequantized_networks_are_saved_as_float_ones(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    for part in (pipe.unet, pipe.text_encoder):
        quantize(part, "w4a8")
        dequantize(part)
    expected = output(pipe.unet)
    save_pipeline(pipe, tmp_path / "again")
    assert torch.equal(output(load_pipeline(tmp_path / "again").unet), expected)
