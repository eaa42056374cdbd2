"""Users' own pictures: folders and npz files, and the mistakes people make with them."""

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data import CaptionedImages, load
from fewstep.errors import FewstepError


def test_a_folder_gives_cropped_pictures_with_captions_from_text_or_name(tmp_path):
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = (200, 100, 50)  # the centre square
    Image.fromarray(wide).save(tmp_path / "red_barn.png")
    Image.fromarray(wide).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("a second barn\n", encoding="utf-8")
    images, captions = load(str(tmp_path), size=16)
    assert captions == ["a second barn", "red barn"]
    assert images.shape == (2, 3, 16, 16)
    assert images[0, :, 8, 8].tolist() == [200, 100, 50]
    assert images[0, :, 0, 0].tolist() == [200, 100, 50]


def test_transparent_ground_becomes_white(tmp_path):
    Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(tmp_path / "a.png")
    assert (load(str(tmp_path), size=8).images == 255).all()


def test_splits_lie_beside_the_training_data(tmp_path):
    array = np.zeros((1, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "d.npz", images=array, captions=np.array(["one"]))
    np.savez(tmp_path / "d.evaluation.npz", images=array, captions=np.array(["two"]))
    place = str(tmp_path / "d.npz")
    assert load(place, "evaluation", 8).captions == ["two"]
    assert load(place, "train", 8).captions == ["one"]
    with pytest.raises(FewstepError, match="calibration"):
        load(place, "calibration", 8)


def test_mistakes_are_told(tmp_path):
    with pytest.raises(FewstepError, match="no such data"):
        load(str(tmp_path / "absent"))
    with pytest.raises(FewstepError, match="no pictures"):
        load(str(tmp_path))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(FewstepError, match="cannot read"):
        load(str(tmp_path / "broken.npz"))
    np.savez(tmp_path / "objects.npz", images=np.zeros((1, 8, 8, 3), np.uint8), captions=np.array([{}], dtype=object))
    with pytest.raises(FewstepError, match="cannot read"):
        load(str(tmp_path / "objects.npz"))
    with pytest.raises(FewstepError, match="one caption"):
        CaptionedImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["only one"])
    with pytest.raises(FewstepError, match="uint8"):
        CaptionedImages(torch.zeros(1, 3, 8, 8), ["floats"])
