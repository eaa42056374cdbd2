"""LoRA adapters and plans in one pipeline: loading, unloading, one saved folder, and who belongs to whom."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig

from fewstep.denoiser import fingerprint
from fewstep.errors import FewstepError, IdentityError
from fewstep.pipelines import attach, backbone_of, identity_of, load_pipeline, plan_of, save_pipeline
from fewstep.pipelines.adapters import adapters_of
from fewstep.quant import quantize
from tests.pipelines import tiny_pipelines as tiny

FAMILIES = ["sd", "sdxl", "sd3", "flux", "z-image", "sana", "cogvideox", "wan"]
"""Those whose pipelines load LoRA weights."""
WEIGHTS = "pytorch_lora_weights.safetensors"


def draw(pipe, name, steps=3):
    return tiny.draw(pipe, name, ["a", "bc"], [3, 1], steps=steps)


def adapted(name, folder, adapter="turbo", seed=0):
    """A pipeline with an attached plan of the base model, and an adapter file that would change its pictures."""
    pipe = tiny.MAKERS[name](folder)
    plan = plan_of(pipe, 3, guidance_scale=1.0, **tiny.CALLS[name])
    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    model = backbone_of(pipe)
    model.add_adapter(config, adapter_name=adapter)
    for key, tensor in model.named_parameters():
        if ".lora_" in key:
            tensor.data.mul_(3)
    model.save_lora_adapter(folder / adapter, adapter_name=adapter)
    pipe.unload_lora_weights()
    return pipe, plan


def load(pipe, folder, adapter="turbo"):
    backbone_of(pipe).load_lora_adapter(folder / adapter, prefix=None, adapter_name=adapter, weight_name=WEIGHTS)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_come_and_go_under_a_plan_of_the_base_model(name, tmp_path):
    pipe, plan = adapted(name, tmp_path)
    attach(pipe, plan.replace(identity=identity_of(pipe)))
    before, print_before = draw(pipe, name), fingerprint(backbone_of(pipe))
    load(pipe, tmp_path)
    during = draw(pipe, name)
    assert fingerprint(backbone_of(pipe)) == print_before
    pipe.unload_lora_weights()
    assert not torch.allclose(before, during, atol=1e-3)
    assert torch.equal(draw(pipe, name), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_adapter_and_plan_live_in_one_folder(name, tmp_path):
    pipe, plan = adapted(name, tmp_path)
    base = tiny.MAKERS[name](tmp_path / "base")
    attach(base, plan)
    untouched = draw(base, name)
    load(pipe, tmp_path)
    pipe.set_adapters(["turbo"], [0.8])
    attach(pipe, plan.replace(identity=identity_of(pipe)))
    wanted = draw(pipe, name)
    assert not torch.allclose(wanted, untouched, atol=1e-3)
    save_pipeline(pipe, tmp_path / "out")
    assert torch.equal(draw(pipe, name), wanted)  # saving changed nothing
    assert {f.suffix for f in (tmp_path / "out" / "adapters").rglob("*") if f.is_file()} == {".json", ".safetensors"}

    loaded = load_pipeline(tmp_path / "out")
    assert torch.allclose(draw(loaded, name), wanted, atol=1e-6)
    assert adapters_of(loaded).keys() == {"turbo"}
    assert adapters_of(loaded)["turbo"]["weight"] == pytest.approx(0.8)
    loaded.unload_lora_weights()
    with pytest.raises(IdentityError, match="adapter 'turbo', which is not loaded"):
        draw(loaded, name)
    attach(loaded, plan)
    assert torch.allclose(draw(loaded, name), untouched, atol=1e-6)  # unloading gave the base model

    plain = DiffusionPipeline.from_pretrained(tmp_path / "out")
    plain.set_progress_bar_config(disable=True)
    with pytest.raises(IdentityError, match="adapter 'turbo', which is not loaded"):
        draw(plain, name)


def test_a_plan_knows_its_adapter_by_its_tensors_and_its_weight(tmp_path):
    pipe, plan = adapted("sd", tmp_path)
    adapted("sd", tmp_path, adapter="style", seed=5)
    load(pipe, tmp_path)
    attach(pipe, plan)
    wanted = draw(pipe, "sd")
    pipe.set_adapters(["turbo"], [0.5])
    with pytest.raises(IdentityError, match="at weight 1"):
        draw(pipe, "sd")
    load(pipe, tmp_path, "style")
    pipe.set_adapters(["turbo", "style"], [1.0, 0.5])  # another one beside it is welcome
    assert not torch.equal(draw(pipe, "sd"), wanted)
    pipe.set_adapters(["style"])
    with pytest.raises(IdentityError, match="'turbo', which is not loaded"):
        draw(pipe, "sd")
    pipe.unload_lora_weights()
    backbone_of(pipe).load_lora_adapter(tmp_path / "turbo", prefix=None, adapter_name="renamed", weight_name=WEIGHTS)
    assert torch.equal(draw(pipe, "sd"), wanted)


def test_inactive_adapters_are_kept_inactive(tmp_path):
    pipe, plan = adapted("sd", tmp_path)
    attach(pipe, plan)
    wanted = draw(pipe, "sd")
    load(pipe, tmp_path)
    backbone_of(pipe).disable_lora()
    assert adapters_of(pipe) == {}
    save_pipeline(pipe, tmp_path / "out")
    loaded = load_pipeline(tmp_path / "out")
    assert adapters_of(loaded, active=False).keys() == {"turbo"}
    assert torch.allclose(draw(loaded, "sd"), wanted, atol=1e-6)


def test_low_bit_backbones_refuse_adapters(tmp_path):
    pipe, plan = adapted("sd", tmp_path)
    load(pipe, tmp_path)
    save_pipeline(pipe, tmp_path / "out")
    pipe.unload_lora_weights()
    quantize(pipe.unet, "w4a8")
    attach(pipe, plan)
    save_pipeline(pipe, tmp_path / "low")
    (tmp_path / "out" / "adapters").rename(tmp_path / "low" / "adapters")
    with pytest.raises(FewstepError, match="before quantizing"):
        load_pipeline(tmp_path / "low")


def test_a_damaged_list_is_named(tmp_path):
    pipe, _ = adapted("sd", tmp_path)
    load(pipe, tmp_path)
    save_pipeline(pipe, tmp_path / "out")
    (tmp_path / "out" / "adapters" / "adapters.json").write_text(json.dumps([{"title": "turbo"}]))
    with pytest.raises(FewstepError, match="is damaged at .0.name"):
        load_pipeline(tmp_path / "out")
