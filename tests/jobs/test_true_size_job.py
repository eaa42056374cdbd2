"""The measurement of the main job at true size is tried on small networks; the job holds one float network."""

import gc

import pytest
import torch
import true_size_job as program

import fewstep as fs
from fewstep import recipes
from fewstep.errors import FewstepError
from fewstep.jobs.context import JobContext
from fewstep.jobs.q_sched import job
from fewstep.pipelines import attach, plan_of, save_pipeline
from fewstep.quant import QuantLayer, apply
from fewstep.runs import Run
from tests.pipelines import tiny_pipelines as tiny


def test_every_stage_of_a_small_one(tmp_path):
    weights = program.write("sd15", tmp_path, tiny=True)
    assert set(weights) == {"vae", "text_encoder", "unet"}
    found = program.measured(program.job, tmp_path / "sd15", tmp_path / "run")
    stages = [row["stage"] for row in found["stages"]]
    assert stages == ["open", "read plan", "quantize", "search", "save", "report"]
    assert all(0 < row["peak_bytes"] <= found["peak_bytes"] for row in found["stages"])
    assert abs(sum(row["seconds"] for row in found["stages"]) - found["seconds"]) < 1e-6
    assert "Nothing was measured on held-out prompts" in (tmp_path / "run" / "report.html").read_text()
    scores = fs.load(tmp_path / "run").scheduler.plan.origin["search"]
    assert scores["method"] == "q-sched"
    opened = program.measured(program.in_diffusers, tmp_path / "run")
    assert [row["stage"] for row in opened["stages"]] == ["load in diffusers", "one picture"]


def test_sdxl_is_read_in_low_bits_and_makes_a_step(tmp_path):
    program.write("sdxl", tmp_path, tiny=True)
    found = program.measured(program.read_low, tmp_path / "sdxl")
    assert [row["stage"] for row in found["stages"]] == ["open and quantize", "one step"]
    assert found["fits"]


def new_float_bytes(known: set[int]) -> int:
    """Of the storages of float tensors that were made since `gc.freeze`, without the known ones."""
    tensors = (found for found in gc.get_objects() if issubclass(type(found), torch.Tensor))
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.is_floating_point()}
    return sum(size for place, size in held.items() if place not in known)


def test_quantizing_for_the_job_never_holds_a_second_float_network(tmp_path, monkeypatch):
    save_pipeline(tiny.stable_diffusion(tmp_path), tmp_path / "model")
    told = {"kind": "q-sched", "model": str(tmp_path / "model"), "steps": 2, "search": {"prompts": ["a cat"]}}
    recipe = recipes.resolve(told).resolved()
    extra, real = [], apply.low_row

    def noted(*given):
        extra.append(new_float_bytes(known))
        return real(*given)

    with Run(tmp_path / "run", recipe.plain(), quiet=True) as run:
        context = JobContext.open(recipe, run, fuse=True)
        weights = list(context.pipe.unet.parameters())
        known = {weight.untyped_storage().data_ptr() for weight in weights}
        monkeypatch.setattr(apply, "low_row", noted)
        gc.collect()
        gc.freeze()
        try:
            parts = job._low_bit(context)
        finally:
            gc.unfreeze()
    assert len(extra) == sum(isinstance(m, QuantLayer) for m in parts["unet"].model.modules()) > 20
    assert 0 < max(extra) < sum(weight.nbytes for weight in weights) / 3


def test_a_pipeline_quantized_while_it_is_read_is_the_quantized_one(tmp_path):
    save_pipeline(tiny.stable_diffusion(tmp_path), tmp_path / "model")
    read, made = fs.load(tmp_path / "model", scheme="w4a8"), fs.load(tmp_path / "model")
    apply.quantize(made.unet, "w4a8")
    expected, found = made.unet.state_dict(), read.unet.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert fs.quant_report(read).scheme == "w4a8"
    assert not any(isinstance(m, QuantLayer) for m in read.text_encoder.modules())
    fs.save(read, tmp_path / "low")
    assert fs.load(tmp_path / "low").unet.config.quantization_config.scheme == "w4a8"


def test_a_plan_of_the_float_network_is_not_put_on_another(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    attach(pipe, plan_of(pipe, 2))
    save_pipeline(pipe, tmp_path / "model")
    with pytest.raises(FewstepError, match=r"belong to the weights in full precision"):
        fs.load(tmp_path / "model", scheme="w4a8")
    with pytest.raises(FewstepError, match=r"only a folder"):
        fs.load("nobody/nothing-here", scheme="w4a8")
