"""`fewstep quantize` end to end on tiny random-weight pipelines: budgets hold, folders load, mistakes are named."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent / "pipelines"))
import tiny_pipelines as tiny

from fewstep.cli import app
from fewstep.errors import FewstepError, RecipeError
from fewstep.files import read_json
from fewstep.pipelines import Generator, backbone_of, load_pipeline, plan_of, save_pipeline
from fewstep.quant import QuantLayer
from fewstep.quant.bos import FirstToken
from fewstep.quant.split import SplitConv2d
from fewstep.recipes.loader import load
from fewstep.runs import Run
from fewstep.systems.mixdq import run
from fewstep.systems.mixdq.measure import growth, verdict
from fewstep.systems.mixdq.recipe import parse_size

SMALL = ["steps=2", "calibration.items=3", "evaluation.items=2", "evaluation.rounds=1", "scheme=''"]
AUTO = ["allocation.candidates=[w2a8, w4a8, w8a8]", "allocation.ratios=[0.8, 1.0]"]


def settings(kind, folder, *more):
    save_pipeline(tiny.MAKERS[kind](folder), folder / "model")
    call = json.dumps(tiny.CALLS.get(kind, {}))
    return [f"model={folder / 'model'}", f"call={call}", *SMALL, *more]


def execute(folder, overrides):
    recipe = load("quantize", overrides)
    with Run(folder, recipe.plain(), quiet=True) as directory:
        return run(recipe, directory)


def pictures(place, kind):
    pipe = load_pipeline(place)
    call = tiny.CALLS.get(kind, {})
    with torch.no_grad():
        return pipe, Generator(pipe, 1.0, call)(plan_of(pipe, 2, **call), tiny.conditions(kind, 2), [0, 1])


@pytest.mark.parametrize(("kind", "budget"), [("sd", 150_000), ("dit", 180_000), ("flux", 65_000)])
def test_a_budget_holds_and_the_folder_loads(kind, budget, tmp_path):
    report = execute(tmp_path / "run", settings(kind, tmp_path, f"budget={budget}B", *AUTO))
    assert report.read_text().count("<section") >= 5
    results = read_json(tmp_path / "run" / "results.json")
    (name, part), *_ = results["parts"].items()
    assert part["file_bytes"] <= budget
    assert part["file_bytes"] > 0.8 * budget  # the rest is what the header of the file might have taken
    pipe, images = pictures(tmp_path / "run" / "artifacts" / "pipeline", kind)
    assert any(isinstance(m, QuantLayer) for m in backbone_of(pipe).modules())
    assert images.isfinite().all()
    original, _ = pictures(tmp_path / "model", kind)
    assert not any(isinstance(m, QuantLayer) for m in backbone_of(original).modules())
    # every layer with weights is accounted for, with a reason
    rows = {row["name"] for row in part["rows"]}
    owners = {n for n, m in backbone_of(original).named_modules() if list(m.parameters(recurse=False))}
    assert {re.sub(r"\.(rest|hidden|skip)$", "", row) for row in rows} == owners
    tried = results["allocation"]["tried"]
    best = min(tried, key=lambda t: t["error"])
    assert best["name"] == results["allocation"]["chosen"]
    assert all(t["bytes"] <= results["allocation"]["budget"] for t in tried)
    assert name == ("unet" if kind == "sd" else "transformer")


def test_a_scheme_is_obeyed_in_all_parts(tmp_path):
    execute(tmp_path / "run", settings("sd", tmp_path, "scheme=w4a8", "parts=[backbone, text, vae]", "q_sched=4"))
    results = read_json(tmp_path / "run" / "results.json")
    assert set(results["parts"]) == {"unet", "text_encoder", "vae"}
    assert all(part["disk_after"] < part["disk_before"] for part in results["parts"].values())
    assert {"unet", "text_encoder", "vae", "all", "all + Q-Sched"} == set(results["measured"]["pictures"])
    assert results["q_sched"]["value"] >= results["q_sched"]["untuned"] - 1e-9
    pipe, _ = pictures(tmp_path / "run" / "artifacts" / "pipeline", "sd")
    assert any(isinstance(m, FirstToken) for m in pipe.unet.modules())
    assert any(isinstance(m, SplitConv2d) for m in pipe.unet.modules())
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        assert any(isinstance(m, QuantLayer) for m in part.modules())
    assert pipe.scheduler.plan.steps == 2
    bits = {row["bits"] for row in results["parts"]["unet"]["rows"]}
    assert "w4a8" in bits


def test_a_killed_run_measures_nothing_twice(tmp_path, monkeypatch):
    from fewstep.systems.mixdq import choose

    overrides = settings("dit", tmp_path, "effective_bits=5", *AUTO)
    with monkeypatch.context() as broken:
        broken.setattr(choose.Chooser, "choose", lambda self, table: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            execute(tmp_path / "run", overrides)
    measured = (tmp_path / "run" / "units" / "sensitivity.json").stat().st_mtime_ns
    execute(tmp_path / "run", overrides)
    assert (tmp_path / "run" / "units" / "sensitivity.json").stat().st_mtime_ns == measured
    results = read_json(tmp_path / "run" / "results.json")
    assert results["parts"]["transformer"]["bits_per_weight"] <= 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["budget=1kB", *AUTO], "smallest possible is"),
        (["effective_bits=1.5", *AUTO], "smallest possible is"),
        (["effective_bits=5", "method=svdquant", *AUTO], "stores more"),
        (["scheme=w4a8", "method=gtpq"], "gptq"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_work(more, message, tmp_path):
    with pytest.raises(FewstepError, match=message):
        execute(tmp_path / "run", settings("sd", tmp_path, *more))
    assert not (tmp_path / "run" / "units" / "sensitivity.json").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["scheme=w5a8"], "unsupported weight bits"),
        (["scheme=''"], "say what is wanted"),
        (["budget=2.5GB"], "not scheme and budget"),
        (["scheme=''", "budget=lots"], "not a size"),
        (["parts=[backbone, head]"], "parts"),
    ],
)
def test_a_wrong_recipe_is_explained(settings, message):
    with pytest.raises(RecipeError, match=message):
        load("quantize", settings)


def test_sizes_are_read():
    assert parse_size("2.5GB") == 2_500_000_000
    assert parse_size("1 MiB") == 1 << 20
    assert parse_size("123456") == 123456
    with pytest.raises(FewstepError, match="not a size"):
        parse_size("2,5 GB")


def test_memory_growth_is_that_of_the_tensors():
    def draw():
        x = torch.zeros(1000, 1000)
        y = x + 1
        del x
        return (y * 2).sum()

    assert growth(draw, torch.device("cpu")) == pytest.approx(8e6, rel=0.01)


def test_slower_is_said_with_the_reason():
    rows = [{"quantized": True, "kernel": "slow one", "weights": 9}, {"quantized": True, "kernel": "b", "weights": 1}]
    text = verdict({"before": 10.0, "after": 20.0}, rows)
    assert "SLOWER" in text
    assert "90% of the weights run as 'slow one'" in text
    assert "2.00x as fast" in verdict({"before": 20.0, "after": 10.0}, rows)


def test_the_command_line(tmp_path):
    save_pipeline(tiny.dit(tmp_path), tmp_path / "model")
    words = [
        "quantize",
        str(tmp_path / "model"),
        "--effective-bits",
        "5",
        "--steps",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    sets = [*SMALL[1:4], *AUTO]
    result = CliRunner().invoke(app, [*words, *(w for s in sets for w in ("--set", s))], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for word in ("layer", "shape", "bits", "kernel", "sensitivity", "reason", "SSIM", "ms per image"):
        assert word in result.output
    assert "Done." in result.output
    wrong = CliRunner().invoke(app, ["quantize", "emoji-student", "--scheme", "w4b8", "--out", str(tmp_path / "no")])
    assert wrong.exit_code == 2
