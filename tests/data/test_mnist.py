"""MNIST: what ships, and the user's own file in both common layouts."""

from collections import Counter

import numpy as np
import pytest
import torch

from fewstep.data import load, load_mnist
from fewstep.errors import FewstepError


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 256, (60, 28, 28)).astype(np.uint8) for name in ("train", "test")}
    labels = {name: rng.integers(0, 10, 60).astype(np.uint8) for name in arrays}
    np.savez(
        tmp_path / "a.npz",
        **{f"{n}_images": v for n, v in arrays.items()},
        **{f"{n}_labels": v for n, v in labels.items()},
    )
    np.savez(tmp_path / "b.npz", **{f"x_{n}": v for n, v in arrays.items()}, **{f"y_{n}": v for n, v in labels.items()})
    return tmp_path, arrays, labels


def test_reference_ships_and_looks_like_digits():
    images, captions = load_mnist()
    assert images.shape == (2500, 3, 32, 32)
    assert set(captions) == {f"digit {n}" for n in range(10)}
    assert min(Counter(captions).values()) > 200
    assert not images[:, :, :2].any()  # padded with black
    assert not images[..., 30:].any()
    ink = images[:, 0].float().mean((1, 2))
    of = {n: float(ink[torch.tensor([c == f"digit {n}" for c in captions])].mean()) for n in (0, 1)}
    assert of[0] > 1.5 * of[1]  # a ring holds more ink than a stroke: labels belong to their pictures


@pytest.mark.parametrize("name", ["a.npz", "b.npz"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_own_file_in_either_layout(files, name, split):
    folder, arrays, labels = files
    images, captions = load(str(folder / name), split, 32)
    assert np.array_equal(images[:, 1, 2:30, 2:30].numpy(), arrays[split])
    assert captions == [f"digit {n}" for n in labels[split]]


def test_sheet_and_back(files, monkeypatch, tmp_path):
    from fewstep.data import mnist

    folder, arrays, labels = files
    monkeypatch.setattr(mnist, "SHIPPED", tmp_path / "small.safetensors")
    mnist.build(folder / "a.npz", count=50)
    images, captions = load_mnist()
    assert np.array_equal(images[:, 0, 2:30, 2:30].numpy(), arrays["test"][:50])
    assert captions == [f"digit {n}" for n in labels["test"][:50]]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(FewstepError, match="only the reference"):
        load_mnist("train")
    with pytest.raises(FewstepError, match="reference"):
        load_mnist("referense")
    np.savez(tmp_path / "c.npz", train_images=np.zeros((2, 8, 8), np.uint8), train_labels=np.zeros(2))
    with pytest.raises(FewstepError, match="28, 28"):
        load(str(tmp_path / "c.npz"), "train")
    with pytest.raises(FewstepError, match="cannot read"):
        load(str(tmp_path / "c.npz"), "test")
