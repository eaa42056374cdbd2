"""The shipped emoji: held-out combinations are new, their factors are not; captions are plain words."""

import numpy as np
import pytest

from fewstep.data import emoji_prompts, load_emoji
from fewstep.data.emoji import FOLDER
from fewstep.data.noto import TONES, build, plain_caption
from fewstep.errors import FewstepError
from fewstep.files import read_json


def _factors(caption: str) -> tuple[str, str, str]:
    """(activity, person, tone) read from the plain words alone, mirrored variants taken as one."""
    words, _, tone = caption.replace(" facing right", "").rpartition(" with ")
    person, _, activity = words.partition(" ")
    return (activity, person, tone) if person in ("woman", "man") else (words, "", tone)


@pytest.fixture(scope="module")
def captions():
    return {split: load_emoji(split).captions for split in ("train", "calibration", "evaluation")}


def test_splits_are_disjoint_and_of_the_stated_size(captions):
    sizes = {split: len(set(names)) for split, names in captions.items()}
    assert sizes["evaluation"] == 250
    assert sizes["calibration"] == 60
    assert not set(captions["train"]) & set(captions["evaluation"])
    assert not set(captions["calibration"]) & set(captions["evaluation"])
    assert len(load_emoji("all")) == sum(len(names) for names in captions.values())


def test_held_out_combinations_are_new_but_their_factors_are_not(captions):
    seen = {_factors(caption) for caption in captions["train"]}
    activities, _, tones = ({factors[i] for factors in seen} for i in range(3))
    for split in ("calibration", "evaluation"):
        for caption in captions[split]:
            activity, person, tone = _factors(caption)
            assert (activity, person, tone) not in seen, caption
            assert activity in activities, caption
            assert tone in tones, caption
    calibration, evaluation = ({_factors(c) for c in captions[s]} for s in ("calibration", "evaluation"))
    assert not calibration & evaluation


def test_no_held_out_picture_is_in_training():
    train = {image.numpy().tobytes() for image in load_emoji("train").images}
    assert not any(image.numpy().tobytes() in train for image in load_emoji("evaluation").images)


def test_captions_are_plain(captions):
    for names in captions.values():
        for caption in names:
            assert caption == caption.strip() != ""
            assert not any(word in caption for word in ("fitzpatrick", "female sign", "male sign", "component", ", "))


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("runner, emoji modifier fitzpatrick type-6, female sign", "woman runner with dark skin tone"),
        ("anchor", "anchor"),
        ("emoji modifier fitzpatrick type-4", "medium skin tone"),
        ("man, emoji modifier fitzpatrick type-3, wrench", "man and wrench with medium-light skin tone"),
        ("man, emoji component red hair", "man with red hair"),
        (
            "woman, emoji modifier fitzpatrick type-4, handshake, man, emoji modifier fitzpatrick type-1-2",
            "woman with medium skin tone and handshake and man with light skin tone",
        ),
    ],
)
def test_plain_caption(raw, plain):
    assert plain_caption(raw) == plain


def test_prompts_are_the_captions_without_decoding(captions):
    assert emoji_prompts("evaluation") == captions["evaluation"]


def test_pictures_are_on_white_and_the_set_is_small():
    images = load_emoji("evaluation").images
    assert images.shape[1:] == (3, 64, 64)
    assert (images[:, :, 0, 0].float().mean() > 240).item()
    assert (FOLDER / "images.safetensors").stat().st_size < 9e6


def test_unknown_split_is_told():
    with pytest.raises(FewstepError, match="'train'"):
        load_emoji("trian")


def test_building_the_set_keeps_white_and_rounds_by_two_at_most(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 64, 64, 3)).astype(np.uint8)
    images[:, :20] = 255
    names = [f"dancer, {tone}" for tone in TONES] * 4
    np.savez(tmp_path / "raw.npz", images=images, captions=np.array(names))
    build(tmp_path / "raw.npz", tmp_path / "out")
    monkeypatch.setattr("fewstep.data.emoji.FOLDER", tmp_path / "out")
    stored = load_emoji("all").images.permute(0, 2, 3, 1).numpy()
    assert (stored[images == 255] == 255).all()
    assert np.abs(stored.astype(int) - images).max() <= 2
    assert {row["name"] for row in read_json(tmp_path / "out" / "captions.json")} == set(names)
