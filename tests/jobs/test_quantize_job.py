"""`fewstep quantize` end to end on tiny random-weight pipelines: budgets hold, folders load, mistakes are named."""

import csv
import io
import json
import re

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.errors import FewstepError
from fewstep.files import read_json, read_tensors
from fewstep.jobs.quantize import run
from fewstep.jobs.quantize.measure import growth, speed_sentence
from fewstep.jobs.quantize.recipe import parse_size
from fewstep.jobs.quantize.report import block_of, block_table
from fewstep.pipelines import PipelineSampler, backbone_of, load_pipeline, plan_of, save_pipeline
from fewstep.quant import QuantLayer
from fewstep.quant.first_token import FirstToken
from fewstep.quant.split import SplitConv2d
from fewstep.quant.steps import PerStepLayer
from fewstep.recipes.loader import load
from fewstep.runs import Run
from tests.pipelines import tiny_pipelines as tiny

SMALL = ["steps=2", "calibration.items=3", "evaluation.items=2", "evaluation.rounds=1", "scheme=''"]
AUTO = ["allocation.candidates=[w2a8, w4a8, w8a8]", "allocation.ratios=[0.8, 1.0]"]


def settings(kind, folder, *more, blocks=False):
    """Of a run on a tiny pipeline; Stable Diffusion has one block either way unless all `blocks` are asked for."""
    make = tiny.one_block_diffusion if kind == "sd" and not blocks else tiny.MAKERS[kind]
    save_pipeline(make(folder), folder / "model")
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
        return pipe, PipelineSampler(pipe, 1.0, call)(plan_of(pipe, 2, **call), tiny.conditions(kind, 2), [0, 1])


@pytest.mark.parametrize(
    ("kind", "budget"), [("sd", 120_000), ("dit", 95_000), pytest.param("flux", 65_000, marks=pytest.mark.thorough)]
)
def test_a_budget_holds_and_the_folder_loads(kind, budget, tmp_path):
    less = ["allocation.joint=false", "calibration.items=2"] if kind == "sd" else []  # the largest, for time
    report = execute(tmp_path / "run", settings(kind, tmp_path, f"budget={budget}B", *less, *AUTO))
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
    # every layer in the file, every block on the screen, pictures of equal seeds on the page
    with (tmp_path / "run" / "artifacts" / "layers.csv").open() as file:
        listed = {(row["part"], row["name"]): row["bits"] for row in csv.DictReader(file)}
    assert listed == {(p, r["name"]): r["bits"] for p, part in results["parts"].items() for r in part["rows"]}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(block_table(results))
    screen = console.export_text()
    blocks = {f"{part}.{block_of(name)}" for part, name in listed}
    assert all(f" {block} " in screen for block in blocks)
    assert len(blocks) < 0.4 * len(listed)
    page = (tmp_path / "run" / "report.html").read_text()
    grid = page.split("Before and after, equal seeds")[-1].split("<section")[0]
    assert grid.count("data:image/png") == 2 * 3  # two items: before, after, after + Q-Sched
    seen = read_tensors(tmp_path / "run" / "artifacts" / "pictures.safetensors")
    assert seen["0 before"].shape == seen["1 after"].shape == (2, 3, 16, 16)
    assert not torch.equal(seen["0 before"], seen["1 after"])


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("down_blocks.0.resnets.1.conv1", "down_blocks.0"),
        ("encoder.layers.11.mlp.fc1", "encoder.layers.11"),
        ("time_embedding.linear_1", "time_embedding"),
        ("conv_in", "conv_in"),
        ("input_blocks.4.1.proj", "input_blocks.4"),
    ],
)
def test_blocks_are_told_from_names(name, block):
    assert block_of(name) == block


def two_networks(folder):
    """As Wan 2.2: the second network takes over at low noise."""
    from diffusers import WanPipeline

    pipe = tiny.wan(folder)
    second = type(pipe.transformer).from_config(pipe.transformer.config).eval()
    return tiny.quiet(WanPipeline(**{**pipe.components, "transformer_2": second}, boundary_ratio=0.9))


