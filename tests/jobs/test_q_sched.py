"""The main job end to end on tiny random-weight pipelines; it resumes after a kill with the same artifacts."""

import json
import time
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.errors import FewstepError
from fewstep.files import read_json, read_tensors
from fewstep.jobs.context import JobContext
from fewstep.jobs.q_sched import run
from fewstep.jobs.q_sched.job import _low_bit
from fewstep.pipelines import PipelineSampler, load_pipeline, save_pipeline
from fewstep.plan import Plan
from fewstep.recipes.loader import load
from fewstep.runs import Run
from tests import processes
from tests.pipelines import tiny_pipelines as tiny

PROMPTS = ["a cat", "b dog", "c fox", "d owl"]  # an evaluation needs no fewer
SEARCHED = ["an elk", "a bee"]


def reward_folder(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**tower, "vocab_size": 54, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    model = CLIPModel(
        CLIPConfig(
            text_config={**text, "pad_token_id": 1},
            vision_config={**tower, "image_size": 16, "patch_size": 8},
            projection_dim=16,
        )
    )
    model.save_pretrained(folder)
    tiny.clip_tokenizer(folder / "source").save_pretrained(folder)
    return folder


def settings(kind: str, folder: Path) -> list[str]:
    make = tiny.one_block_diffusion if kind == "sd" else tiny.MAKERS[kind]
    save_pipeline(make(folder), folder / "model")
    clip = reward_folder(folder / "clip")
    return [
        f"model={folder / 'model'}", f"rewards.alignment=clip:{clip}", "rewards.quality=sharpness",
        "evaluation.judge=none", "evaluation.features=[random]", f"evaluation.prompts={PROMPTS + SEARCHED}",
        "evaluation.seeds=[7, 8]",
        f"search.prompts={SEARCHED}", "search.seeds=[1]", "search.budget=8", "steps=2", "search.held_out=0",
        f"call={json.dumps(tiny.CALLS[kind])}",
    ]  # fmt: skip


def execute(folder: Path, overrides: list[str]) -> Path:
    recipe = load("q-sched", overrides)
    with Run(folder, recipe.plain(), quiet=True) as directory:
        return run(recipe, directory)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("sdxl", marks=pytest.mark.thorough), "pixart", "flux"])
def test_the_same_command_serves_any_pipeline(kind, tmp_path):
    # Stable Diffusion is the one that is killed below; one runs as where nothing can be downloaded, on its own networks
    alone = ["rewards.alignment=none", "rewards.quality=contrast"] if kind == "pixart" else []
    report = execute(tmp_path / "run", [*settings(kind, tmp_path), *alone])
    page = report.read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "").split("<main")[-1].split("src=")[0]
    results = read_json(tmp_path / "run" / "results.json")
    assert {"environment", "search", "coefficients", "evaluation", "speed", "quantization"} <= results.keys()
    assert results["quantization"]["disk_after"] < results["quantization"]["disk_before"]
    assert results["evaluation"]["left_out"] == len(SEARCHED)
    assert results["evaluation"]["prompts_used"] == PROMPTS

    pipe = load_pipeline(tmp_path / "run" / "artifacts" / "pipeline")
    tuned = Plan.load(tmp_path / "run" / "artifacts" / "plan-quantized-Q-Sched.json")
    assert pipe.scheduler.plan == tuned
    stored = read_tensors(tmp_path / "run" / "artifacts" / "images" / "quantized-Q-Sched-7.safetensors")["images"]
    drawn = PipelineSampler(pipe, 1.0, tiny.CALLS[kind])(
        tuned, PROMPTS, [7 * 1_000_003 + p for p in range(len(PROMPTS))]
    )
    assert (drawn * 255 - stored.float()).abs().max() < 1.01


