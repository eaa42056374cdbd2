"""Variants of a network: what a skipped block really does, and that nothing remains of it."""

import copy
import dataclasses

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from fewstep.denoiser import fingerprint
from fewstep.errors import FewstepError, PlanError
from fewstep.executor import sample
from fewstep.pipelines import PipelineSampler, attach, backbone_of, load_pipeline, plan_of, save_pipeline
from fewstep.prediction import Prediction
from fewstep.process import RectifiedFlow
from fewstep.solvers import ddim, grids
from fewstep.variants import applied, prunable, relative_cost, variants
from tests.pipelines import tiny_pipelines as tiny

KINDS = list(tiny.MAKERS)


class Recorded:
    """The arguments and the output of one call of the backbone inside its pipeline."""

    def __init__(self, name, folder):
        self.pipe = tiny.MAKERS[name](folder)
        self.model = backbone_of(self.pipe)
        hook = self.model.register_forward_hook(self.note, with_kwargs=True)
        plan = plan_of(self.pipe, 1, **tiny.CALLS[name])
        with torch.no_grad():
            self.state = PipelineSampler(self.pipe, 1.0, tiny.CALLS[name])(
                plan, tiny.conditions(name, 1), [0], "latent"
            )
        hook.remove()

    def note(self, _, args, kwargs, output):
        self.args, self.kwargs = copy.deepcopy((args, kwargs))

    def __call__(self, model=None):
        with torch.no_grad():
            output = (self.model if model is None else model)(*copy.deepcopy(self.args), **copy.deepcopy(self.kwargs))
        output = output[0]
        return torch.cat([o.flatten() for o in output]) if isinstance(output, list) else output


def without(block):
    """Make the block add nothing, written without the code under test: its own arguments in the order of its output."""
    order = order_of(block)

    def forward(self, x=None, *args, **kwargs):
        text = kwargs.get("encoder_hidden_states", args[0] if args else None)
        x = kwargs.get("hidden_states", x)
        return {"x": x, "(x,)": (x,), "x,text": (x, text), "text,x": (text, x)}[order]

    block.__class__ = type("Nothing", (type(block),), {"forward": forward})


def order_of(block):
    title = type(block).__name__
    if title == "Transformer2DModel":
        return "(x,)"
    if title == "CogVideoXBlock":
        return "x,text"
    return "text,x" if title in ("FluxTransformerBlock", "FluxSingleTransformerBlock", "JointTransformerBlock") else "x"


@pytest.mark.parametrize("name", KINDS)
def test_every_prunable_block_can_become_the_identity(name, tmp_path):
    case = Recorded(name, tmp_path)
    whole, names = case(), prunable(case.model)
    assert len(names) >= 2
    changed = 0
    for n, block in enumerate(names):
        with applied(case.model, f"skip:{n}"):
            skipped = case()
        twin = copy.deepcopy(case.model)
        without(twin.get_submodule(block))
        assert torch.equal(skipped, case(twin))
        changed += not torch.equal(skipped, whole)
        assert torch.equal(case(), whole)  # and it is itself again
    assert changed >= len(names) - 1  # an empty prompt may leave a text-only block without effect


def test_a_failing_call_leaves_the_model_as_it_was(tmp_path):
    case = Recorded("sd", tmp_path)
    before, whole = {n: set(vars(m)) for n, m in case.model.named_modules()}, case()
    spec = "skip:0,1+freeu:1.1,1.2,0.9,0.2+skip-scale:0.5"

    def fail(*_):
        raise RuntimeError("on purpose")

    hook = case.model.conv_out.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"), applied(case.model, spec):
        case()
    hook.remove()
    assert {n: set(vars(m)) for n, m in case.model.named_modules()} == before
    assert torch.equal(case(), whole)


def test_freeu_is_the_one_of_diffusers(tmp_path):
    case = Recorded("sd", tmp_path)
    whole = case()
    with applied(case.model, "freeu:1.3,1.4,0.9,0.2"):
        found = case()
    case.model.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)
    wanted = case()
    with applied(case.model, "freeu:1.1,1.1,1,1"):
        case()
    assert torch.equal(case(), wanted)  # what the user had switched on comes back
    case.model.disable_freeu()
    assert torch.equal(found, wanted)
    assert not torch.equal(found, whole)