@pytest.mark.parametrize(
    "aim", [["scheme=w4a8"], pytest.param(["budget=60kB", "allocation.joint=false", *AUTO], marks=pytest.mark.thorough)]
)
def test_the_second_network_is_quantized_too(aim, tmp_path):
    save_pipeline(two_networks(tmp_path), tmp_path / "model")
    call = f"call={json.dumps(tiny.CALLS['wan'])}"
    execute(tmp_path / "run", [f"model={tmp_path / 'model'}", call, *SMALL, *aim, "evaluation.rounds=0"])
    results = read_json(tmp_path / "run" / "results.json")
    assert set(results["parts"]) == {"transformer", "transformer_2"}
    pipe = load_pipeline(tmp_path / "run" / "artifacts" / "pipeline")
    for network in (pipe.transformer, pipe.transformer_2):
        assert any(isinstance(m, QuantLayer) for m in network.modules())
    if "scheme=w4a8" not in aim:
        assert sum(part["file_bytes"] for part in results["parts"].values()) <= 60_000


def test_bits_per_row_of_two_networks_are_refused(tmp_path):
    save_pipeline(two_networks(tmp_path), tmp_path / "model")
    call = f"call={json.dumps(tiny.CALLS['wan'])}"
    with pytest.raises(FewstepError, match="one network"):
        execute(tmp_path / "run", [f"model={tmp_path / 'model'}", call, *SMALL, "scheme=w4a8", "per_step=true"])


@pytest.mark.parametrize(("method", "part"), [("svdquant:4", "up"), ("smoothquant", "smooth")])
def test_what_a_method_stores_counts_in_the_budget(method, part, tmp_path):
    execute(tmp_path / "run", settings("dit", tmp_path, "effective_bits=9", f"method={method}", *AUTO))
    results = read_json(tmp_path / "run" / "results.json")
    found = results["parts"]["transformer"]
    assert found["bits_per_weight"] <= 9
    pipe, images = pictures(tmp_path / "run" / "artifacts" / "pipeline", "dit")
    layers = [m for m in pipe.transformer.modules() if isinstance(m, QuantLayer)]
    assert any(getattr(layer, part) is not None for layer in layers)
    products = [layer for layer in layers if layer.kind != "Embedding"]
    assert sum(layer.weight_bytes() for layer in products) <= results["allocation"]["budget"]
    assert images.isfinite().all()
    names = [t["name"] for t in results["allocation"]["tried"]]
    assert "SQNR alone" in names
    chosen = [row for row in found["rows"] if row["quantized"] and row["kind"] != "Embedding"]  # these have 8 bits
    assert {row["name"] for row in chosen} <= set(found["sensitivity"])
    assert all(row["bits"] in found["sensitivity"][row["name"]] for row in chosen)


def test_corrections_are_kept_only_where_they_help(tmp_path):
    more = ["scheme=w2a8", "corrections=[ptqd, stepbaq]", "q_sched=4", "calibration.items=4"]
    execute(tmp_path / "run", settings("dit", tmp_path, *more))
    results = read_json(tmp_path / "run" / "results.json")
    tried = results["corrections"]["tried"]
    assert set(tried) == {"none", "ptqd", "stepbaq"}
    errors = {name: t["error"] for name, t in tried.items() if "error" in t}
    kept = results["corrections"]["kept"]
    assert kept == min(errors, key=errors.get)
    assert "reason" in tried["stepbaq"] or "error" in tried["stepbaq"]
    assert (f"all + {kept}" in results["measured"]["pictures"]) == (kept != "none")
    plan = load_pipeline(tmp_path / "run" / "artifacts" / "pipeline").scheduler.plan
    assert plan.origin.get("correction", "none") == kept


def test_blocks_are_reconstructed_in_the_order_they_run(tmp_path):
    more = ["scheme=w2a8", "method='brecq:30'"]
    execute(tmp_path / "run", settings("sd", tmp_path, *more, blocks=True))
    blocks = read_json(tmp_path / "run" / "results.json")["parts"]["unet"]["reconstruction"]
    assert any(block["kept"] for block in blocks)
    kinds = [block["name"].split("_")[0] for block in blocks]
    assert kinds == sorted(kinds, key=["down", "mid", "up"].index)
    assert {"down", "mid", "up"} == set(kinds)


