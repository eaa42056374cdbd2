"""`fewstep align` and `fs.align` on a tiny random-weight pipeline: what is raised, what is kept, what is refused."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

import fewstep as fs
from fewstep.alignment.presets import ALIGNMENTS
from fewstep.cli import known
from fewstep.distillation.chain import ancestral_steps, evenly
from fewstep.errors import FewstepError, NonFiniteError
from fewstep.files import read_json
from fewstep.jobs.align.context import AlignContext
from fewstep.jobs.align.recipe import AlignRecipe
from fewstep.jobs.align.training import best_check, hacked
from fewstep.jobs.align.votes import read_votes
from fewstep.pipelines import attach, identity_of, plan_of, process_of
from fewstep.rewards import RewardFunction
from fewstep.runs import Run
from fewstep.solvers import SOLVERS, grids
from tests.pipelines import tiny_pipelines as tiny

PROMPTS = ["a b", "c d e"]
SMALL = {"train.every": 4, "train.lora": 4, "evaluation.conditions": PROMPTS, "evaluation.items": 20}
SMALL |= {"steps": 2, "evaluation.reference": 40, "evaluation.seeds": [7], "evaluation.features": ["pixels"]}
FEW = {"train_steps": 8, "batch": 4, "judge": "none", "progress": False}
BRIGHT = RewardFunction("bright", lambda images, prompts: images.mean((1, 2, 3)), differentiable=True)


@pytest.fixture
def pipe(tmp_path):
    """A student of three steps that noises anew."""
    made = tiny.stable_diffusion(tmp_path / "tokens")
    made.set_progress_bar_config(disable=True)
    process, prediction = process_of(made)
    attach(made, evenly(process, 3).plan(process, prediction).replace(identity=identity_of(made, 1.0)))
    return made


def align(pipe, reward, **more):
    settings = {**SMALL, "steps": 3, **more.pop("settings", {})}
    return fs.align(pipe, reward, prompts=PROMPTS, settings=settings, **{**FEW, **more})


def brightness(pipe):
    return float(fs.generate(pipe, PROMPTS * 8, seeds=range(16)).mean())


def test_a_differentiable_reward_rises_and_what_was_given_stays(pipe, tmp_path):
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    flags = [p.requires_grad for p in pipe.unet.parameters()]
    tuned = align(pipe, BRIGHT, method="refl", learning_rate=2e-2, out=tmp_path / "run")
    assert brightness(tuned) > brightness(pipe) + 1e-4
    after = pipe.unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert flags == [p.requires_grad for p in pipe.unet.parameters()]
    assert plan_of(tuned, 3).rows == plan_of(pipe, 3).rows

    drawn = []

    def noted(images, prompts):
        drawn.append(len(images))
        return BRIGHT.function(images, prompts)

    again = align(pipe, RewardFunction("bright", noted, True), method="refl", learning_rate=2e-2, out=tmp_path / "run")
    assert drawn == [], "a finished run is read, not trained again"
    pairs = zip(tuned.unet.state_dict().values(), again.unet.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("method", "options"), [("pso", {"eta": 0.6}), ("grpo", {"group": 2})])
def test_rewards_without_a_gradient_see_pictures_and_their_prompts(pipe, method, options):
    seen = set()

    def reward(images, prompts):
        assert images.shape[1] == 3
        assert not images.requires_grad
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
        seen.update(prompts)
        return images.std((1, 2, 3))

    align(pipe, reward, method=method, options=options, train_steps=2, settings={"train.every": 2})
    assert seen == set(PROMPTS)


def test_several_rewards_win_pairs_by_dominance_and_are_reported_one_by_one(pipe, tmp_path):
    dark = RewardFunction("dark", lambda images, prompts: -images.mean((1, 2, 3)))
    settings = {"train.every": 2, "combine": "pareto", "evaluation.real": "emoji"}
    align(pipe, [BRIGHT, dark], weights=[1.0, 0.5], train_steps=2, out=tmp_path / "run", settings=settings)
    record = read_json(tmp_path / "run" / "artifacts" / "leg-2" / "check.json")
    assert record["rewards"]["bright"] == pytest.approx(-record["rewards"]["dark"])
    assert record["history"][-1]["pairs/ties"] == 1, "what is brighter is never darker"
    assert record["real"] > 0
    for more in ({"method": "grpo"}, {"rewards": [BRIGHT]}):
        with pytest.raises(FewstepError, match="won by dominance"):
            align(pipe, more.pop("rewards", [BRIGHT, dark]), settings={"combine": "pareto"}, **more)


def test_the_command_trains_on_votes_and_reports(pipe, tmp_path):
    for k, colour in enumerate(["white", "black", "gray"]):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{k}.png")
    votes = [
        {"prompt": "a b", "chosen": "0.png", "rejected": "1.png"},
        {"prompt": "c", "chosen": "0.png", "rejected": "2.png"},
    ]
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, votes)))
    fs.save(pipe, tmp_path / "student")
    from typer.testing import CliRunner

    from fewstep.cli import app

    words = ["align", str(tmp_path / "student"), "--method", "pso_offline", "--pairs", str(tmp_path / "votes.jsonl")]
    words += ["--judge", "none", "--train-steps", "4", "--every", "2", "--out", str(tmp_path / "run"), "--lora", "4"]
    small = [
        f"{k}={json.dumps(v)}" for k, v in {**SMALL, "train.every": 2, "steps": 3, "evaluation.pictures": 2}.items()
    ]
    for value in small:
        words += ["--set", value]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    results = read_json(tmp_path / "run" / "results.json")
    assert [check["updates"] for check in results["checks"]] == [0, 2, 4]
    assert all(check["reward"] is None for check in results["checks"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "before" in page
    assert "Along the training" in page
    assert fs.load(tmp_path / "run" / "artifacts" / "pipeline").unet is not None


def test_a_folder_of_a_few_pictures_is_preferred_to_own_draws_under_their_captions(pipe, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in {"a_dog": "white", "a_cat": "gray"}.items():
        Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
    tuned = align(pipe, (), method="pso_dreambooth", pairs=folder, train_steps=2, settings={"train.every": 2})
    assert plan_of(tuned, 3).rows == plan_of(pipe, 3).rows
    context = context_of(pipe, tmp_path, method="pso_dreambooth", pairs=str(folder))
    prompts, chosen, rejected = context.votes
    assert prompts == ["a cat", "a dog"] * 4
    assert chosen.shape == rejected.shape
    assert torch.equal(chosen[:2], chosen[2:4])
    assert not torch.equal(rejected[:2], rejected[2:4]), "every draw has its own noise"


def test_votes_that_cannot_be_read_are_named(tmp_path):
    file = tmp_path / "votes.jsonl"
    with pytest.raises(FewstepError, match="no such file of votes"):
        read_votes(str(file), 8)
    file.write_text("")
    with pytest.raises(FewstepError, match="empty"):
        read_votes(str(file), 8)
    file.write_text('{"prompt": "a"}')
    with pytest.raises(FewstepError, match="line 1 of the votes is no vote"):
        read_votes(str(file), 8)
    file.write_text('{"prompt": "a", "chosen": "x.png", "rejected": "y.png"}')
    with pytest.raises(FewstepError, match=r"missing or broken(.|\n)*x.png(.|\n)*line 1"):
        read_votes(str(file), 8)


# --- the alarm --------------------------------------------------------------------------------------------------------


def check(updates, scores, judged, covered):
    def mean(values):
        return sum(values) / len(values) if values else None

    return {"updates": updates, "scores": scores, "judged": judged, "covered": covered, "reward": mean(scores),
            "judge": mean(judged), "recall": mean(covered)}  # fmt: skip


def spread(mean, step=0.01):
    return [mean + step * (k % 5) for k in range(30)]


def test_the_alarm_sounds_where_the_reward_rises_and_what_was_not_trained_on_falls():
    start = check(0, spread(0.0), spread(1.0), [1.0] * 40)
    fine = check(10, spread(0.5), spread(1.1), [1.0] * 40)
    judged = check(20, spread(0.9), spread(0.6), [1.0] * 40)
    narrow = check(30, spread(2.0), spread(1.1), [1.0] * 10 + [0.0] * 30)
    worse = check(40, spread(-0.5), spread(0.5), [0.0] * 40)
    assert hacked(start, fine) == ""
    assert "the judge falls from" in hacked(start, judged)
    assert "recall falls from 1.00 to 0.25" in hacked(start, narrow)
    assert hacked(start, worse) == "", "where the reward falls too, nothing is hacked"
    assert best_check([start, fine, judged, narrow]) == 1
    assert best_check([start, judged]) == 0


def test_a_hacked_training_stops_and_the_best_before_is_kept(pipe, tmp_path, monkeypatch):
    from fewstep.jobs.align import training

    monkeypatch.setattr(training, "hacked", lambda start, now: "hacked" if now["updates"] >= 4 else "")
    align(pipe, BRIGHT, method="refl", learning_rate=2e-2, out=tmp_path / "run", settings={"train.every": 2})
    assert sorted(p.name for p in (tmp_path / "run" / "artifacts").glob("leg-*")) == ["leg-2", "leg-4"]


# --- what is refused --------------------------------------------------------------------------------------------------


def context_of(pipe, tmp_path, plan=None, **changes):
    if plan is not None:
        attach(pipe, plan.replace(identity=identity_of(pipe, 1.0)))
    recipe = AlignRecipe(reward=["colourfulness"], steps=3, **changes)
    return AlignContext.open(recipe, Run(tmp_path / "run", {}, quiet=True), pipe=pipe)


@pytest.mark.parametrize("solver", ["lcm", "ddim", "euler_ancestral", "unipc"])
def test_the_chain_is_read_from_the_plan(pipe, tmp_path, solver):
    process, prediction = process_of(pipe)
    plan = SOLVERS[solver](process, prediction, grids.uniform(process, 3))
    context = context_of(pipe, tmp_path, plan)
    if solver == "unipc":
        with pytest.raises(FewstepError, match="unknown kind"):
            context.chain  # noqa: B018
        return
    if solver == "ddim":
        assert context.chain.fresh == 0
        with pytest.raises(FewstepError, match=r"deterministic(.|\n)*eta=0.5"):
            context.method  # noqa: B018
        return
    assert context.chain.times == pytest.approx([float(row.time) for row in plan.rows])
    assert context.chain.law == (ancestral_steps() if solver == "euler_ancestral" else None)


def test_mistakes_are_named(pipe):
    def flat(images, prompts):
        return torch.ones(len(images))

    def spoiled(images, prompts):
        return images.mean((1, 2, 3)) * float("nan")

    with pytest.raises(FewstepError, match="the reward is the same for all pictures"):
        align(pipe, flat)
    with pytest.raises(NonFiniteError, match="NaN"):
        align(pipe, spoiled)
    with pytest.raises(FewstepError, match="needs the gradient of its rewards"):
        align(pipe, flat, method="refl")
    with pytest.raises(FewstepError, match="no prompts"):
        fs.align(pipe, BRIGHT, prompts=[], settings=SMALL, **FEW)
    with pytest.raises(FewstepError, match="distils from a teacher"):
        align(pipe, BRIGHT, method="joint")
    with pytest.raises(FewstepError, match="learns from votes"):
        align(pipe, (), method="dpo")
    with pytest.raises(FewstepError, match="without guidance"):
        align(pipe, BRIGHT, settings={"guidance": 4.0})
    with pytest.raises(FewstepError, match="unknown method"):
        align(pipe, BRIGHT, method="psoo")
    with pytest.raises(FewstepError, match="tunes pipelines"):
        fs.align(nn.Linear(1, 1), BRIGHT)
    with pytest.raises(FewstepError, match="evaluation.real: no such pictures"):
        align(pipe, BRIGHT, settings={"evaluation.real": "nowhere"})
    with pytest.raises(FewstepError, match="must not judge"):
        align(pipe, "contrast", judge="contrast")


def test_completion_knows_every_method():
    assert known.alignments("") == sorted(ALIGNMENTS)
