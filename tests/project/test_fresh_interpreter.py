"""What depends on what was imported before: light imports, and folders that open in a process which knows the package
alone. One interpreter answers all of it: importing the libraries takes longer than everything else."""

import json
import pickle
import subprocess
import sys

import pytest
import torch

from fewstep.files import read_json
from fewstep.pipelines import attach, identity_of, plan_of, save_pipeline
from fewstep.quant import quantize
from tests import ROOT
from tests.pipelines import tiny_pipelines as tiny

LIGHT = """
import sys
import fewstep
assert "torch" not in sys.modules
heavy = {"diffusers", "transformers", "accelerate", "peft"}
import fewstep.quant
loaded = (heavy | {"torchao", "scipy", "sklearn"}) & set(sys.modules)
assert not loaded, loaded
import fewstep.distillation.engine, fewstep.distillation.store, fewstep.testing.toy
from fewstep.distillation.method import presets
presets()
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
LIBRARIES = "import diffusers.quantizers.auto, transformers.quantizers.auto, fewstep"  # as most tests import
EARLIER = ("fewstep.plan.scheduler", "fewstep.pipelines.scheduler", "fewstep")
"""Modules that `model_index.json` named as the scheduler's, the oldest first."""
OLDER = f"""
import sys, diffusers, fewstep
place = sys.argv[1]
diffusers.DiffusionPipeline.from_pretrained(place + "/{EARLIER[0]}")
from fewstep.plan.scheduler import PlanScheduler
for name in {EARLIER}:
    pipe = fewstep.load_pipeline(place + "/" + name)
    assert type(pipe.scheduler) is PlanScheduler is fewstep.PlanScheduler
    assert len(pipe.scheduler.plan.rows) == 2
"""
PIPELINE = """
import pickle, sys, diffusers
place = sys.argv[1]
opened = diffusers.DiffusionPipeline.from_pretrained(place + "/low")
with open(place + "/whole", "rb") as file:
    sent = pickle.load(file)
"""
PARTS = """
import sys, diffusers, torch
place = sys.argv[1]
network = diffusers.UNet2DConditionModel.from_pretrained(place + "/low/unet")
with torch.no_grad():
    torch.save(network(torch.ones(1, 4, 8, 8), 10, torch.ones(1, 5, 32)).sample, place + "/network.pt")
"""
ENCODER = """
import sys, torch, transformers
place = sys.argv[1]
with torch.no_grad():
    low = transformers.CLIPTextModel.from_pretrained(place + "/encoder")
    torch.save(low(torch.tensor([[0, 5, 9, 1]]))[0], place + "/encoder.pt")
"""
DRAWN = """
def draw(pipe):
    return pipe("a", num_inference_steps=2, guidance_scale=1.0, height=16, width=16, output_type="latent",
                generator=torch.Generator().manual_seed(0)).images

print(type(opened.scheduler).__name__, type(network.conv_in).__name__, float((draw(opened) - draw(sent)).abs().max()))
"""
FIRST = LIGHT + 'assert "fewstep.pipelines" not in sys.modules\n' + OLDER
ORDERS = [
    pytest.param(FIRST + PIPELINE + PARTS + ENCODER, id="package"),
    pytest.param(FIRST + ENCODER + PARTS + PIPELINE, id="encoder", marks=pytest.mark.thorough),
    pytest.param(LIBRARIES + OLDER + PIPELINE + PARTS + ENCODER, id="libraries", marks=pytest.mark.thorough),
]


def write_older(pipe, folder):
    """The pipeline as earlier versions wrote it: the module named, the plan and two settings."""
    for module in EARLIER:
        place = folder / module
        pipe.save_pretrained(place)
        index = read_json(place / "model_index.json")
        assert index["scheduler"] == ["fewstep", "PlanScheduler"]
        (place / "model_index.json").write_text(json.dumps({**index, "scheduler": [module, "PlanScheduler"]}))
        config = place / "scheduler" / "scheduler_config.json"
        kept = {k: v for k, v in read_json(config).items() if k not in ("replaced", "adapters")}
        config.write_text(json.dumps(kept))


@pytest.mark.slow
@pytest.mark.parametrize("code", ORDERS)
def test_a_fresh_process_needs_one_light_import_and_opens_what_was_saved(code, tmp_path):
    pipe, encoder = tiny.stable_diffusion(tmp_path), tiny.clip_text()
    plan = plan_of(pipe, 2, guidance_scale=1.0, **tiny.CALLS["sd"])
    attach(pipe, plan.replace(identity=identity_of(pipe, 1.0)))
    write_older(pipe, tmp_path)
    quantize(pipe.unet, "w4a8")
    attach(pipe, plan.replace(identity=identity_of(pipe, 1.0)))
    save_pipeline(pipe, tmp_path / "low")
    (tmp_path / "whole").write_bytes(pickle.dumps(pipe))  # pipelines go to worker processes
    quantize(encoder, "w4a8", rules=())
    encoder.save_pretrained(tmp_path / "encoder")
    command = [sys.executable, "-c", code + DRAWN, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scheduler, layer, apart = done.stdout.split()[-3:]
    assert (scheduler, layer) == ("PlanScheduler", "QuantConv")
    assert float(apart) < 1e-5
    with torch.no_grad():
        ours = (
            pipe.unet(torch.ones(1, 4, 8, 8), 10, torch.ones(1, 5, 32)).sample,
            encoder(torch.tensor([[0, 5, 9, 1]]))[0],
        )
    for name, wanted in zip(("network", "encoder"), ours, strict=True):
        assert torch.equal(torch.load(tmp_path / f"{name}.pt", weights_only=True), wanted)
