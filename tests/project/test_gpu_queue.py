"""The queue of what needs an accelerator: its functions at toy sizes, and that it goes on where it was stopped."""

import importlib
import io
import json
import sys
from types import SimpleNamespace

import clock
import gpu
import numpy as np
import pytest
import torch
import yaml
from accelerator import Setting, layers, loops
from torch import nn

from fewstep.cli import doctor
from fewstep.errors import FewstepError
from fewstep.files import read_json, write_json
from tests import ROOT

TOY = ("--device", "cpu", "--size", "toy", "--rounds", "2")


@pytest.fixture
def setting(tmp_path):
    return Setting("cpu", True, tmp_path / "work", rounds=2)


@pytest.mark.parametrize(("piece", "part"), [
    ("layers", "flux/Linear/attention-picture"), ("layers", "sd15/Conv2d/block-64x64"), ("loops", "DDIMScheduler"),
    ("loops", "graph-pixart"), ("generation", "flux/bfloat16"), ("generation", "flux/w4a8"), ("updates", "lcm/pixart"),
])  # fmt: skip
def test_a_part_at_toy_size_gives_plain_numbers(piece, part, setting):
    row = importlib.import_module(f"accelerator.{piece}").parts(setting)[part]()
    assert json.loads(json.dumps(row, allow_nan=False)) == json.loads(json.dumps(row))
    assert not gpu.failed(row)
    if piece == "generation":
        scheme = part.partition("/")[2]
        rival = "bfloat16" if scheme == "w4a8" else "bfloat16 compiled"
        assert set(row["4 steps"]["ms"]) == {scheme, rival}
        bits = 8 * row["bytes"] / row["parameters"]
        assert bits == pytest.approx(16, abs=0.01) if scheme == "bfloat16" else bits < 8
    if piece == "layers":
        assert row["error"]["bfloat16"] < row["error"]["w8a8"] < row["error"]["w4a8"] < 0.1
        assert set(row["over bfloat16"]) == set(row["ms"]) - {"bfloat16"}
        assert set(row["why"]) >= {"quanto w8a16"} or importlib.util.find_spec("optimum")


def test_every_piece_has_parts_and_a_place_in_the_queue(setting):
    for name in gpu.queue():
        assert importlib.import_module(f"accelerator.{name}").parts(setting), name
    files = {p.stem for p in (ROOT / "benchmarks" / "accelerator").glob("*.py") if "def parts(" in p.read_text()}
    assert files == set(gpu.queue())


def test_true_sizes_are_those_of_the_published_networks(setting):
    sizes = {name: shape for name, _, shape in layers.shapes(toy=False)}
    assert sizes["flux/Linear/feed-forward-in"] == (4096, 3072, 12288)
    from distillation_true_size import MODELS

    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in MODELS[name].make(False).parameters()) for name in ("sd15", "flux")}
    assert counts["sd15"] == 859_520_964  # stable-diffusion-v1-5
    assert counts["flux"] == pytest.approx(11.9e9, rel=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path, capsys):
    assert gpu.main(["--folder", str(tmp_path / "work"), "--results", str(tmp_path)]) is None
    said = capsys.readouterr().out
    assert said.startswith("There is no GPU here")
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])
    assert "true sizes need a GPU" in capsys.readouterr().err


@pytest.fixture
def fake(monkeypatch):
    """A piece of three parts; what `acts` says of one happens instead of a number."""
    ran, acts = [], {}

    def part(name):
        def run():
            ran.append(name)
            if name in acts:
                raise acts[name]
            return {"ms": 1.0}

        return run

    module = SimpleNamespace(parts=lambda setting: {name: part(name) for name in ("a", "b", "c")})
    monkeypatch.setitem(sys.modules, "accelerator.fake", module)
    monkeypatch.setattr(gpu, "queue", lambda: ["fake"])
    return SimpleNamespace(ran=ran, acts=acts)


