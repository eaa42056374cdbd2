"""Shapes as data of a distillation: what is read, what is refused, and how shapes are compared."""

import dataclasses

import numpy as np
import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.testing import digits
from fewstep.testing.digits import DigitBed, DigitJudge, DigitNetwork
from fewstep.testing.voxels import load_voxels, overlap, pooled_grids, shape_measures, train_voxels


@pytest.fixture
def files(tmp_path):
    """Boxes and walls bit-packed, and spheres with colour."""
    rng = np.random.default_rng(0)
    box, wall = np.zeros((40, 32, 32, 32), bool), np.zeros((30, 32, 32, 32), bool)
    for k, (low, size) in enumerate(rng.integers(4, 12, (40, 2))):
        box[k, low : low + size, low : low + size, low : low + size] = True
    for k, place in enumerate(rng.integers(0, 32, 30)):
        wall[k, place] = True
    packed = {name: np.packbits(grid.reshape(len(grid), -1), axis=1) for name, grid in (("box", box), ("wall", wall))}
    np.savez(tmp_path / "packed.npz", **packed, shape=np.array([32, 32, 32]))
    colour = np.zeros((30, 32, 32, 32, 4), np.uint8)
    colour[..., :3] = 255
    colour[:, 16, 16, 16, 3] = 255
    np.savez(tmp_path / "colour.npz", voxels=colour, names=np.array(["dot"] * 30))
    return tmp_path


def test_shapes_of_both_forms_are_read_and_split(files):
    data = load_voxels([files], 8)
    labels = torch.cat([data.train_labels, data.test_labels])
    assert labels.bincount().tolist() == [30, 40, 30]  # files by name: dots, then boxes and walls
    assert len(data.test) == 20
    assert data.train.shape == (80, 512)
    assert set(data.train.unique().tolist()) == {-1.0, 1.0}
    dots = data.train[data.train_labels == 0].unflatten(1, (8, 8, 8))
    assert bool((dots[:, 4, 4, 4] == 1).all())
    assert bool(((dots > 0).sum((1, 2, 3)) == 1).all())  # opacity counts, colour does not
    assert torch.equal(load_voxels([files / "colour.npz", files / "packed.npz"], 8).train, data.train)


def test_a_cell_is_occupied_if_any_voxel_is():
    grid = np.zeros((1, 32, 32, 32), bool)
    grid[0, 7, 8, 31] = True
    assert np.argwhere(pooled_grids(grid, 4)).tolist() == [[0, 0, 1, 3]]
    with pytest.raises(FewstepError, match="do not divide"):
        pooled_grids(grid, 12)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"box": np.zeros((3, 100), np.uint8)}, "another form"),
        ({"voxels": np.zeros((3, 16, 16, 16, 4), np.uint8)}, r"\(N, 32, 32, 32, 4\)"),
        ({"box": np.zeros((3, 4096), np.uint8)}, "two classes"),
    ],
)
def test_other_files_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(FewstepError, match=message):
        load_voxels([tmp_path / "a.npz"])


def test_files_that_are_no_arrays_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no archive")
    for place in (tmp_path / "a.npz", tmp_path / "absent.npz"):
        with pytest.raises(FewstepError, match="cannot be read"):
            load_voxels([place])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FewstepError, match="two classes"):
        load_voxels([tmp_path / "empty"])


def test_overlap_is_intersection_over_union():
    a = torch.tensor([[1.0, 1, -1, -1], [-1, -1, -1, -1]])
    b = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1], [-1, -1, -1, -1]])
    assert torch.allclose(overlap(a, b), torch.tensor([[1 / 3, 1.0, 0.0], [0.0, 0.0, 1.0]]))


def test_held_out_shapes_cover_themselves_and_one_shape_covers_one(files):
    data = load_voxels([files], 4)
    different = data.test.unique(dim=0)
    bed = DigitBed(
        dataclasses.replace(data, test=different, test_labels=torch.arange(len(different)) % 3),
        DigitNetwork(8, size=64, classes=3),
        DigitJudge(64, 3),
        further=shape_measures,
    )
    labels = bed.data.test_labels
    itself, one = bed.measures(different, labels), bed.measures(different[:1].repeat(len(different), 1), labels)
    assert (itself["coverage"], itself["nearest"]) == (1.0, 1.0)
    assert one["coverage"] == pytest.approx(1 / len(different))
    assert one["nearest"] < 1


def test_a_teacher_of_shapes_learns_them_and_is_the_identity_without_noise(files, monkeypatch):
    """Half-noised held-out shapes are told better than by an untrained network; students have its sizes."""
    monkeypatch.setattr(digits, "_classify", lambda judge, data: None)  # the judge is not asked
    data, errors = load_voxels([files], 4), []
    noise = torch.randn(data.test.shape, generator=torch.Generator().manual_seed(0))
    for steps in (1, 600):
        bed = train_voxels(data, steps, width=16)
        half, end = (torch.full((len(noise),), t, dtype=torch.float64) for t in (0.5, 1e-6))
        found = bed.teacher()((data.test + noise) / 2, half, digits.class_condition(data.test_labels))
        errors.append(float((found - data.test).square().mean()))
        assert torch.allclose(bed.teacher()(data.test, end), data.test, atol=1e-4)
    assert errors[1] < 0.9 * errors[0]
    student, batch = bed.fresh(8, 0), bed.batches(6)(torch.Generator().manual_seed(0))
    assert (student.size, student.classes) == (64, 3)
    assert set(batch.negative["class_labels"].tolist()) == {3}
