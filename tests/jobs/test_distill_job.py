"""`fewstep distill` end to end on tiny random-weight pipelines."""

import json
import time

import pytest
import torch
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.distillation.chain import evenly
from fewstep.distillation.method import Method, preset
from fewstep.distillation.roles import Critic, TargetNetwork
from fewstep.errors import FewstepError
from fewstep.files import read_json, read_tensors
from fewstep.jobs.distill import run
from fewstep.jobs.distill.context import DistillContext
from fewstep.jobs.distill.measure import different
from fewstep.jobs.distill.training import train
from fewstep.pipelines import PipelineSampler, backbone_of, load_pipeline, save_pipeline
from fewstep.pipelines.conditions import conditions_of
from fewstep.quant.layer import QuantLayer
from fewstep.recipes.loader import load
from fewstep.runs import Run
from fewstep.transition import noise_like
from tests import processes
from tests.pipelines import tiny_pipelines as tiny

SMALL = [
    "steps=2", "teacher.steps=4", "teacher.solver=ddim", "train.steps=3", "train.batch=4", "data.count=8",
    "evaluation.items=20", "evaluation.reference=40", "evaluation.seeds=[7]", "evaluation.pictures=2", "batch=500",
]  # fmt: skip
SEEN = []


def regress(guidance):
    """Regression of the guided teacher on noised data."""

    def term(networks, batch, made, generator):
        SEEN.append(batch)
        process = networks.student.process
        t = process.noisiest * (0.01 + 0.98 * torch.rand(batch.size, generator=generator, dtype=torch.float64))
        x = process.add_noise(batch.clean, noise_like(tuple(batch.clean.shape), generator, batch.clean), t)
        with torch.no_grad():
            wanted = networks.teacher(x, t, batch.condition)
            if guidance != 1:
                within, without = networks.teacher.both(x, t, batch.condition, batch.negative)
                wanted = without + guidance * (within - without)
            wanted = wanted + 0.1  # something to learn
        return (networks.student(x, t, batch.condition) - wanted).square().mean(), {"size": x.square().mean()}

    return term


def follow(networks, batch, made, generator):
    """Some loss of a critic."""
    t = torch.full((batch.size,), 0.5 * networks.student.process.noisiest, dtype=torch.float64)
    return networks.critic(batch.clean, t, batch.condition).square().mean(), {}


@preset("test-regression")
def regression(process, *, steps: int = 4, guidance: float = 1.0, two: bool = False, needs: str = "data", critic=False):
    """Regression of the teacher, for tests."""
    asked = {needs} | ({"guidance"} if guidance != 1 else set())
    follows = Critic(follow) if critic else None
    parts = {"terms": {"match": regress(guidance)}, "target": TargetNetwork(0.9), "needs": frozenset(asked)}
    return Method(steps=evenly(process, steps, 0.0), two_times=two, critic=follows, **parts)


def settings(kind, folder, *more):
    save_pipeline(tiny.MAKERS[kind](folder), folder / "model")
    call = json.dumps(tiny.CALLS.get(kind, {}))
    return [f"model={folder / 'model'}", f"call={call}", "method=test-regression", *SMALL, *more]


def execute(folder, overrides):
    recipe = load("distill", overrides)
    with Run(folder, recipe.plain(), quiet=True) as directory:
        return run(recipe, directory)


@pytest.mark.parametrize(
    ("kind", "guidance", "two"), [("sd", 2.0, True), ("dit", 3.0, False), ("ddim", 1.0, False), ("sd3", 1.0, True)]
)
def test_a_distillation_leaves_a_pipeline_that_runs_by_its_plan(kind, guidance, two, tmp_path):
    overrides = settings(kind, tmp_path, f"guidance={guidance}", f"options.two={str(two).lower()}")
    report = execute(tmp_path / "run", overrides)
    assert report.read_text().count("<section") >= 5
    assert ("item 1<" in report.read_text()) == (kind == "ddim")  # the others name their conditions
    results = read_json(tmp_path / "run" / "results.json")
    assert set(results["evaluation"]["systems"]) == {"student", "teacher", "teacher, as few steps"}
    assert results["training"]["steps"] == 3
    again = load_pipeline(tmp_path / "run" / "artifacts" / "pipeline")
    assert again.scheduler.plan.steps == 2
    call = tiny.CALLS.get(kind, {})
    some = tiny.conditions(kind, 2)
    drawn = PipelineSampler(again, 1.0, call)(again.scheduler.plan, some, [0, 1])
    assert drawn.isfinite().all()
    teacher = load_pipeline(tmp_path / "model")
    # the training moved the student, and never the teacher
    kept = read_tensors(tmp_path / "run" / "artifacts" / "student" / "student.safetensors")
    own = backbone_of(teacher).state_dict()
    name = next(n for n in own if n.endswith("weight"))
    assert not torch.equal(kept[("inner." if two else "") + name], own[name].float())