def test_skip_connections_are_scaled_from_the_deepest(tmp_path):
    case = Recorded("sd", tmp_path)
    whole = case()
    with applied(case.model, "skip-scale:1"):
        assert torch.equal(case(), whole)
    last = case.model.up_blocks[-1].resnets[-1]  # the shallowest connection: output of conv_in, 16 channels

    def halve(_, args):
        x = args[0].clone()
        x[:, -16:] *= 0.5
        return (x, *args[1:])

    hook = last.register_forward_pre_hook(halve)
    wanted = case()
    hook.remove()
    with applied(case.model, "skip-scale:1,1,1,0.5"):
        assert torch.allclose(case(), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("sd", "skip:99", "blocks 0 to 6"),
        ("sd", "skip:1.5", "no prunable block"),
        ("sd", "skip:", "a kind and numbers"),
        ("sd", "skpi:1", "Did you mean 'skip'"),
        ("sd", "freeu:1,1", "b1,b2,s1,s2"),
        ("dit", "freeu:1,1,1,1", "has no FreeU"),
        ("dit", "skip-scale:1", "has no skip connections"),
        ("sd", "skip-scale:1,1", "4 skip connections"),
    ],
)
def test_bad_variants_are_named(name, spec, message, tmp_path):
    model = backbone_of(tiny.MAKERS[name](tmp_path))
    with pytest.raises(FewstepError, match=message):
        applied(model, spec)


class Toy(nn.Module):
    """Two residual blocks: x -> (1 + a)(1 + b) x."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([ToyBlock(0.5), ToyBlock(0.25)])

    def forward(self, x, time):
        for block in self.blocks:
            x = block(x)
        return x


class ToyBlock(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return x + self.gain * x


def plan_with(*networks):
    return varied(
        ddim(RectifiedFlow(), Prediction("velocity"), grids.uniform(RectifiedFlow(), len(networks))), *networks
    )


def test_the_executor_runs_the_variant_of_each_row():
    model = Toy()
    plan = plan_with("main", "skip:1", "skip:0,1", "other")
    networks = variants(plan, model, model, others={"other": lambda x, t: 0 * x})
    x = torch.ones(1, 1)
    found = sample(plan, networks, seeds=[0], shape=(1,), state=x)
    factor = 1.0
    for gain in (1.875, 1.5, 1.0, 0.0):  # velocity = gain x, steps of 1/4
        factor *= 1 - gain / 4
    assert torch.allclose(found, x * factor, atol=1e-6)
    assert relative_cost(plan, model) == 1 + 0.5 + 0 + 1
    with pytest.raises(FewstepError, match="blocks 0 to 1"):
        variants(plan_with("skip:2"), model, model)


def varied(plan, *networks):
    rows = (dataclasses.replace(row, network=name) for row, name in zip(plan.rows, networks, strict=True))
    return plan.replace(rows=tuple(rows))


def pipe_part(pipe):
    return "unet" if hasattr(pipe, "unet") else "transformer"


@pytest.mark.parametrize("name", ["sd", "flux", "wan"])
def test_a_pipeline_runs_the_variants_of_its_plan_and_keeps_them_on_disk(name, tmp_path):
    pipe = tiny.MAKERS[name](tmp_path)
    model = backbone_of(pipe)
    plan = plan_of(pipe, 2, guidance_scale=1.0, **tiny.CALLS[name])
    mixed = varied(plan, "main", "skip:1")
    generate = PipelineSampler(pipe, 1.0, tiny.CALLS[name])
    calls = []
    hook = model.get_submodule(prunable(model)[1]).register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        plain = generate(plan, ["a"], [3], "latent")
        assert len(calls) == 2
        wanted = generate(mixed, ["a"], [3], "latent")
    hook.remove()
    assert not torch.equal(plain, wanted)
    assert not any("forward" in vars(m) for m in model.modules())

    attach(pipe, mixed)
    options = dict(num_inference_steps=2, guidance_scale=1.0, output_type="latent", **tiny.CALLS[name])

    def draw(p):
        out = p(["a"], generator=torch.Generator().manual_seed(3), **options)
        return out.frames if hasattr(out, "frames") else out.images

    assert torch.equal(draw(pipe), wanted)
    case = Recorded(name, tmp_path)  # outside of its pipeline the network is whole, also while the plan is attached
    case.model.load_state_dict(model.state_dict())
    assert torch.equal(case(model), case())
    save_pipeline(pipe, tmp_path / "out")
    assert torch.allclose(draw(load_pipeline(tmp_path / "out")), wanted, atol=1e-6)
    plainly = DiffusionPipeline.from_pretrained(tmp_path / "out")
    plainly.set_progress_bar_config(disable=True)
    assert torch.allclose(draw(plainly), wanted, atol=1e-6)
    assert not plainly.components[pipe_part(pipe)]._forward_hooks
    scheduler = plainly.scheduler
    scheduler.set_timesteps(2)  # by hand, where nobody runs the variants
    scheduler.step(torch.zeros(1, 4), scheduler.timesteps[0], torch.zeros(1, 4))
    with pytest.raises(PlanError, match="was not run"):
        scheduler.step(torch.zeros(1, 4), scheduler.timesteps[1], torch.zeros(1, 4))
    attach(pipe, plan)
    assert torch.equal(draw(pipe), plain)


def test_an_interrupted_pipeline_leaves_its_network_whole(tmp_path):
    case = Recorded("sd", tmp_path)
    whole = case()
    plan = varied(plan_of(case.pipe, 2, **tiny.CALLS["sd"]), "skip:0", "skip:1")
    attach(case.pipe, plan)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.pipe("a", num_inference_steps=2, callback_on_step_end=stop, **tiny.CALLS["sd"])
    assert torch.equal(case(), whole)
    twin = copy.deepcopy(case.model)
    assert torch.equal(case(twin), whole)


def test_compiled_networks_have_the_same_variants_and_identity(tmp_path):
    case = Recorded("dit", tmp_path)
    with applied(case.model, "skip:1"):
        skipped = case()
    compiled = torch.compile(case.model, backend="eager")
    assert fingerprint(compiled) == fingerprint(case.model)
    whole = case(compiled)
    with applied(compiled, "skip:1"):
        assert torch.allclose(case(compiled), skipped, atol=1e-6)
    assert torch.equal(case(compiled), whole)
    assert torch.allclose(whole, case(), atol=1e-6)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_a_row_sets_the_guidance_of_its_own_call(name, tmp_path):
    """Guidance 3, 5, 3 by rows equals the same plan with the outputs combined by hand; the call's own scale stays."""
    pipe = tiny.MAKERS[name](tmp_path)
    call = tiny.CALLS[name]
    plan = plan_of(pipe, 3, guidance_scale=3.0, **call)
    rows = [dataclasses.replace(row, guidance=5.0 if k == 1 else None) for k, row in enumerate(plan.rows)]
    seen = []
    attach(pipe, plan.replace(rows=tuple(rows)))
    kinds = tiny.conditions(name, 2)
    given = {"prompt": kinds, "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent", **call}
    hook = backbone_of(pipe).register_forward_hook(lambda *_: seen.append(pipe.guidance_scale))
    changed = pipe(**given, generator=[torch.Generator().manual_seed(s) for s in (0, 1)]).images
    hook.remove()
    assert seen == [3.0, 5.0, 3.0]
    attach(pipe, plan)
    plain = pipe(**given, generator=[torch.Generator().manual_seed(s) for s in (0, 1)]).images
    assert not torch.equal(changed, plain)


