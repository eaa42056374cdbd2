"""From a self-supervised encoder over RAE and SVG to a flow in their latents, and to its MeanFlow student."""

import numpy as np
import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.jobs.distill import run as distil
from fewstep.jobs.zoo import run
from fewstep.jobs.zoo.dit import flow_loss
from fewstep.jobs.zoo.encoder import EncoderConfig, contrastive, view
from fewstep.latents import load_encoder, load_latent
from fewstep.pipelines import load_pipeline, process_of
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.recipes import load
from fewstep.runs import Run

SMALL = ["size=16", "steps=2", "batch=8", "warmup=0", "device=cpu"]
TINY = ["width=16", "layers=1", "heads=2"]


def train(root):
    images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    np.savez(root / "shapes.npz", images=images, captions=np.array(["a", "b", "c"] * 8))
    own = [f"data={root / 'shapes.npz'}", *SMALL]
    run("encoder", [*own, *TINY, "patch=4", "projector=16"], root / "encoder")
    for name in ("rae", "svg"):
        more = [] if name == "rae" else ["residual_channels=3", "residual_width=16", "residual_layers=1"]
        run(name, [*own, f"encoder={root / 'encoder'}", "channels=[8,8,8]", *more], root / name)
    flow = [*own, *TINY, "objective=flow"]
    run("dit", [*flow, f"vae={root / 'rae'}"], root / "dit-rae")
    run("dit", [*flow, f"vae={root / 'svg'}", "shift=3"], root / "dit-svg")
    run("dit", [*flow, "vae=pixels", "patch=4"], root / "dit-pixels")
    shape = ["channels=[16,32]", "text_width=16", "text_layers=1"]
    run("teacher", [*own, f"vae={root / 'svg'}", *shape], root / "teacher")


@pytest.fixture(scope="module")
def root(once):
    return once("latent-stages", train)


def test_the_encoder_stage_leaves_what_the_others_read(root):
    encoder, rae, svg = load_encoder(root / "encoder"), load_latent(root / "rae"), load_latent(root / "svg")
    assert (rae.shape, svg.shape) == ((16, 4, 4), (19, 4, 4))
    for latent in (rae, svg):  # the published code can lose the trained weights on the way: they must be these
        mine = latent.module.encoder.state_dict()
        assert all(torch.equal(mine[name], tensor) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("name", ["dit-rae", "dit-svg", "dit-pixels"])
def test_pipelines_in_any_latent_draw_in_plain_diffusers(root, name):
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(root / name, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    images = pipe([0, 2], 2.0, torch.Generator().manual_seed(0), num_inference_steps=3, output_type="pt").images
    assert images.shape == (2, 3, 16, 16)
    assert torch.isfinite(images).all()


def test_text_to_image_pipelines_take_features_as_well(root):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(root / "teacher", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(["a", "b"], num_inference_steps=2, output_type="pt").images.shape == (2, 3, 16, 16)


def test_a_flow_tells_its_process_and_its_shift(root):
    for name, shift in (("dit-rae", 1.0), ("dit-svg", 3.0)):
        process, prediction = process_of(load_pipeline(root / name))
        assert process == RectifiedFlow(shift, 1000.0)
        assert prediction == Prediction("velocity")


def test_pixels_are_standardised_by_the_training_pictures(root):
    with np.load(root / "shapes.npz") as arrays:
        x = torch.tensor(arrays["images"]).permute(0, 3, 1, 2) / 255
    z = load_latent(root / "dit-pixels").encode(x)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(3), atol=0.01, rtol=0)


@pytest.mark.parametrize("method", ["mean_flow", "mf_rae"])
def test_students_are_distilled_in_features(root, method, tmp_path):
    small = ["steps=1", "teacher.steps=4", "teacher.solver=ddim", "train.steps=4", "train.batch=4", "data.count=8"]
    small += ["evaluation.items=20", "evaluation.reference=40", "evaluation.seeds=[7]", "evaluation.pictures=0"]
    stages = ["options={stages: [0.25, 0.75]}"] if method == "mf_rae" else []
    recipe = load("distill", [f"model={root / 'dit-rae'}", f"method={method}", "guidance=1", *small, *stages])
    with Run(tmp_path / "run", recipe.plain(), quiet=True) as started:
        distil(recipe, started)
    pipe = load_pipeline(tmp_path / "run" / "artifacts" / "pipeline")
    assert type(pipe.vae).__name__ == "FeatureAutoencoder"
    images = pipe([0, 1], 1.0, torch.Generator().manual_seed(0), num_inference_steps=1, output_type="pt").images
    assert images.shape == (2, 3, 16, 16)
    assert torch.isfinite(images).all()


def test_the_contrastive_loss_is_what_the_paper_defines():
    rng, heat, total = np.random.default_rng(0), 0.3, 0.0
    a, b = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    every = [z / np.sqrt((z**2).sum()) for z in (*a, *b)]
    for i in range(10):
        own = np.exp(every[i] @ every[(i + 5) % 10] / heat)
        total -= np.log(own / sum(np.exp(every[i] @ every[k] / heat) for k in range(10) if k != i)) / 10
    assert float(contrastive(torch.tensor(a), torch.tensor(b), heat)) == pytest.approx(total)


def test_views_differ_and_without_changes_are_the_picture():
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    still = EncoderConfig(turn=0, zoom=0, move=0, contrast=0)
    torch.testing.assert_close(view(x, still, torch.Generator().manual_seed(1)), x, atol=1e-5, rtol=0)
    generator = torch.Generator().manual_seed(1)
    assert (view(x, EncoderConfig(), generator) - view(x, EncoderConfig(), generator)).abs().mean() > 0.01


def test_the_flow_loss_vanishes_for_the_exact_velocity_of_one_point():
    """Data at one point: the velocity is (x_t - x_0) / t, and the times that the network is told are 1000 t."""
    point, times = torch.tensor([0.5, -1.0]).reshape(1, 2, 1, 1), []

    def network(x, time, labels):
        times.append(time / 1000)
        return (x - point) / (time / 1000)[:, None, None, None]

    given = {"clean": point.expand(4000, 2, 1, 1), "labels": torch.zeros(4000)}
    assert float(flow_loss(network, given, 3.0, torch.Generator().manual_seed(0))) < 1e-4
    # shifted times: the median of u is 1/2, of t therefore 3/4
    assert float(times[0].median()) == pytest.approx(0.75, abs=1e-3)


def test_pictures_that_are_no_whole_tokens_are_refused(root, tmp_path):
    own = [f"data={root / 'shapes.npz'}", "size=18", *SMALL[1:]]
    with pytest.raises(FewstepError, match="whole number of tokens"):
        run("rae", [*own, f"encoder={root / 'encoder'}", "channels=[8,8,8]"], tmp_path / "rae")
