"""A run killed with `kill -9` and called again ends in the very bytes of the run that nobody disturbed."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.files import read_json, read_tensors
from fewstep.jobs.zoo import run
from tests import processes


def _start(out: Path, data: Path, steps: int):
    """A student as well as a VAE would do; the VAE is the cheapest stage that draws noise, flips and pictures."""
    settings = [f"data={data}", "size=16", f"steps={steps}", "batch=4", "channels=[8,8]", "checkpoint_every=4"]
    return processes.start(run, "vae", [*settings, "device=cpu", "warmup=1"], str(out), out=f"{out}.txt")


def _ended(process) -> int:
    process.join()
    return process.exitcode


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", images=images, captions=np.array([f"thing {i}" for i in range(9)]))
    steps = 32
    assert _ended(_start(tmp_path / "whole", tmp_path / "d.npz", steps)) == 0

    broken = _start(tmp_path / "broken", tmp_path / "d.npz", steps)
    mark = tmp_path / "broken" / "checkpoint" / "progress.json"
    while not mark.exists() and broken.is_alive():
        time.sleep(0.002)
    broken.kill()
    broken.join()
    reached = read_json(mark)["step"]
    assert 0 < reached < steps, "the run ended before it could be killed"
    assert not (tmp_path / "broken" / "training.json").exists()

    assert _ended(_start(tmp_path / "broken", tmp_path / "d.npz", steps)) == 0
    a, b = (read_tensors(tmp_path / name / "checkpoint" / "state.safetensors") for name in ("whole", "broken"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    records = [read_json(tmp_path / name / "training.json") for name in ("whole", "broken")]
    assert records[0]["losses"] == records[1]["losses"]