@pytest.mark.thorough
def test_other_ways_stand_in_the_same_table_at_no_more_bytes(tmp_path):
    execute(tmp_path / "run", [*settings("sd", tmp_path), "against=[ptqd,svdquant,mixdq]", "scheme=w8a8"])
    results = read_json(tmp_path / "run" / "results.json")
    others = {"SVDQuant", "SVDQuant + Q-Sched", "MixDQ", "MixDQ + Q-Sched", "quantized + PTQD"}
    assert others <= results["evaluation"]["systems"].keys()
    assert results["bytes"].keys() == {"quantized", "SVDQuant", "MixDQ"}
    assert max(results["bytes"].values()) == results["bytes"]["quantized"]
    pairs = results["evaluation"]["comparisons"]
    assert {
        "MixDQ + Q-Sched - MixDQ",
        "quantized + Q-Sched - SVDQuant",
        "quantized + Q-Sched - quantized + PTQD",
    } <= pairs.keys()
    psnr = {name: row["psnr"]["mean"] for name, row in results["evaluation"]["systems"].items() if "psnr" in row}
    assert psnr["MixDQ"] != psnr["quantized"] != psnr["SVDQuant"]


def test_a_layer_with_outliers_gets_a_remedy(tmp_path):
    overrides = settings("sd", tmp_path)
    pipe = load_pipeline(tmp_path / "model")
    with torch.no_grad():  # one feature a thousand times larger, its weights so much smaller
        pipe.unet.conv_norm_out.weight[0] *= 1000
        pipe.unet.conv_out.weight[:, 0] /= 1000
    save_pipeline(pipe, tmp_path / "loud")
    recipe = load("q-sched", [*overrides, f"model={tmp_path / 'loud'}", "scheme=w8a8"])
    with Run(tmp_path / "run", recipe.plain(), quiet=True) as directory:
        (part,) = _low_bit(JobContext.open(recipe.resolved(), directory, fuse=True)).values()
    reasons = {row["name"]: (row["bits"], row["reason"]) for row in part.report["rows"]}
    assert reasons["conv_out"][0] in ("w8a8-smooth", "w8a8-hadamard", "w8a16")
    assert "outliers" in reasons["conv_out"][1]
    assert sum("outliers" in reason for _, reason in reasons.values()) < 4
    assert part.report["output_sqnr"] > 6  # the small weights round to nothing, whatever the inputs


def artifacts(folder: Path) -> dict[str, bytes]:
    kept = [f for f in (folder / "artifacts").rglob("*") if f.is_file() and "pipeline" not in f.parts]
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in kept if f.name != "training.json"}


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_artifacts(tmp_path):
    overrides = settings("sd", tmp_path)
    execute(tmp_path / "whole", overrides)
    victim = processes.start(execute, tmp_path / "killed", overrides)
    log = tmp_path / "killed" / "artifacts" / "scratch" / "search-quantized" / "scores.jsonl"
    deadline = time.monotonic() + 200
    while not (log.exists() and len(log.read_text().splitlines()) >= 6):
        assert victim.is_alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    victim.kill()
    victim.join()
    assert not (tmp_path / "killed" / "report.html").exists()
    execute(tmp_path / "killed", overrides)
    whole, again = artifacts(tmp_path / "whole"), artifacts(tmp_path / "killed")
    assert whole.keys() == again.keys()
    different = [name for name in whole if whole[name] != again[name]]
    assert different == []


def test_recipe_mistakes_name_key_value_and_mend(tmp_path):
    with pytest.raises(FewstepError, match=r"search.budgett.*budget"):
        load("q-sched", ["search.budgett=3"])
    with pytest.raises(FewstepError, match=r"w5x8"):
        load("q-sched", ["scheme=w5x8"])
    with pytest.raises(FewstepError, match=r"coarse-to-fine"):
        load("q-sched", ["search.searcher=coarse"])
    with pytest.raises(FewstepError, match=r"search.low"):
        load("q-sched", ["search.low=1.3"])


def test_empty_prompts_are_refused(tmp_path):
    overrides = [*settings("sd", tmp_path), "search.prompts=[]"]
    with pytest.raises(FewstepError, match="prompt list is empty"):
        execute(tmp_path / "run", overrides)


