"""What is opened, what is not, and that a folder says the same whatever ran before it was written."""

import copy
import json
import shutil
import socket
import warnings
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig

from fewstep.errors import FewstepError
from fewstep.files import read_json
from fewstep.pipelines import PipelineSampler, backbone_of, load_pipeline, plan_of, process_of, save_pipeline
from fewstep.pipelines.adapters import load_adapters, save_adapters
from fewstep.zoo import shipped
from tests.fuzzing import mutations, refuses_cleanly
from tests.pipelines import tiny_pipelines as tiny


def contents(folder):
    """Every file by its path."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("name", ["sd", "flux", "z-image"])
def test_what_is_saved_does_not_depend_on_what_ran_before(name, tmp_path):
    pipe = tiny.MAKERS[name](tmp_path)
    save_pipeline(pipe, tmp_path / "before")
    plan = plan_of(pipe, 2, **tiny.CALLS[name])
    PipelineSampler(pipe, 1.0, tiny.CALLS[name])(plan, ["a", "bc"], [0, 1])
    process_of(pipe, **tiny.CALLS[name])
    pipe.tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=3)
    used = pipe.tokenizer.backend_tokenizer.padding
    save_pipeline(pipe, tmp_path / "after")
    assert contents(tmp_path / "after") == contents(tmp_path / "before")
    assert pipe.tokenizer.backend_tokenizer.padding == used is not None  # the user's own is as it was


def test_the_side_of_padding_is_kept(tmp_path):
    pipe = tiny.pixart(tmp_path)
    pipe.tokenizer.padding_side = "left"
    wanted = pipe.tokenizer(["a", "abc"], padding=True)["input_ids"]
    save_pipeline(pipe, tmp_path / "out")
    found = load_pipeline(tmp_path / "out").tokenizer(["a", "abc"], padding=True)["input_ids"]
    assert found == wanted


def test_the_pipeline_inside_a_run_directory_is_found(tmp_path):
    pipe = tiny.unconditional(tmp_path)
    save_pipeline(pipe, tmp_path / "run" / "artifacts" / "pipeline")
    assert type(load_pipeline(tmp_path / "run")).__name__ == type(pipe).__name__


def test_a_folder_with_a_variant_only_is_opened_as_that_and_says_so(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    pipe.to(torch.float16).save_pretrained(tmp_path / "out", variant="fp16")
    with pytest.warns(UserWarning, match="variant 'fp16' only"):
        loaded = load_pipeline(tmp_path / "out")
    assert torch.equal(loaded.unet.conv_in.weight, pipe.unet.conv_in.weight.float())
    pipe.to(torch.float32).save_pretrained(tmp_path / "out")  # both: the whole one is meant
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_pipeline(tmp_path / "out")


def test_pickles_are_refused(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    pipe.save_pretrained(tmp_path / "out")
    pipe.unet.save_pretrained(tmp_path / "out" / "unet", safe_serialization=False)
    (tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FewstepError, match=r"safetensors only.*unet/diffusion_pytorch_model\.bin"):
        load_pipeline(tmp_path / "out")
    with pytest.raises(FewstepError, match="safetensors only"):
        load_pipeline("emoji-student", use_safetensors=False)


@pytest.mark.parametrize(("name", "told"), [("m.safetensors", "from_single_file"), ("m.ckpt", "safetensors only")])
def test_single_files_are_told_what_to_do(name, told, tmp_path):
    (tmp_path / name).write_bytes(b"\0" * 100)
    with pytest.raises(FewstepError, match=told):
        load_pipeline(tmp_path / name)


@pytest.mark.parametrize("path", ["\0", "a\0b", "\ud800", "x" * 5000])
def test_what_is_no_path_is_named(path):
    with pytest.raises(FewstepError, match="no file can have this name|this is no path|cannot open"):
        load_pipeline(path)


@pytest.mark.parametrize("name", ["emoji-student", "emoji-teacher", "mnist-dit"])
def test_shipped_models_open_in_plain_diffusers(name):
    pipe = tiny.quiet(DiffusionPipeline.from_pretrained(shipped(name)))
    condition = {"class_labels": [1]} if name == "mnist-dit" else {"prompt": "cat face"}
    images = pipe(**condition, num_inference_steps=2, output_type="pt").images
    assert bool(images.isfinite().all())


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A pipeline, and a folder with the list and the weights of its two adapters."""
    folder = tmp_path_factory.mktemp("adapted")
    pipe = tiny.stable_diffusion(folder)
    for name in ("turbo", "style"):
        config = LoraConfig(r=1, target_modules=["to_q"], init_lora_weights=False)
        backbone_of(pipe).add_adapter(config, adapter_name=name)
    save_adapters(pipe, folder / "out")
    pipe.unload_lora_weights()
    return pipe, folder / "out"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", ["/etc", "../out", "..", ".", "a/b", "a\\b", "", "missing", "\0", "turbo\n", "C:x"])
def test_adapters_elsewhere_are_refused_without_asking_anyone(adapted, name, tmp_path, no_network):
    pipe, folder = adapted
    shutil.copytree(folder, tmp_path / "copy")
    place = tmp_path / "copy" / "adapters" / "adapters.json"
    entries = read_json(place)
    entries[0]["name"] = name
    place.write_text(json.dumps(entries))
    with pytest.raises(FewstepError, match=r"adapters\.json is damaged|is not in"):
        load_adapters(pipe, tmp_path / "copy")
    assert not getattr(pipe.unet, "peft_config", None)


def test_damaged_adapter_weights_are_named(adapted, tmp_path):
    pipe, folder = adapted
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "adapters" / "turbo" / "pytorch_lora_weights.safetensors").write_bytes(b"\1" * 50)
    with pytest.raises(FewstepError, match="cannot load the adapters"):
        load_adapters(copy.deepcopy(pipe), tmp_path / "copy")


def test_an_adapter_whose_name_is_no_folder_is_not_saved(adapted, tmp_path):
    pipe = copy.deepcopy(adapted[0])
    pipe.unet.add_adapter(LoraConfig(r=1, target_modules=["to_q"]), adapter_name="a/b")
    with pytest.raises(FewstepError, match="name cannot be"):
        save_pipeline(pipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Noting:
    """A network that notes which adapters it is asked to load, and in which form."""

    def __init__(self):
        self.places = set()

    def load_lora_adapter(self, place, **_):
        self.places.add(place)

    def set_adapters(self, names, weights):
        assert all(isinstance(name, str) for name in names)
        assert all(isinstance(weight, float) for weight in weights)

    def disable_lora(self):
        pass


@pytest.mark.parametrize("count", [1000, pytest.param(20_000, marks=pytest.mark.thorough)])
def test_every_damaged_list_of_adapters_is_refused_cleanly(adapted, count, no_network):
    folder, unet = adapted[1], Noting()
    place = folder / "adapters" / "adapters.json"
    whole = place.read_text()
    try:
        for change in mutations(json.loads(whole), count):
            place.write_text(json.dumps(change), encoding="utf-8", errors="surrogatepass")
            refuses_cleanly(lambda: load_adapters(SimpleNamespace(unet=unet), folder))
    finally:
        place.write_text(whole)
    assert unet.places == {folder / "adapters" / "turbo", folder / "adapters" / "style"}
