"""Two gloo processes: the mean gradient, equal weights, shares (FSDP2), checkpoints, errors that end all."""

import os
import sys

import pytest
import torch
from torch import nn

from fewstep.distillation.engine import towards
from fewstep.errors import FewstepError
from fewstep.files import read_tensors, write_tensors
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.shards import Shards, wanted, whole_state
from fewstep.train.stage import OptimizerGroup, Stage, StageConfig
from tests import processes

STEPS, HALF = 8, 4


class Net(nn.Module):
    """Two layers, one used by the first process alone."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.odd, self.out = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 3)

    def forward(self, x, odd=True):
        hidden = self.inner(x).tanh()
        return self.out(hidden + self.odd(hidden) if odd else hidden)


def stage(parts, index=0, fail_at=None, spoil_at=None):
    """Student and critic on losses of their own; the batch of a step in `parts` shares."""
    student, critic, slow = Net(index), Net(10), Net(20).requires_grad_(False)

    def data(step, which):
        generator = torch.Generator().manual_seed(1000 * step + which)
        return torch.randn(HALF, 5, generator=generator), torch.randn(HALF, 3, generator=generator)

    def loss(step, network, other):
        if step == fail_at:
            raise FewstepError("the data of process 1 are gone")
        value = 0.0
        for which in parts:
            x, y = data(step, which)
            for _ in range(which):  # the calls of a roll-out, which differ between processes
                with torch.no_grad():
                    network(x)
            value = value + (network(x, odd=which == 0) - y + 0.1 * other(x).detach()).square().mean() / len(parts)
        if step == spoil_at:
            value = value * float("nan")
        return value, {}

    def turns(step, generator):
        yield ("student",), lambda: loss(step, student, critic)
        yield ("critic",), lambda: loss(step, critic, student)

    return Stage(
        modules={"student": student, "critic": critic}, batch=lambda g: {}, loss=None, save=lambda p: None,
        state={"slow": slow}, turns=turns, after=lambda step: towards(slow, student, 0.1),
        groups={
            "student": OptimizerGroup({"student": student}),
            "critic": OptimizerGroup({"critic": critic}, averaged=False),
        },
    )  # fmt: skip


def settings(**more):
    given = {"steps": STEPS, "batch": HALF, "device": "cpu", "warmup": 0, "learning_rate": 1e-2, "decay": "constant"}
    return StageConfig(**{**given, "checkpoint_every": 3, "clip_norm": 0.1, **more})


def train(out, parts, index=0, fail_at=None, spoil_at=None, **more):
    config = settings(**more)
    made = stage(parts, index, fail_at, spoil_at)
    return made, fit(made, config, out, accelerator_for(config), quiet=True)


def launch(program, out, check=True):
    """`program(out, index)` in two processes; their exit codes and what they wrote."""
    files = [out / f"{k}.txt" for k in range(2)]
    running = processes.start_together(program, out, files=files)
    for process in running:
        process.join()
    codes, told = [process.exitcode for process in running], [file.read_text() for file in files]
    assert not check or codes == [0, 0], told
    return codes, told


def checkpoint(folder):
    return read_tensors(folder / "checkpoint" / "state.safetensors")


def in_every_way(out, index):
    for name, more in (("plain", {}), ("shard", {"shard": True}), ("widths", {"shard": True, "ema_widths": (0.1,)})):
        made, _ = train(out / name, [index], index, **more)
        write_tensors(out / f"{name}-{index}.safetensors", whole_state(made.modules["student"]))
    train(out / "first", [index], index, steps=3, shard=True)
    train(out / "first", [index], index)
    train(out / "second", [index], index, steps=3)
    train(out / "second", [index], index, shard=True)


@pytest.mark.slow
def test_two_processes_train_as_one_on_both_batches(tmp_path):
    """Also where a roll-out and a gradient are one process's alone; shares change nothing, checkpoints fit either."""
    launch(in_every_way, tmp_path)
    train(tmp_path / "one", [0, 1])
    one, plain, shard = (checkpoint(tmp_path / name) for name in ("one", "plain", "shard"))
    start = Net(0).state_dict()
    assert one.keys() == plain.keys() == shard.keys()
    for key in one:
        torch.testing.assert_close(plain[key], one[key], atol=2e-6, rtol=1e-5, msg=key)
        torch.testing.assert_close(shard[key], plain[key], atol=2e-7, rtol=1e-6, msg=key)
    assert not torch.equal(one["module/slow/out.weight"], Net(20).state_dict()["out.weight"])
    assert (one["module/student/odd.weight"] - start["odd.weight"]).abs().max() > 1e-3
    for name in ("plain", "shard"):
        ends = [read_tensors(tmp_path / f"{name}-{k}.safetensors") for k in range(2)]
        assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
        assert all(torch.equal(ends[0][key], checkpoint(tmp_path / name)[f"ema/student.{key}"]) for key in ends[0])
    for name in ("first", "second"):  # shares first and whole later, and the other way round
        resumed = checkpoint(tmp_path / name)
        for key in plain:
            torch.testing.assert_close(resumed[key], plain[key], atol=2e-7, rtol=1e-6, msg=key)
    widths = checkpoint(tmp_path / "widths")
    assert widths["power/0.1/student.inner.weight"].shape == (7, 5)
    assert len(list((tmp_path / "widths" / "averages").iterdir())) == 3


def with_errors_of_one(out, index):
    try:
        train(out / "a", [index], index, **({"spoil_at": 5} if index else {}))
    except FewstepError as error:
        print(f"A: {error}", file=sys.stderr)
    try:
        train(out / "b", [index], index, fail_at=5 if index else None)
    except FewstepError as error:
        print(f"B: {error}", file=sys.stderr, flush=True)
        os._exit(2)


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_and_is_told(tmp_path):
    codes, (first, second) = launch(with_errors_of_one, tmp_path, check=False)
    assert codes == [2, 2]
    assert "gradient became NaN or infinite" in first
    assert "loss became NaN" in second
    assert "B: process 0 lost the others" in first
    assert "B: the data of process 1 are gone" in second
    kept = checkpoint(tmp_path / "a")
    assert all(bool(value.isfinite().all()) for value in kept.values())


def test_shares_are_refused_where_they_cannot_be(monkeypatch):
    net = Net(0)
    with pytest.raises(FewstepError, match="shares weights"):
        Shards({"student": net, "critic": net}, torch.device("cpu"))
    assert not wanted(True), "with one process there is nobody to share with"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(FewstepError, match="version 2"):
        wanted(False)