def test_the_students_pictures_are_those_that_its_saved_pipeline_draws(tmp_path):
    execute(tmp_path / "run", settings("sd", tmp_path, "evaluation.conditions=[a b, c d]"))
    measured = read_tensors(tmp_path / "run" / "artifacts" / "images" / "student.safetensors")["images"]
    pipe = load_pipeline(tmp_path / "run" / "artifacts" / "pipeline")
    items = ["a b", "c d"] * 10
    again = PipelineSampler(pipe, 1.0, {}, 20)(pipe.scheduler.plan, items, [7 * 1_000_003 + i for i in range(20)])
    assert (measured[0].float() / 255 - again).abs().max() < 0.01


def test_the_report_shows_different_conditions():
    labels = [str(i % 10) for i in range(100)]
    assert len({labels[i] for i in different(labels, 8)}) == 8
    assert different(labels[:4] * 3, 8) == [0, 1, 2, 3]
    assert different([str(i) for i in range(100)], 4) == [0, 25, 50, 75]
    assert different(labels, 0) == []


@pytest.mark.parametrize("kind", ["dit", "sd3"])
def test_a_lora_student_shares_the_base_of_its_teacher(kind, tmp_path):
    """Trained as adapters on one base, whose weights stay; its pipeline draws what was measured."""
    overrides = settings(
        kind, tmp_path, "guidance=1", "train.lora=2", "train.learning_rate=0.01", "options.critic=true",
        "train.gradient_checkpointing=true",
    )  # fmt: skip
    execute(tmp_path / "run", overrides)
    kept = read_tensors(tmp_path / "run" / "artifacts" / "student" / "student.safetensors")
    assert all("lora_" in name for name in kept)
    assert any(bool(value.any()) for name, value in kept.items() if "lora_B" in name)
    memory = read_json(tmp_path / "run" / "results.json")["training"]["memory"]
    assert memory["critic: weights"] < 0.6 * memory["transformer: frozen"]
    measured = read_tensors(tmp_path / "run" / "artifacts" / "images" / "student.safetensors")["images"]
    few = read_tensors(tmp_path / "run" / "artifacts" / "images" / "teacher--as-few-steps.safetensors")["images"]
    assert not torch.equal(measured, few)
    pipe = load_pipeline(tmp_path / "run" / "artifacts" / "pipeline")
    call = tiny.CALLS.get(kind, {})
    items = [0, 1, 2] if kind == "dit" else ["x"] * 3
    PipelineSampler(pipe, 1.0, call)(pipe.scheduler.plan, items, [0, 1, 2])
    teacher = backbone_of(load_pipeline(tmp_path / "model")).state_dict()
    own = backbone_of(pipe).state_dict()
    if kind == "sd3":  # base and adapter lie side by side
        assert (tmp_path / "run" / "artifacts" / "pipeline" / "adapters").exists()
        assert all(torch.equal(value, own.get(name, own.get(name.replace(".weight", ".base_layer.weight").replace(
            ".bias", ".base_layer.bias")))) for name, value in teacher.items())  # fmt: skip
    else:
        assert any(not torch.equal(value, own[name]) for name, value in teacher.items())


def test_a_student_trained_through_its_rounding_is_stored_in_low_bits(tmp_path):
    overrides = settings("dit", tmp_path, "guidance=1", "train.quantize=w8a8", "train.q_sched=3", "teacher.steps=2")
    execute(tmp_path / "run", overrides)
    pipe = load_pipeline(tmp_path / "run" / "artifacts" / "pipeline")
    assert any(isinstance(module, QuantLayer) for module in backbone_of(pipe).modules())
    assert pipe.scheduler.plan.identity.quantization != "none"
    assert (tmp_path / "run" / "units" / "q-sched.json").exists()
    assert not (tmp_path / "run" / "artifacts" / "scratch").exists()
    measured = read_tensors(tmp_path / "run" / "artifacts" / "images" / "student.safetensors")["images"]
    labels = conditions_of(pipe, "", 20)
    again = PipelineSampler(pipe, 1.0, {}, 20)(pipe.scheduler.plan, labels, [7_000_021 + i for i in range(20)])
    assert (measured[0].float() / 255 - again).abs().max() < 0.02