def test_guidance_that_a_pipeline_cannot_change_is_refused(tmp_path):
    pipe = tiny.MAKERS["sd"](tmp_path)
    plan = plan_of(pipe, 2)
    rows = tuple(dataclasses.replace(row, guidance=1.0) for row in plan.rows)
    with pytest.raises(PlanError, match="cannot change its guidance"):
        attach(pipe, plan.replace(rows=rows))


def test_a_call_that_broke_off_does_not_leave_its_guidance_to_the_next(tmp_path):
    pipe, call = tiny.MAKERS["sd"](tmp_path), tiny.CALLS["sd"]
    plan = plan_of(pipe, 3, guidance_scale=3.0, **call)
    rows = tuple(dataclasses.replace(row, guidance=5.0 if k == 1 else None) for k, row in enumerate(plan.rows))
    attach(pipe, plan.replace(rows=rows))

    def draw(guidance, **options):
        generator = torch.Generator().manual_seed(0)
        given = {"num_inference_steps": 3, "guidance_scale": guidance, "output_type": "latent", "generator": generator}
        return pipe("a", **given, **call, **options).images

    def broken(*_):
        raise KeyboardInterrupt

    wanted = draw(2.0)
    with pytest.raises(KeyboardInterrupt):
        draw(9.0, callback_on_step_end=broken)
    assert torch.equal(draw(2.0), wanted)
