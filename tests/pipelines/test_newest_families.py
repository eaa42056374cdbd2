"""Families that came last: opened, planned, followed, quantized, saved and opened again, as the older ones are."""

import copy
import inspect

import pytest
import torch

import fewstep as fs
from fewstep.quant import quantize
from tests.pipelines import newest_pipelines as newest

ALONE = ("hunyuan-video-1.5",)
"""Families whose autoencoder in diffusers takes one video at a time."""


def plain(pipe, count, **call):
    """What a user of plain diffusers gets: pictures or frames, and the sound where there is one."""
    takes = inspect.signature(pipe.__call__).parameters
    more = {"guidance_scale": 1.0} if "guidance_scale" in takes else {}
    made = pipe(
        prompt=["a", "bc"][:count], num_inference_steps=3, output_type="pt",
        generator=[torch.Generator().manual_seed(seed) for seed in range(count)], **call, **more,
    )  # fmt: skip
    return made.frames if hasattr(made, "frames") else made.images, getattr(made, "audio", None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(newest.FAMILIES))
def test_the_main_path_runs_on_a_newest_family(name, tmp_path):
    make, call = newest.FAMILIES[name]
    pipe, count = make(tmp_path / "scratch"), 1 if name in ALONE else 2
    pictures, sound = plain(pipe, count, **call)
    low = copy.copy(pipe)
    low.register_modules(transformer=copy.deepcopy(pipe.transformer))
    quantize(low.transformer, "w8a8")
    coded, _ = plain(low, count, **call)
    assert 0 < float((coded - pictures).abs().mean()) < 0.05 * float(pictures.std())
    fs.attach(pipe, fs.plan_of(pipe, 3, **call))
    followed, heard = plain(pipe, count, **call)
    assert torch.allclose(followed, pictures, atol=2e-5)
    assert sound is None or torch.allclose(heard, sound, atol=2e-5)
    fs.save(pipe, tmp_path / "saved")
    again = newest.quiet(fs.load(tmp_path / "saved"))
    ours = fs.generate(again, ["a", "bc"][:count], seeds=[0, 1][:count], steps=3, **call)
    assert torch.allclose(
        ours[[0, 3][:count]], pictures, atol=2e-5
    )  # prompts times seeds, of which we draw the diagonal


def test_the_plan_of_lightning_students_has_a_shift_of_three_at_every_size():
    pipe = newest.FAMILIES["qwen-image"][0](None)
    for side in (32, 64):
        plan = fs.plan_of(pipe, 4, height=side, width=side)
        even = torch.linspace(1, 0.25, 4, dtype=torch.float64)
        expected = 3 * even / (1 + 2 * even)
        assert [float(row.sigma) for row in plan.rows] == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_flow_map_is_told_where_its_jump_ends(tmp_path):
    make, call = newest.FAMILIES["any-flow"]
    pipe = make(tmp_path)
    told = []

    def note(module, args, kwargs):
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        told.append((float(given["timestep"].flatten()[0]), float(given["r_timestep"].flatten()[0])))

    handle = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    plan = fs.plan_of(pipe, 3, **call)
    fs.attach(pipe, plan)
    told.clear()
    plain(pipe, 1, **call)
    handle.remove()
    times = [*plan.network_times.tolist(), 0.0]
    assert [time for pair in told for time in pair] == pytest.approx(
        [time for k in range(3) for time in (times[k], times[k + 1])], rel=1e-5
    )
