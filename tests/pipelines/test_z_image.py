"""Z-Image (arXiv 2511.22699): negated velocity, reversed time, its table of 8 steps, guidance that counts from 0."""

import pytest
import torch
from diffusers import ZImageTransformer2DModel

from fewstep.errors import IdentityError
from fewstep.executor import sample
from fewstep.pipelines import PipelineSampler, attach, plan_of
from fewstep.pipelines.calls import counts_from_zero
from fewstep.pipelines.identity import identity_of
from fewstep.pipelines.process import process_of
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.quant import PUBLISHED_RULES, quantize
from fewstep.solvers import ddim, grids
from fewstep.testing.mixture import Mixture
from tests.pipelines import tiny_pipelines as tiny

PUBLISHED = (1.0, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3)
CALL = tiny.CALLS["z-image"]
LAW = Mixture.gaussian([0.4], [0.3])


@pytest.fixture
def pipe(tmp_path):
    return tiny.MAKERS["z-image"](tmp_path)


def counted(pipe):
    """How many samples each call of the network had."""
    sizes = []
    pipe.transformer.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


def drawn(pipe, steps=8, **options):
    generators = [torch.Generator().manual_seed(s) for s in (3, 1)]
    given = {"prompt": ["a", "bc"], "num_inference_steps": steps, "output_type": "latent", "generator": generators}
    return pipe(**{**given, **CALL, **options}).images


def exact(sign):
    """A perfect network in this convention: lists, u = 1 - sigma, clean minus noise (times `sign`)."""

    def forward(x, t, cap_feats, return_dict=True, **_):
        found = []
        for state, u in zip(x, t.double(), strict=True):
            clean, noise = LAW.estimates(state.reshape(-1, 1).double(), float(u), 1 - float(u))
            found.append(sign * (clean - noise).reshape(state.shape).to(state))
        return (found,)

    return forward


def test_the_published_table_of_eight_steps(pipe):
    plan = plan_of(pipe, 8, **CALL)
    assert tuple(round(float(row.sigma), 4) for row in plan.rows) == PUBLISHED
    assert (float(plan.final_alpha), float(plan.final_sigma)) == (1.0, 0.0)
    process, _ = process_of(pipe)
    ours = ddim(process, Prediction("velocity"), grids.uniform(process, 8))
    for row, own in zip(plan.rows, ours.rows, strict=True):
        assert float(row.sigma) == pytest.approx(float(own.sigma), abs=1e-6)
        assert float(row.output[max(row.output)]) == pytest.approx(float(own.output[max(own.output)]), abs=1e-6)


@pytest.mark.parametrize("steps", [8, 9])
def test_as_many_forwards_as_steps(pipe, steps):
    """Older code took 9 for 8: it skipped the call at sigma 0."""
    sizes = counted(pipe)
    drawn(pipe, steps, guidance_scale=0.0)
    assert sizes == [2] * steps


def test_negation_and_reversed_time(pipe):
    """The pipeline around a perfect network draws what the executor draws with the velocity of the same law."""
    process, prediction = process_of(pipe)
    assert (process, prediction) == (RectifiedFlow(3.0), Prediction("velocity"))
    pipe.transformer.forward = exact(1)
    found = drawn(pipe, guidance_scale=0.0)
    first = torch.stack([torch.randn(found.shape[1:], generator=torch.Generator().manual_seed(s)) for s in (3, 1)])
    network = LAW.network(process, prediction)
    plan = plan_of(pipe, 8, **CALL)
    flat = lambda x, time: network(x.reshape(-1, 1).double(), time).reshape(x.shape)  # noqa: E731
    ours = sample(plan, flat, seeds=(3, 1), shape=found.shape[1:], state=first)
    torch.testing.assert_close(ours, found, atol=1e-4, rtol=1e-4)
    wanted = LAW.flow(first.reshape(-1, 1).double(), (0.0, 1.0), (1.0, 0.0)).reshape(found.shape)
    assert (found - wanted).abs().mean() < 0.3 * wanted.std()
    pipe.transformer.forward = exact(-1)
    assert (drawn(pipe, guidance_scale=0.0) - wanted).abs().mean() > wanted.std()


def test_only_z_image_counts_guidance_from_zero(tmp_path):
    for name in tiny.MAKERS:
        (tmp_path / name).mkdir()
        assert counts_from_zero(tiny.MAKERS[name](tmp_path / name)) == (name == "z-image"), name


def test_guidance_of_a_student_without_guidance_is_refused(pipe):
    """guidance_scale=1 is "without" for other pipelines; here it is a scale of 2, and the default is one of 6."""
    plan = plan_of(pipe, 8, **CALL)
    attach(pipe, plan.replace(identity=identity_of(pipe, 1.0)))
    sizes = counted(pipe)
    drawn(pipe, guidance_scale=0.0)
    assert sizes == [2] * 8
    for given in ({"guidance_scale": 1.0}, {}):
        with pytest.raises(IdentityError, match="guidance"):
            drawn(pipe, **given)


def test_ours_says_one_for_without_as_everywhere(pipe):
    plan = plan_of(pipe, 4, **CALL)
    sizes = counted(pipe)
    for ours, theirs in ((1.0, 0.0), (3.0, 2.0)):
        found = PipelineSampler(pipe, ours, dict(CALL))(plan, ["a", "bc"], [3, 1], "latent")
        torch.testing.assert_close(found, drawn(pipe, 4, guidance_scale=theirs), atol=1e-5, rtol=1e-5)
    assert sizes == [2] * 8 + [4] * 8


def test_a_row_sets_the_guidance_it_says(pipe):
    plan = plan_of(pipe, 4, **CALL)
    rows = tuple(type(row)(**{**vars(row), "guidance": 3.0}) for row in plan.rows)
    found = PipelineSampler(pipe, 2.0, dict(CALL))(plan.replace(rows=rows), ["a", "bc"], [3, 1], "latent")
    torch.testing.assert_close(found, drawn(pipe, 4, guidance_scale=2.0), atol=1e-5, rtol=1e-5)


def test_the_published_exclusions_stay_in_float(pipe):
    report = quantize(pipe.transformer, "w4a8")
    names = {row.name: row for row in report.rows if row.kind == "Linear"}
    kept = {name for name, row in names.items() if not row.quantized}
    for part in ("t_embedder.mlp.0", "cap_embedder.1", "all_x_embedder.2-1", "all_final_layer.2-1.linear"):
        assert part in kept
    assert "layers.0.adaLN_modulation.0" in kept
    assert not any("attention.to_q" in name or "feed_forward" in name for name in kept)
    drawn(pipe, 2, guidance_scale=0.0)


def test_every_pattern_of_the_exclusions_names_a_layer_of_the_true_network():
    with torch.device("meta"):
        network = ZImageTransformer2DModel()
    (rule,) = PUBLISHED_RULES["ZImageTransformer2DModel"]
    size = {
        name: module.weight.numel() for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)
    }
    for pattern in rule.patterns:
        one = type(rule)((pattern,), None, "")
        assert any(one.covers(name) for name in size), pattern
    assert sum(n for name, n in size.items() if rule.covers(name)) / sum(size.values()) == pytest.approx(
        0.021, abs=0.003
    )