def test_a_killed_queue_loses_one_part(fake, tmp_path):
    words = [*TOY, "--folder", str(tmp_path / "work"), "--results", str(tmp_path)]
    fake.acts["b"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        gpu.main(words)
    found = read_json(tmp_path / "gpu-fake.json")
    assert (list(found["rows"]), found["open"]) == (["a"], ["b", "c"])
    fake.acts.clear()
    gpu.main(words)
    assert fake.ran == ["a", "b", "b", "c"]
    found = read_json(tmp_path / "gpu-fake.json")
    assert (list(found["rows"]), found["open"]) == (["a", "b", "c"], [])
    assert {"device", "driver", "torch", "commit", "seconds"} <= set(found["rows"]["c"])
    gpu.main(words)
    assert len(fake.ran) == 4
    gpu.main([*words, "--again"])
    assert len(fake.ran) == 7


def test_what_cannot_be_measured_says_why_and_is_tried_again_elsewhere(fake, tmp_path, monkeypatch):
    words = [*TOY, "--folder", str(tmp_path / "work"), "--results", str(tmp_path)]
    fake.acts["b"] = FewstepError("no such data")
    gpu.main(words)
    assert read_json(tmp_path / "gpu-fake.json")["rows"]["b"]["why"] == "FewstepError: no such data."
    gpu.main(words)
    assert fake.ran == ["a", "b", "c"]
    here = gpu.machine("cpu")
    monkeypatch.setattr(gpu, "machine", lambda device: {**here, "device": "another"})
    gpu.main(words)
    assert fake.ran == ["a", "b", "c", "b"]
    fake.acts["b"] = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(FewstepError, match="answers this process no more"):  # it measures nothing more
        gpu.main([*words, "--again"])
    found = read_json(tmp_path / "gpu-fake.json")
    assert (list(found["rows"]), found["open"]) == (["a", "b"], ["c"])
    gpu.main(words)  # and the next one does not stumble over the same part
    assert fake.ran[-1] == "c"
    assert fake.ran.count("b") == 3


def test_without_data_cifar_is_skipped_and_says_what_to_give(setting):
    row = gpu.attempted(importlib.import_module("accelerator.cifar10").parts(setting)["teacher"])
    assert "skipped: there is no CIFAR-10 here" in row["why"]
    assert "--cifar FILE" in row["why"]


def test_competitors_are_timed_in_turns_and_ratios_are_those_of_the_rounds():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    times = clock.in_turn(calls, 4, warm_up=1)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}
    ratios = clock.over({"a": [2.0, 40.0, 6.0], "b": [1.0, 10.0, 2.0]}, "a")["b"]
    assert ratios["median"] == 3.0  # of 2, 4, 3; not of the medians
    values = [5.0, 1.0, 2.0, 9.0, 4.0]
    found = clock.spread(values)
    assert [found[k] for k in ("low", "median", "high")] == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]))


def test_a_broken_competitor_has_a_reason_and_a_wrong_one_an_error(setting):
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8), torch.randn(1, 4, 8)

    def broken():
        raise AssertionError("needs compute capability 8.9")

    def wrong():
        return nn.Linear(8, 8), x

    given = {"bfloat16": lambda: (layer, x), "broken": broken, "wrong": wrong}
    row = layers.competed(given, x, layer, ("bfloat16",), setting)
    assert row["why"] == {"broken": "AssertionError: needs compute capability 8.9"}
    assert row["error"]["bfloat16"] == 0
    assert row["error"]["wrong"] > 0.5
    assert set(row["ms"]) == {"bfloat16", "wrong"}


def test_more_competitors_compile_than_torch_allows_for_one_function(setting):
    layer, x = nn.Linear(8, 8), torch.randn(1, 4, 8)
    given = {
        str(k): lambda k=k: (layers.compiled(nn.Sequential(*[nn.Linear(8, 8) for _ in range(k + 1)]), True), x)
        for k in range(12)
    }
    assert layers.competed(given, x, layer, (), setting)["why"] == {}


def test_outputs_of_a_graph_are_not_overwritten_by_its_next_call(monkeypatch):
    place = torch.zeros(1, 3)
    network = loops.graphed(lambda x, t: torch.add(x, t, out=place), torch.zeros(1, 3), torch.device("cpu"))
    first = network(torch.ones(1, 3), torch.tensor(2.0))
    second = network(torch.full((1, 3), 5.0), torch.tensor(1.0))
    assert torch.equal(first, torch.full((1, 3), 3.0))
    assert torch.equal(second, torch.full((1, 3), 6.0))


def test_doctor_tells_what_has_not_been_measured(tmp_path):
    queue = [{"name": "layers", "measures": "layers"}, {"name": "loops", "measures": "loops"}]
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / doctor.QUEUE).write_text(yaml.safe_dump(queue))
    rows = {"a": {"device": "H100", "ms": 1}, "b": {"device": "H100", "why": {}}, "c": {"device": "H100", "why": "no"}}
    write_json(tmp_path / "results" / "gpu-layers.json", {"rows": rows, "open": ["d"]})
    found = doctor.accelerator(tmp_path)
    assert found == {"layers": "2 of 4 parts, H100: layers", "loops": "not measured yet: loops"}
    assert set(doctor.accelerator(ROOT)) == {piece["name"] for piece in yaml.safe_load(gpu.QUEUE.read_text())}


def jpegs(place):
    """Sixteen squares in the layout of CIFAR-10 as JPEG bytes."""
    from PIL import Image

    parts = []
    for k in range(16):
        held = io.BytesIO()
        Image.new("RGB", (32, 32), (16 * k, 0, 0)).save(held, "JPEG")
        parts.append(np.frombuffer(held.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, parts)])
    names, labels = np.array(["red", "dark"]), np.arange(16) % 2
    np.savez(
        place, train_jpeg=np.concatenate(parts), train_offsets=offsets, train_labels=labels, class_names=names
    )  # fmt: skip
    return place


@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_the_whole_queue_at_toy_size(tmp_path, capsys):
    gpu.main([*TOY, "--folder", str(tmp_path / "work"), "--cifar", str(jpegs(tmp_path / "cifar.npz"))])
    for name in gpu.queue():
        found = read_json(tmp_path / "work" / "results" / f"gpu-{name}.json")
        assert found["open"] == []
        assert found["toy"]
        if name != "convolution":  # no Triton on a CPU
            assert not [part for part, row in found["rows"].items() if gpu.failed(row)], name
