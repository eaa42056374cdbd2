"""The pieces of training against closed forms and diffusers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import FewstepError
from fewstep.jobs.zoo.corrupt import corrupted
from fewstep.jobs.zoo.run import settings
from fewstep.train.ema import EMA
from fewstep.train.loop import accelerator_for, learning_rate
from fewstep.train.pictures import flippable, flipped
from fewstep.train.stage import StageConfig


def test_average_is_the_geometric_sum():
    layer = torch.nn.Linear(1, 1, bias=False)
    ema = EMA({"m": layer}, decay=0.2)  # below (1 + t) / (10 + t) from t = 2 on
    start, values = layer.weight.item(), [3.0, -1.0, 4.0]
    expected = start
    for number, value in enumerate(values, start=1):
        layer.weight.data.fill_(value)
        ema.update({"m": layer})
        decay = min(0.2, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * value
    ema.copy_to({"m": layer})
    assert layer.weight.item() == pytest.approx(expected, rel=1e-6)


@given(st.integers(0, 499))
def test_learning_rate_warms_up_then_falls_to_zero(step):
    config = StageConfig(steps=500, warmup=50, learning_rate=0.1)
    rate = learning_rate(step, config)
    assert 0 <= rate <= 0.1
    if step < 50:
        assert rate == pytest.approx(0.1 * (step + 1) / 51)
    else:
        assert learning_rate(step + 1, config) <= rate
    assert learning_rate(500, config) == pytest.approx(0)


def test_consistency_function_is_the_one_of_the_lcm_scheduler():
    from fewstep.jobs.zoo.student import ConsistencyFunction
    from fewstep.zoo.unet import lcm_scheduler

    scheduler = lcm_scheduler()
    law = ConsistencyFunction(scheduler, torch.device("cpu"))
    scheduler.set_timesteps(4)
    z, v = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for time in scheduler.timesteps:
        wanted = scheduler.step(v, time, z, generator=torch.Generator().manual_seed(0)).denoised
        torch.testing.assert_close(law(v, z, time[None]), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(law(v, z, torch.tensor([0])), z, atol=1e-5, rtol=0)


def test_ddim_step_is_that_of_diffusers():
    from fewstep.jobs.zoo.student import ConsistencyFunction
    from fewstep.zoo.unet import ddim_scheduler, lcm_scheduler

    scheduler = ddim_scheduler()
    law = ConsistencyFunction(lcm_scheduler(), torch.device("cpu"))
    scheduler.set_timesteps(50)
    z, v = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for time in (999, 499, 39):
        wanted = scheduler.step(v, time, z).prev_sample
        got = law.ddim(v, z, torch.tensor([time]), torch.tensor([time - 20]))
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_standardizing_latents_changes_no_picture():
    from fewstep.jobs.zoo.vae import autoencoder, standardize

    torch.manual_seed(0)
    vae = autoencoder(16, (8, 16), 4).eval()
    images = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8)
    pictures = images.float() / 127.5 - 1
    with torch.no_grad():
        before = vae.encode(pictures).latent_dist
        drawn = vae.decode(before.mean + 0.7 * before.std).sample
        standardize(vae, images)
        after = vae.encode(pictures).latent_dist
        torch.testing.assert_close(vae.decode(after.mean + 0.7 * after.std).sample, drawn, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("caption", "may"),
    [
        ("woman singer with dark skin tone", True),
        ("left pointing index", False),
        ("leftwards hand with medium skin tone", False),
        ("letter k", False),
        ("runner facing right", False),
        ("bright button", False),
        ("bright sun", True),
    ],
)
def test_only_pictures_without_sides_are_mirrored(caption, may):
    assert flippable(caption) is may


def test_mirroring_takes_the_marked_pictures_only():
    pictures = torch.rand(3, 3, 4, 4)
    out = flipped(pictures, torch.tensor([True, False, True]))
    assert torch.equal(out[1], pictures[1])
    assert torch.equal(out[0, :, :, 0], pictures[0, :, :, -1])


@pytest.mark.parametrize("count", [1, 40])
def test_corruption_changes_every_picture_and_stays_in_range(count):
    generator = torch.Generator().manual_seed(3)
    pictures = 0.5 + 0.4 * torch.sin(9 * torch.rand(count, 3, 64, 64, generator=generator).cumsum(3))
    out = corrupted(pictures, generator)
    assert out.min() >= 0
    assert out.max() <= 1
    assert ((out - pictures).abs().amax((1, 2, 3)) > 1e-2).all()


def test_overrides_are_typed_and_mistakes_named():
    config = settings(StageConfig, ["learning_rate=2e-4", "steps=7", "data=my/folder"])
    assert (config.learning_rate, config.steps, config.data) == (2e-4, 7, "my/folder")
    for wrong, told in [("step=3", "'steps'"), ("steps", "key=value"), ("steps=0", "steps"), ("ema=1", "ema")]:
        with pytest.raises(FewstepError, match=told):
            settings(StageConfig, [wrong])


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for the error where there is no GPU")
def test_asking_for_an_absent_gpu_is_told():
    with pytest.raises(FewstepError, match="device=cpu"):
        accelerator_for(StageConfig(device="cuda"))
