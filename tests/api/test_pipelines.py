"""The verbs on pipelines: what is given stays as it is, what comes out is what the commands make."""

import inspect

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

import fewstep as fs
from fewstep import recipes
from fewstep.errors import FewstepError, IdentityError
from fewstep.pipelines.scheduler import PlanScheduler
from fewstep.quant import QuantLayer
from tests.pipelines import tiny_pipelines

PROMPTS = ["a b", "c d e"]


@pytest.fixture
def pipe(tmp_path):
    pipe = tiny_pipelines.one_block_diffusion(tmp_path / "tokens")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def state(pipe):
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    weights = {(n, k): v.clone() for n, part in parts.items() for k, v in part.state_dict().items()}
    flags = [(p.requires_grad, part.training) for part in parts.values() for p in part.parameters()]
    return weights, flags, {name: id(part) for name, part in pipe.components.items()}, dict(pipe.scheduler.config)


def same(before, after):
    return before[1:] == after[1:] and all(torch.equal(v, after[0][k]) for k, v in before[0].items())


def dim(images, prompts):
    return -images.mean((1, 2, 3))


def test_a_quantized_pipeline_is_a_new_one_and_says_what_became_of_every_layer(pipe, tmp_path):
    before = state(pipe)
    low = fs.quantize(pipe, "w4a8", conditions=PROMPTS, items=2, steps=2, progress=False)
    assert same(before, state(pipe))
    assert low is not pipe
    assert any(isinstance(m, QuantLayer) for m in low.unet.modules())
    assert not any(isinstance(m, QuantLayer) for m in pipe.unet.modules())
    report = fs.quant_report(low)
    assert report.scheme == "w4a8"
    assert report.disk_after < 0.5 * report.disk_before
    layers = {name for name, m in pipe.unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    told = [row.name for row in report.rows]
    assert all(any(name == known or name.startswith(f"{known}.") for name in told) for known in layers)
    opened = fs.load(fs.save(low, tmp_path / "low"))
    read = fs.quant_report(opened)
    quantized = lambda report: {(r.name, r.bits, r.weights, r.bytes_after) for r in report.rows if r.quantized}  # noqa: E731
    assert quantized(read) == quantized(report)
    assert (read.disk_after, read.scheme) == (report.disk_after, report.scheme)


def test_in_place_the_pipeline_itself_gets_the_low_bit_network(pipe):
    plan = fs.plan_of(pipe, 2)
    fs.attach(pipe, plan)
    made = fs.quantize(pipe, "w8a8", conditions=PROMPTS, items=2, steps=2, inplace=True, progress=False)
    assert made is pipe
    assert isinstance(pipe.scheduler, PlanScheduler)
    assert fs.generate(pipe, PROMPTS[0]).shape[0] == 1  # its plan belongs to the new weights


def test_samples_are_those_of_every_pair_of_condition_and_seed(pipe):
    plan = fs.plan_of(pipe, 3, solver="ddim")
    together = fs.generate(pipe, PROMPTS, seeds=range(3), plan=plan, batch=4)
    alone = torch.cat([fs.generate(pipe, [p], seeds=[s], plan=plan) for p in PROMPTS for s in range(3)])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)
    assert together.shape[0] == 6
    pictures = fs.generate(pipe, PROMPTS[0], plan=plan, output_type="pil")
    assert pictures[0].size == (together.shape[3], together.shape[2])
    latent = fs.generate(pipe, PROMPTS[0], plan=plan, output_type="latent")
    assert latent.shape[1] == pipe.unet.config.in_channels


def test_a_plan_of_another_network_is_refused(pipe):
    plan = fs.plan_of(pipe, 2)
    fs.attach(pipe, plan)
    owned = pipe.scheduler.plan
    assert owned.identity.model is not None
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.5)
    with pytest.raises(IdentityError):
        fs.generate(pipe, PROMPTS, plan=owned)


def test_tuning_reaches_for_a_reward_of_ones_own_and_leaves_the_pipeline_alone(pipe):
    before = state(pipe)
    plan = fs.plan_of(pipe, 2)
    tuned = fs.tune(pipe, prompts=PROMPTS, rewards=[dim], plan=plan, budget=20, blocks=[1], progress=False)
    assert same(before, state(pipe))
    search = tuned.origin["search"]
    assert search["alignment"] == "given:dim"
    assert search["jaq"] >= search["jaq_untuned"]
    ours, theirs = (fs.generate(pipe, PROMPTS, seeds=[100_003], plan=p).mean() for p in (tuned, plan))
    assert tuned.steps == plan.steps
    assert ours <= theirs + 1e-3
    with pytest.raises(FewstepError, match="one number per image"):
        fs.tune(pipe, prompts=PROMPTS, rewards=[lambda images, prompts: images.mean()], budget=20, progress=False)
    with pytest.raises(FewstepError, match="not a reward"):
        fs.tune(pipe, prompts=PROMPTS, rewards=[3], budget=20, progress=False)


