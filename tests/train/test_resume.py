"""A run killed with `kill -9` and called again ends in the very bytes of the run that nobody disturbed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.files import read_json, read_tensors

# A student as well as a VAE would do; the VAE is the cheapest stage that draws noise, flips and pictures.
PROGRAM = """
import sys
from fewstep.jobs.zoo import run
run("vae", sys.argv[2:], sys.argv[1])
"""


def _start(out: Path, data: Path, steps: int) -> subprocess.Popen:
    settings = [f"data={data}", "size=16", f"steps={steps}", "batch=4", "channels=[8,8]", "checkpoint_every=4"]
    command = [sys.executable, "-c", PROGRAM, str(out), *settings, "device=cpu", "warmup=1"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", images=images, captions=np.array([f"thing {i}" for i in range(9)]))
    steps = 32
    whole = _start(tmp_path / "whole", tmp_path / "d.npz", steps)
    assert whole.wait() == 0

    broken = _start(tmp_path / "broken", tmp_path / "d.npz", steps)
    mark = tmp_path / "broken" / "checkpoint" / "progress.json"
    while not mark.exists() and broken.poll() is None:
        time.sleep(0.002)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    reached = read_json(mark)["step"]
    assert 0 < reached < steps, "the run ended before it could be killed"
    assert not (tmp_path / "broken" / "training.json").exists()

    assert _start(tmp_path / "broken", tmp_path / "d.npz", steps).wait() == 0
    a, b = (read_tensors(tmp_path / name / "checkpoint" / "state.safetensors") for name in ("whole", "broken"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    records = [read_json(tmp_path / name / "training.json") for name in ("whole", "broken")]
    assert records[0]["losses"] == records[1]["losses"]
