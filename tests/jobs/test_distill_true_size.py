"""The measurement on true sizes is itself tried on small networks, and says no without a GPU."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from fewstep.files import read_json

FILE = Path(__file__).parent.parent.parent / "benchmarks" / "distillation_true_size.py"


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("distillation_true_size", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_small_networks_go_through(program, tmp_path, monkeypatch):
    command = ["x", "--tiny", "--steps", "1", "--output", str(tmp_path / "rows.json"), "--models", "pixart", "wan"]
    monkeypatch.setattr(sys, "argv", [*command, "--methods", "lcm", "accvideo", "mean_flow"])
    program.main()
    found = read_json(tmp_path / "rows.json")
    assert found["tiny"]
    rows = {(row["model"], row["method"]): row for row in found["rows"]}
    assert len(rows) == 6
    for (_, name), row in rows.items():
        assert row["student"] == ("all weights" if name == "mean_flow" else "LoRA 2"), row
        assert row["seconds_per_step"] > 0
        assert row["loss"] == row["loss"]
        assert abs(row["loss"]) < float("inf")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_true_sizes_want_a_gpu(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--models", "pixart"])
    with pytest.raises(SystemExit):
        program.main()
    assert "true sizes need a CUDA device" in capsys.readouterr().err
