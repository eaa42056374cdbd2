"""The trajectory store: whole shards, several writers, resumption, and refusal of what does not fit."""

from dataclasses import replace

import pytest
import torch
from filelock import FileLock

from fewstep.distillation import store
from fewstep.distillation.store import StoreHeader, TrajectoryStore, write_store
from fewstep.errors import FewstepError
from fewstep.process import RectifiedFlow

HEADER = StoreHeader(
    times=(1.0, 0.5, 0.0), process=repr(RectifiedFlow()), model="m", solver="ddim", guidance=1.0, shape=(2,),
    count=10, shard=4, seed=100, conditions=("a", "b", "c"),
)  # fmt: skip


def _solve(seeds, conditions):
    """A path that tells where it comes from: noise is the seed, data the condition."""
    ends = torch.tensor([seeds, [0.0] * len(seeds), conditions]).float().T
    return ends[:, :, None].expand(-1, -1, 2)


def test_a_store_gives_back_what_was_solved(tmp_path):
    assert write_store(tmp_path, HEADER, _solve) == 3
    opened = TrajectoryStore.open(tmp_path, times=HEADER.times, process=RectifiedFlow())
    assert opened.header == HEADER
    ends, conditions = opened.ends()
    assert conditions.tolist() == [i % 3 for i in range(10)]
    assert ends[:, 0].tolist() == [float(i % 3) for i in range(10)]
    path, numbers = opened.draw(200, torch.Generator().manual_seed(0))
    assert path.shape == (200, 3, 2)
    assert torch.equal(path[:, 2, 0].long(), numbers)
    assert {int(s) for s in path[:, 0, 0]} == set(range(100, 110))


def test_a_large_store_is_read_from_its_files(tmp_path, monkeypatch):
    write_store(tmp_path, HEADER, _solve)
    monkeypatch.setattr(store, "IN_MEMORY", 0)
    opened, seen = TrajectoryStore.open(tmp_path), set()
    for seed in range(60):
        path, numbers = opened.draw(3, torch.Generator().manual_seed(seed))
        assert torch.equal(path[:, 2, 1].long(), numbers)
        assert torch.equal((path[:, 0, 0].long() - 100) % 3, numbers)
        seen |= {int(s) for s in path[:, 0, 0]}
    assert seen == set(range(100, 110))


def test_an_unfinished_store_is_refused_and_goes_on(tmp_path):
    calls = []

    def dies(seeds, conditions):
        calls.append(seeds)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return _solve(seeds, conditions)

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path, HEADER, dies)
    with pytest.raises(FewstepError, match="lacks 2 of 3"):
        TrajectoryStore.open(tmp_path)
    assert write_store(tmp_path, HEADER, _solve) == 2
    fresh = tmp_path / "fresh"
    write_store(fresh, HEADER, _solve)
    for name in sorted(p.name for p in (fresh / "shards").glob("*.safetensors")):
        assert (fresh / "shards" / name).read_bytes() == (tmp_path / "shards" / name).read_bytes()


def test_a_shard_that_another_worker_makes_is_left_to_it(tmp_path):
    (tmp_path / "shards").mkdir(parents=True)
    with FileLock(tmp_path / "shards" / "00001.lock"):
        assert write_store(tmp_path, HEADER, _solve) == 2
    assert not (tmp_path / "shards" / "00001.safetensors").exists()
    assert write_store(tmp_path, HEADER, _solve) == 1


@pytest.mark.parametrize(("changes", "told"), [({"times": (1.0, 0.4, 0.0)}, "times"), ({"guidance": 2.0}, "guidance")])
def test_another_store_in_the_same_folder_is_refused(tmp_path, changes, told):
    write_store(tmp_path, HEADER, _solve)
    with pytest.raises(FewstepError, match=f"other {told}"):
        write_store(tmp_path, replace(HEADER, **changes), _solve)


def test_a_store_made_at_other_times_is_refused(tmp_path):
    write_store(tmp_path, HEADER, _solve)
    with pytest.raises(FewstepError, match="other times"):
        TrajectoryStore.open(tmp_path, times=(1.0, 0.25, 0.0))
    with pytest.raises(FewstepError, match="belongs to the process"):
        TrajectoryStore.open(tmp_path, process=RectifiedFlow(shift=3.0))
    with pytest.raises(FewstepError, match="no trajectory store"):
        TrajectoryStore.open(tmp_path / "nowhere")


def test_wrong_shapes_and_nan_never_reach_the_disk(tmp_path):
    with pytest.raises(FewstepError, match="shape"):
        write_store(tmp_path, HEADER, lambda seeds, conditions: _solve(seeds, conditions)[:, :2])
    with pytest.raises(FewstepError, match="not finite"):
        write_store(tmp_path, HEADER, lambda seeds, conditions: _solve(seeds, conditions) * float("nan"))
    assert not list((tmp_path / "shards").glob("*.safetensors"))


def test_stores_written_before_an_option_of_processes_was_renamed_still_open(tmp_path):
    write_store(tmp_path, replace(HEADER, process=HEADER.process.replace("time_conditioning=", "told=")), _solve)
    assert "told=" in (tmp_path / "header.json").read_text()
    assert TrajectoryStore.open(tmp_path, process=RectifiedFlow()).header == HEADER
    assert write_store(tmp_path, HEADER, _solve) == 0