def test_a_search_gives_a_plan_of_this_network_and_goes_on_in_its_folder(pipe, tmp_path):
    before = state(pipe)
    ask = lambda: fs.search(  # noqa: E731
        pipe, 3, method="gits", items=2, conditions=PROMPTS, teacher_steps=6, out=tmp_path / "run", progress=False
    )
    plan = ask()
    assert same(before, state(pipe))
    assert plan.steps == 3
    assert plan.identity.model is not None
    assert ask() == plan
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.5)
    with pytest.raises(FewstepError, match="network"):
        ask()  # the folder is about other weights


def test_diagnosis_says_where_the_plan_errs(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.jobs.inspect.job.LEVELS", 2)
    before = state(pipe)
    found = fs.diagnose(pipe, 2, samples=2, probes=1, fine=1, prompts=PROMPTS, out=tmp_path / "run", progress=False)
    assert same(before, state(pipe))
    assert {"levels", "plans"} <= set(found)
    assert (tmp_path / "run" / "report.html").exists()


def test_a_student_pipeline_follows_its_plan_and_plain_diffusers_opens_it(pipe, tmp_path):
    before = state(pipe)
    student = fs.distill(
        pipe, "lcm", steps=2, conditions=PROMPTS, train_steps=2, batch=2, progress=False,
        settings={"data.count": 4, "teacher.steps": 4},
    )  # fmt: skip
    assert same(before, state(pipe))
    assert not all(torch.equal(a, b) for a, b in zip(student.unet.parameters(), pipe.unet.parameters(), strict=True))
    images = fs.generate(student, PROMPTS[0], seeds=[5])
    fs.save(student, tmp_path / "student")
    opened = DiffusionPipeline.from_pretrained(tmp_path / "student")
    opened.set_progress_bar_config(disable=True)
    theirs = opened(PROMPTS[0], num_inference_steps=2, guidance_scale=1.0, output_type="pt",
                    generator=[torch.Generator().manual_seed(5)]).images  # fmt: skip
    torch.testing.assert_close(theirs, images, atol=1e-5, rtol=0)


def test_names_and_defaults_are_those_of_the_commands():
    pairs = {
        fs.quantize: ("quantize", {"conditions": "calibration.conditions", "items": "calibration.items"}),
        fs.search: ("schedule", {
            "method": "search.method", "budget": "search.budget", "items": "search.items", "solver": "search.solver",
            "conditions": "search.conditions", "seed": "search.seed", "teacher_steps": "teacher.steps",
        }),
        fs.tune: ("q-sched", {
            "prompts": "search.prompts", "family": "search.family", "searcher": "search.searcher",
            "budget": "search.budget", "count": "search.count", "blocks": "search.seeds", "seed": "search.seed",
            "objective": "search.objective", "teacher": "evaluation.teacher",
        }),
        fs.distill: ("distill", {
            "data": "data.source", "conditions": "data.conditions", "train_steps": "train.steps",
            "batch": "train.batch", "seed": "train.seed", "learning_rate": "train.learning_rate",
        }),
    }  # fmt: skip
    for verb, (kind, places) in pairs.items():
        needed = {"scheme": "w4a8"} if kind == "quantize" else {}
        defaults = recipes.resolve({"kind": kind, "model": "m", **needed}).plain()
        own = {"out", "progress", "settings", "inplace", "scheme", "rewards", "options"}
        for name, parameter in inspect.signature(verb).parameters.items():
            place = places.get(name, name)
            value = defaults
            for part in place.split("."):
                value = value.get(part, own) if isinstance(value, dict) else value
            if parameter.default is inspect.Parameter.empty or name in own or value is own or isinstance(value, dict):
                continue
            given = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            assert given == value, (verb.__name__, name)
        assert set(places) <= set(inspect.signature(verb).parameters)


def test_an_unknown_setting_is_named():
    with pytest.raises(FewstepError, match=r"search\.budgets"):
        fs.search(tiny(), 3, settings={"search.budgets": 3})


def tiny():
    import tempfile
    from pathlib import Path

    return tiny_pipelines.stable_diffusion(Path(tempfile.mkdtemp()) / "tokens")


def test_former_names_work_with_a_warning_and_only_public_names_are_listed(monkeypatch):
    assert {"Any", "importlib", "annotations", "warnings"} & set(dir(fs)) == set()
    assert set(fs.__all__) <= set(dir(fs))
    with pytest.warns(DeprecationWarning, match=r"fewstep\.load"):
        assert callable(fs.load_pipeline)
    with pytest.raises(AttributeError, match="nothing"):
        fs.nothing  # noqa: B018
    names = {}
    exec("from fewstep import *", names)
    assert set(fs.__all__) == names.keys() - {"__builtins__"}
    monkeypatch.delattr(fs, "solvers", raising=False)  # as before anybody has imported it
    assert callable(fs.solvers.ddim)