def refused(overrides, words, tmp_path, monkeypatch):
    """A mistake is told by the command before a pipeline is opened, and no run begins."""
    from fewstep.jobs.pipeline_recipe import PipelineRecipe

    monkeypatch.setattr(PipelineRecipe, "opened", lambda recipe: pytest.fail("the pipeline was opened"))
    out = tmp_path / "refused"
    done = CliRunner().invoke(app, ["run", "q-sched", "--out", str(out), *(a for s in overrides for a in ("--set", s))])
    assert done.exit_code == 2, done.output
    for word in words:
        assert word in " ".join(done.output.split())


OTHER = ["model=some/pipeline", "rewards.alignment=none", "rewards.quality=sharpness", "evaluation.judge=none"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rewards.alignment=clip:./none"], ["rewards.alignment", "no such CLIP", "rewards.alignment=none"]),
        (["rewards.quality=quality:./none"], ["rewards.quality", "rewards.quality=sharpness"]),
        (["evaluation.judge=clip:./none"], ["evaluation.judge", "evaluation.judge=none"]),
        (["evaluation.features=[clip:./none]"], ["evaluation.features", "[random,pixels]"]),
        (["evaluation.teacher=./none"], ["evaluation.teacher", "evaluation.teacher=none"]),
        ([*OTHER, "evaluation.count=4", "evaluation.seeds=[1]"], ["reference images", "found: 4"]),
        (["evaluation.count=3"], ["more than three prompts"]),
        (["rewards.alignment=none", "rewards.quality=none"], ["nothing is left"]),
        (["rewards.quality=sharpnes"], ["'sharpness'"]),
        (["evaluation.features=[random, random]"], ["twice"]),
        (["evaluation.features=[]"], ["evaluation.features"]),
        (["search.prompts=emoji:evaluation", "search.count=249"], ["search does not use", "found: 1)"]),
        (["against=[mixqd]"], ["against", "mixdq"]),
        (["evaluation.pictures=absent"], ["absent"]),
        (["evaluation.seeds=[1, 1]"], ["seeds", "twice"]),
        (["evaluation.seeds=[99999999999]"], ["seeds"]),
        (["evaluation.prompts=absent.txt"], ["absent.txt"]),
        (["device=coda"], ["device", "coda"]),
        (["results=."], ["results is a folder"]),
    ],
)
def test_mistakes_are_told_before_anything_is_opened(overrides, words, tmp_path, monkeypatch):
    refused(overrides, words, tmp_path, monkeypatch)


def test_a_pipeline_without_prompts_is_refused_before_it_is_quantized(tmp_path):
    save_pipeline(tiny.MAKERS["dit"](tmp_path), tmp_path / "model")
    overrides = [f"model={tmp_path / 'model'}", *OTHER[1:], "evaluation.prompts=emoji:evaluation"]
    with pytest.raises(FewstepError, match=r"takes none.*fewstep search"):
        execute(tmp_path / "run", overrides)
    assert not list((tmp_path / "run").glob("units/*"))


def test_a_dry_run_shows_what_auto_means_and_makes_nothing(tmp_path):
    done = CliRunner().invoke(app, ["run", "q-sched", "--dry-run", "--out", str(tmp_path / "no")])
    shown = yaml.safe_load(done.stdout)
    assert shown == load("q-sched").resolved().plain()
    assert "auto" not in done.stdout
    assert not (tmp_path / "no").exists()


def test_auto_means_shipped_parts_for_the_shipped_model_and_public_ones_otherwise():
    shipped = load("q-sched").resolved()
    assert shipped.rewards.alignment == "clip:emoji-clip"
    assert shipped.evaluation.judge == "clip:emoji-judge"
    assert shipped.rewards.alignment != shipped.evaluation.judge
    other = load("q-sched", ["model=some/pipeline"]).resolved()
    assert other.rewards.alignment.startswith("clip:openai/")
    assert other.evaluation.judge != other.rewards.alignment
    assert other.evaluation.teacher == "none"
    assert (shipped.evaluation.pictures, other.evaluation.pictures) == ("emoji", "none")
    own = load("q-sched", ["model=some/pipeline", "evaluation.pictures=emoji"]).resolved()
    assert own.real_pictures().captions == shipped.real_pictures().captions != []