def test_bits_per_row_hold_the_compute_and_are_saved(tmp_path, monkeypatch):
    from fewstep.jobs.quantize import per_step

    seen = []
    original = per_step.choose
    monkeypatch.setattr(per_step, "choose", lambda *given: seen.append(original(*given)) or ["more", "fewer", "scheme"])
    monkeypatch.setattr(per_step, "_error", lambda found, truth: next(numbers))
    numbers = iter([*range(9), 1.0, 0.5, 0.2])  # nine single rows, one scheme, the choice, more bits
    more = [
        "scheme=w4a8",
        "per_step=true",
        "rungs=[w3a8, w4a16, w8a8]",
        "steps=3",
        "corrections=[ptqd]",
        "calibration.ranges='ema:0.9'",
    ]
    execute(tmp_path / "run", [s for s in settings("sd", tmp_path, *more) if s != "steps=2"])
    results = read_json(tmp_path / "run" / "results.json")
    found = results["parts"]["unet"]["per_step"]
    assert len(seen) == 1
    assert found["rows"] == [2, 0, 1]
    assert found["more"]["error"] == 0.2
    assert found["damage"] == {"fewer": [0, 1, 2], "scheme": [3, 4, 5], "more": [6, 7, 8]}
    pipe = load_pipeline(tmp_path / "run" / "artifacts" / "pipeline")
    assert [row.network for row in pipe.scheduler.plan.rows] == ["bits:2", "bits:0", "bits:1"]
    stepped = [m for m in pipe.unet.modules() if isinstance(m, PerStepLayer)]
    assert stepped
    assert [str(option.scheme) for option in stepped[0].options] == ["w3a8", "w4a8", "w8a8"]
    assert not any(n in ("conv_in", "conv_out") for n, m in pipe.unet.named_modules() if isinstance(m, PerStepLayer))


def test_rungs_of_the_inputs_share_the_weights(tmp_path):
    more = ["scheme=w8a8-affine", "per_step=true", "steps=3"]
    execute(tmp_path / "run", [s for s in settings("dit", tmp_path, *more) if s != "steps=2"])
    found = read_json(tmp_path / "run" / "results.json")["parts"]["transformer"]["per_step"]
    assert set(found["rungs"]) == {"fewer", "scheme", "more"}
    assert sum(found["rungs"][rung] for rung in found["choice"]) <= 3 * found["rungs"]["scheme"]
    if found["rows"]:
        assert found["bytes"] == pytest.approx(found["bytes_one"], rel=0.01)
        assert found["error"] < found["error_one"]


def test_the_rung_of_each_row_is_the_best_under_the_mean_compute():
    from itertools import product

    from fewstep.jobs.quantize.per_step import choose

    damage = {"fewer": [0.5, 4.0, 0.2, 0.3], "scheme": [0.4, 2.0, 0.19, 0.1], "more": [0.3, 0.1, 0.18, 0.05]}
    cost = {"fewer": 3, "scheme": 4, "more": 6}
    every = [c for c in product(damage, repeat=4) if sum(cost[r] for r in c) <= 16]
    best = min(every, key=lambda c: sum(damage[r][k] for k, r in enumerate(c)))
    assert choose(damage, cost) == list(best)
    assert "more" in best


@pytest.mark.parametrize("part", ["text", "vae"])
def test_a_part_that_the_pipeline_lacks_is_not_dropped_silently(part, tmp_path):
    overrides = settings("ddim" if part == "vae" else "dit", tmp_path, "scheme=w4a8", f"parts=[backbone, {part}]")
    with pytest.raises(FewstepError, match=f"no such part.*{part}"):
        execute(tmp_path / "run", overrides)
    assert not list((tmp_path / "run").glob("units/*"))