@pytest.mark.parametrize("kind", ["dit", "sd"])
def test_students_share_out_the_conditions(kind, tmp_path):
    """Each learns from its own conditions alone, and one saved pipeline sends every sample to its owner."""
    SEEN.clear()
    few = "data.conditions=" + ("[0, 1, 2, 3]" if kind == "dit" else "[a b, c, d e f, g h]")
    more = ("guidance=1", "train.students=2", "train.learning_rate=0.01", few)
    execute(tmp_path / "run", settings(kind, tmp_path, *more))
    name = "class_labels" if kind == "dit" else "encoder_hidden_states"
    seen = [batch.condition[name] for batch in SEEN]
    # a look at one batch before the training, then three steps, of each student
    first, second = torch.cat(seen[:3]).unique(dim=0), torch.cat(seen[-3:]).unique(dim=0)
    assert not any(torch.equal(a, b) for a in first for b in second)
    pipe = load_pipeline(tmp_path / "run" / "artifacts" / "pipeline")
    network = backbone_of(pipe)
    assert len(network.students) == 2
    states = [s.state_dict() for s in network.students]
    assert any(not torch.equal(states[0][k], states[1][k]) for k in states[0])
    for k, owned in enumerate((first, second)):
        assert set(network.owners(owned).tolist()) == {k}
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mixed = torch.stack([second[0], first[0]])
    time = torch.tensor([500.0, 500.0])
    with torch.no_grad():
        both = network(x, timestep=time, **{name: mixed}, return_dict=False)[0]
        apart = [network.students[1 - i](x[i : i + 1], timestep=time[:1], **{name: mixed[i : i + 1]}) for i in (0, 1)]
    torch.testing.assert_close(both, torch.cat([a.sample for a in apart]), atol=1e-5, rtol=1e-5)


def test_batches_pair_states_with_their_conditions(tmp_path):
    """The teacher's trajectories come with the prompt that they were drawn from."""
    SEEN.clear()
    more = ("options.needs=store", "data.states=2", "guidance=1", f"data.folder={tmp_path / 'store'}")
    execute(tmp_path / "run", settings("dit", tmp_path, *more))
    batch = SEEN[-1]
    assert batch.path.shape[1] == 3
    assert batch.times.tolist() == sorted(batch.times.tolist(), reverse=True)
    assert batch.times[-1] == 0
    torch.testing.assert_close(batch.path[:, -1], batch.clean)
    header = read_json(tmp_path / "store" / "header.json")
    assert header["guidance"] == 1.0
    assert header["count"] == 8
    assert batch.condition["class_labels"].max() < len(set(header["conditions"]))


def test_mistakes_are_told_before_anything_is_trained(tmp_path):
    for wrong, told in [
        ("method=dmd3", "unknown method"),
        ("options.gidance=2", "no option"),
        ("train.stepz=2", "'steps'"),
        ("steps=0", "steps"),
    ]:
        with pytest.raises(FewstepError, match=told):
            load("distill", [*SMALL, "method=test-regression", wrong])
    with pytest.raises(FewstepError, match="guidance"):
        execute(tmp_path / "run", settings("ddim", tmp_path, "guidance=2.0"))


@pytest.mark.parametrize("how", ["train.lora=2", "options.two=true", "train.quantize=w8a8"])
def test_sheets_are_drawn_while_any_student_trains_and_change_nothing(how, tmp_path):
    base = settings("dit", tmp_path, "guidance=1", how)
    kept = []
    for name, every in (("drawing", 2), ("not", 0)):
        recipe = load("distill", [*base, f"train.pictures_every={every}"])
        with Run(tmp_path / name, recipe.plain(), quiet=True) as directory:
            (student,) = train(DistillContext.open(recipe, directory))
        kept.append(student["tensors"])
    assert (tmp_path / "drawing" / "artifacts" / "samples" / "000002.png").stat().st_size > 0
    assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])


def test_kinds_of_students_that_do_not_go_together_are_refused(tmp_path):
    for how in (
        ["train.lora=2", "train.quantize=w8a8"],
        ["train.lora=2", "options.two=true"],
        ["train.students=2", "train.lora=1"],
    ):
        with pytest.raises(FewstepError, match="student"):
            execute(tmp_path / str(len(how[0])), settings("dit", tmp_path, "guidance=1", *how))


def test_the_command_lists_every_method():
    shown = CliRunner().invoke(app, ["distill"])
    assert shown.exit_code == 0
    assert "test-regression" in shown.output


@pytest.mark.slow
@pytest.mark.thorough  # test_distill_processes kills one too, and compares the weights
def test_a_killed_distillation_ends_in_the_very_bytes_of_an_undisturbed_one(tmp_path):
    overrides = settings("dit", tmp_path, "train.steps=30", "train.checkpoint_every=3")

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = processes.start(execute, broken, overrides, out=tmp_path / "told.txt")
    mark = broken / "artifacts" / "scratch" / "train" / "checkpoint" / "progress.json"
    while not mark.exists() and process.is_alive():
        time.sleep(0.002)
    process.kill()
    process.join()
    assert 0 < read_json(mark)["step"] < 30, "the run ended before it could be killed"
    execute(broken, overrides)
    execute(whole, overrides)
    files = [place / "artifacts" / "student" for place in (whole, broken)]
    a, b = (read_tensors(f / "student.safetensors") for f in files)
    assert all(torch.equal(a[key], b[key]) for key in a)
    histories = [read_json(f / "record.json")["history"] for f in files]
    assert histories[0] == histories[1]
