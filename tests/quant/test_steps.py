"""Bits per layer and per step: a plan's row runs the table it names, in memory and from the file."""

import copy
import dataclasses

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.pipelines import PipelineSampler, attach, load_pipeline, plan_of, save_pipeline
from fewstep.quant.calibration import calibrate
from fewstep.quant.fake import to_fake
from fewstep.quant.mixed import quantize_mixed, quantize_stepped
from fewstep.quant.modules import eligible
from fewstep.quant.steps import PerStepLayer
from fewstep.variants import applied
from tests.pipelines import tiny_pipelines as tiny

GIVEN = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), 3, torch.ones(1, 5, 32))


def tables(model):
    names = eligible(model)
    low = dict.fromkeys(names, "w3a8")
    high = {n: "w8a16" if k % 3 == 0 else "w3a8" for k, n in enumerate(names)}
    return low, high


@torch.no_grad()
def test_each_table_is_the_model_quantized_with_it():
    model = tiny.unet()
    low, high = tables(model)
    alone = []
    for table in (low, high):
        one = copy.deepcopy(model)
        quantize_mixed(one, table)
        alone.append(one(*GIVEN)[0])
    quantize_stepped(model, [low, high])
    assert torch.equal(model(*GIVEN)[0], alone[0])
    for k in (0, 1):
        with applied(model, f"bits:{k}"):
            assert torch.equal(model(*GIVEN)[0], alone[k])
    assert torch.equal(model(*GIVEN)[0], alone[0])
    stepped = [m for m in model.modules() if isinstance(m, PerStepLayer)]
    assert len(stepped) == sum(low[n] != high[n] for n in low)


@torch.no_grad()
def test_a_plan_names_its_tables_and_the_folder_keeps_them(tmp_path):
    pipe = tiny.stable_diffusion(tmp_path)
    plan = plan_of(pipe, 3, **tiny.CALLS["sd"])
    low, high = tables(pipe.unet)
    full = copy.deepcopy(pipe)
    quantize_stepped(pipe.unet, [low, high])
    named = plan.replace(rows=tuple(dataclasses.replace(r, network=f"bits:{k % 2}") for k, r in enumerate(plan.rows)))
    generate = PipelineSampler(pipe, 1.0, tiny.CALLS["sd"])
    seen = []
    first = next(m for m in pipe.unet.modules() if isinstance(m, PerStepLayer))
    hook = first.register_forward_hook(lambda *_: seen.append(first.active))
    attach(pipe, named)
    images = tiny.draw(pipe, "sd", ["a"], [0], steps=3)
    hook.remove()
    assert seen == [0, 1, 0]
    assert not torch.equal(images, generate(plan, ["a"], [0]))
    save_pipeline(pipe, tmp_path / "low")
    again = load_pipeline(tmp_path / "low")
    assert torch.equal(tiny.draw(again, "sd", ["a"], [0], steps=3), images)
    assert not any(isinstance(m, PerStepLayer) for m in full.unet.modules())


@torch.no_grad()
@pytest.mark.parametrize("scheme", ["nvfp4{}-smooth", pytest.param("w4{}-r2", marks=pytest.mark.thorough)])
def test_precisions_of_inputs_alone_share_one_weight(scheme, tmp_path):
    model = tiny.unet()
    names = eligible(model)
    schemes = [scheme.format(a) for a in ("a4", "a8", "a16")]
    tables = [dict.fromkeys(names, s) for s in schemes]
    calibration = calibrate(model, lambda c, s: model(*GIVEN), [0], [0])
    alone = []
    for table in tables:
        one = copy.deepcopy(model)
        report = quantize_mixed(one, table, calibration=calibration)
        alone.append(one(*GIVEN)[0])
    stepped = quantize_stepped(model, tables, calibration=calibration)
    assert stepped.disk_after == report.disk_after
    assert stepped.resident_after <= report.resident_after * 1.01
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    twin = copy.deepcopy(model)
    twin.load_state_dict(again.state_dict())
    moved = copy.deepcopy(again).to(torch.float64).to(torch.float32)
    for found in (model, again, twin, moved):
        for k in range(3):
            with applied(found, f"bits:{k}"):
                assert torch.equal(found(*GIVEN)[0], alone[k])
        layer = next(m for m in found.modules() if isinstance(m, PerStepLayer))
        assert layer.options[2].packed is layer.options[0].packed
    with pytest.raises(FewstepError, match="trained apart"):
        to_fake(model)


def test_mistakes_are_named():
    model = tiny.unet()
    low, high = tables(model)
    with pytest.raises(FewstepError, match="same layers"):
        quantize_stepped(model, [low, {}])
    quantize_stepped(model, [low, high])
    with pytest.raises(FewstepError, match="tables 0 to 1"):
        applied(model, "bits:2")
    with pytest.raises(FewstepError, match="It has one"):
        applied(tiny.unet(), "bits:1")