def test_a_killed_run_measures_nothing_twice(tmp_path, monkeypatch):
    from fewstep.jobs.quantize import choose

    overrides = settings("dit", tmp_path, "effective_bits=5", *AUTO)
    with monkeypatch.context() as broken:
        broken.setattr(choose.BitAllocator, "choose", lambda self, *tables: 1 / 0)
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
        (["scheme=w4a8", "method=gtpq"], "gptq"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_work(more, message, tmp_path):
    with pytest.raises(FewstepError, match=message):
        execute(tmp_path / "run", settings("sd", tmp_path, *more))
    assert not (tmp_path / "run" / "units" / "sensitivity.json").exists()


@pytest.mark.parametrize(("kind", "message"), [("dit", "list is empty"), ("sd", "list is empty")])
def test_empty_calibration_is_refused(kind, message, tmp_path):
    with pytest.raises(FewstepError, match=message):
        execute(tmp_path / "run", settings(kind, tmp_path, "effective_bits=5", "calibration.conditions=[]", *AUTO))


@pytest.mark.parametrize("aim", [["effective_bits=5", *AUTO], ["scheme=w8a8-static"]])
def test_a_network_that_gives_nan_is_refused(aim, tmp_path):
    pipe = tiny.dit(tmp_path)
    with torch.no_grad():
        pipe.transformer.pos_embed.proj.bias[0] = float("nan")
    save_pipeline(pipe, tmp_path / "model")
    with pytest.raises(FewstepError, match="NaN"):
        execute(tmp_path / "run", [f"model={tmp_path / 'model'}", *SMALL, *aim])
    assert not (tmp_path / "run" / "artifacts" / "pipeline").exists()


def test_half_written_and_newer_folders_are_refused(tmp_path):
    execute(tmp_path / "run", settings("dit", tmp_path, "scheme=w4a8"))
    folder = tmp_path / "run" / "artifacts" / "pipeline"
    config = folder / "transformer" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(FewstepError, match="Update fewstep"):
        load_pipeline(folder)
    config.write_text(text)
    file = next((folder / "transformer").glob("*.safetensors"))
    whole = file.read_bytes()
    for part in (whole[:-1000], whole[:20], b""):
        file.write_bytes(part)
        with pytest.raises(FewstepError, match="cannot open"):
            load_pipeline(folder)
    file.unlink()
    with pytest.raises(FewstepError, match="cannot open"):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["scheme=w5a8"], "unsupported weight bits"),
        (["scheme=''"], "say what is wanted"),
        (["budget=2.5GB"], "not scheme and budget"),
        (["scheme=''", "budget=lots"], "not a size"),
        (["parts=[backbone, head]"], "parts"),
        (["scheme=''", "budget=1MB", "per_step=true"], "per_step needs a scheme"),
        (["method=brecq", "per_step=true"], "brecq cannot learn"),
        (["corrections=[ptqq]"], "corrections"),
        (["calibration.ranges=middle"], "percentile"),
    ],
)
def test_a_wrong_recipe_is_explained(settings, message):
    with pytest.raises(FewstepError, match=message):
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
    text = speed_sentence({"before": 10.0, "after": 20.0}, rows)
    assert "SLOWER" in text
    assert "90% of the weights run as 'slow one'" in text
    assert "2.00x as fast" in speed_sentence({"before": 20.0, "after": 10.0}, rows)


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr("rich._console", None)  # one that an earlier test made keeps the width it then had
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
    for word in ("block", "bits", "kept in float", "most sensitive", "SSIM", "ms per image", "layers.csv"):
        assert word in result.output
    assert "Done." in result.output
    wrong = CliRunner().invoke(app, ["quantize", "emoji-student", "--scheme", "w4b8", "--out", str(tmp_path / "no")])
    assert wrong.exit_code == 2


def test_the_new_options_reach_the_recipe():
    words = [
        "quantize",
        "emoji-student",
        "--scheme",
        "w3a8",
        "--per-step",
        "--corrections",
        "ptqd,stepbaq",
        "--dry-run",
    ]
    result = CliRunner().invoke(app, [*words, "--method", "svdquant:8"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for line in ("per_step: true", "- ptqd", "- stepbaq", "method: svdquant:8"):
        assert line in result.output


@pytest.mark.extra("gguf")
def test_a_pipeline_goes_to_a_gguf_file(tmp_path):
    save_pipeline(tiny.flux(tmp_path), tmp_path / "model")
    words = ["export-gguf", str(tmp_path / "model"), str(tmp_path / "m.gguf"), "--type"]
    result = CliRunner().invoke(app, [*words, "Q4_0"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "from_single_file" in result.output
    assert (tmp_path / "m.gguf").stat().st_size > 1000
    assert CliRunner().invoke(app, [*words, "Q9"]).exit_code == 2
