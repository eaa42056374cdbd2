"""Pictures as people have them: turned by EXIF, of every mode and depth, with captions of several kinds, broken."""

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from fewstep.data import load
from fewstep.errors import FewstepError

SIDE = 8


def save(picture, file, **options):
    picture.save(file, **options)
    return file


def pixels(folder, size=SIDE):
    return load(str(folder), size=size).images[0].permute(1, 2, 0).numpy()


def halves(top=(250, 0, 0), bottom=(0, 0, 250)):
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    image[: SIDE // 2], image[SIDE // 2 :] = top, bottom
    return image


# where the top row of the scene lies in the stored pixels, by the EXIF standard's table of orientations
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_pictures_are_upright(orientation, ending, tmp_path):
    scene = halves()
    scene[:, : SIDE // 4] = (0, 250, 0)  # tells left from right
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](scene)))
    save(stored, tmp_path / f"a.{ending}", exif=exif, **lossless)
    assert np.abs(pixels(tmp_path).astype(int) - scene).max() <= (30 if ending == "jpg" else 0)


def test_sixteen_bits_of_grey_keep_their_levels(tmp_path):
    ramp = np.linspace(0, 65535, SIDE * SIDE).round().astype(np.uint16).reshape(SIDE, SIDE)
    expected = (ramp / 257).round()
    for ending in ("png", "tif"):
        folder = tmp_path / ending
        folder.mkdir()
        save(Image.fromarray(ramp), folder / f"a.{ending}")
        assert np.abs(pixels(folder)[..., 0] - expected).max() == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"])
def test_every_mode_gives_the_same_grey_or_white(mode, tmp_path):
    ground = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    ending = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    save(ground.convert(mode), tmp_path / f"a.{ending}")
    assert (pixels(tmp_path) >= 254).all()


def test_transparency_by_a_colour_or_a_palette_becomes_white(tmp_path):
    scene = Image.fromarray(halves(top=(10, 20, 30)))
    for name, picture, key in [
        ("rgb", scene, (10, 20, 30)),
        ("palette", scene.quantize(4), 0),
    ]:
        folder = tmp_path / name
        folder.mkdir()
        save(picture, folder / "a.png", transparency=key)
        top, bottom = pixels(folder)[0, 0].tolist(), pixels(folder)[-1, 0].tolist()
        assert sorted([top, bottom])[-1] == [255, 255, 255]
        assert top != bottom


def test_colour_profiles_are_obeyed_and_useless_ones_ignored(tmp_path):
    srgb, lab = (ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes() for kind in ("sRGB", "LAB"))
    # the primaries of red and blue in each other's place: the table of contents stands at the front
    swapped = srgb.replace(b"rXYZ", b"?XYZ", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"?XYZ", b"bXYZ", 1)
    scene = halves()
    for name, profile, expected in [
        ("same", srgb, scene),
        ("swapped", swapped, scene[..., ::-1]),
        ("other", lab, scene),
        ("broken", b"no profile", scene),
    ]:
        folder = tmp_path / name
        folder.mkdir()
        save(Image.fromarray(scene), folder / "a.png", icc_profile=profile)
        assert np.abs(pixels(folder).astype(int) - expected).max() <= 2, name


def test_other_numbers_are_refused_with_the_file_named(tmp_path):
    save(Image.fromarray(np.full((SIDE, SIDE), 0.5, np.float32)), tmp_path / "float.tif")
    with pytest.raises(FewstepError, match=r"float\.tif.*32-bit"):
        load(str(tmp_path), size=SIDE)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"GIF89a", lambda b: b"", lambda b: b"\0" * 99]
)
def test_a_broken_picture_is_named_or_left_out(damage, tmp_path):
    good = save(Image.effect_noise((64, 64), 90).convert("RGB"), tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes(damage(good.read_bytes()))
    with pytest.raises(FewstepError, match=r"cut\.png"):
        load(str(tmp_path), size=SIDE)
    with pytest.warns(UserWarning, match=r"1 of 2.*\n.*cut\.png"):
        found = load(str(tmp_path), size=SIDE, broken="skip")
    assert found.captions == ["good"]
    good.unlink()
    with pytest.raises(FewstepError, match="no picture"):
        load(str(tmp_path), size=SIDE, broken="skip")


def test_what_is_not_a_picture_is_left_alone_and_what_is_not_read_is_told(tmp_path):
    save(Image.fromarray(halves()), tmp_path / "a.png")
    for name in ("._a.png", ".hidden.jpg", "Thumbs.db", "notes.md"):
        (tmp_path / name).write_bytes(b"?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(str(tmp_path), size=SIDE).captions == ["a"]
    (tmp_path / "b.heic").write_bytes(b"?")
    with pytest.warns(UserWarning, match=r"b\.heic"):
        load(str(tmp_path), size=SIDE)


# --- captions -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ("0001", "0002"):
        save(Image.fromarray(halves()), tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("column", ["text", "caption", "prompt"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_table_of_captions_is_read(folder, kind, column):
    rows = [("0002.png", 'two, "quoted" é'), ("0001.png", "one")]
    if kind == "jsonl":
        text = "\n".join(json.dumps({"file_name": name, column: words}) for name, words in rows) + "\n\n"
    else:
        text = f"file_name,{column}\r\n" + '0002.png,"two, ""quoted"" é"\r\n0001.png,one\r\n'
    (folder / f"metadata.{kind}").write_bytes(text.encode("utf-8-sig"))
    assert load(str(folder), size=SIDE).captions == [words for _, words in rows]


def test_pictures_of_a_table_may_lie_deeper(folder):
    (folder / "deep").mkdir()
    for file in folder.glob("*.png"):
        file.rename(folder / "deep" / file.name)
    rows = [{"file_name": f"deep/000{i}.png", "text": f"word {i}"} for i in (1, 2)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load(str(folder), size=SIDE).captions == ["word 1", "word 2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"file_name": "0001.png", "text": "a"}', "lacks a picture.*0002.png"),
        ('{"file_name": "0001.png", "text": "a"}\n{"file_name": "0001.png", "text": "b"}', "second time"),
        ('{"file_name": "0003.png", "text": "a"}', "line 1.*not there.*0003"),
        ('{"file_name": "0001.png", "label": 3}', "line 1.*caption"),
        ('{"file_name": "0001.png", "text": null}', "line 1.*not text"),
        ('{"file_name": "0001.png", "text": "a"}\n{broken', "line 2.*not JSON"),
        ("[" * 100_000, "line 1.*not JSON"),
        ("[1]", "line 1.*object"),
    ],
)
def test_mistakes_in_a_table_are_named(folder, text, words):
    (folder / "metadata.jsonl").write_text(text)
    with pytest.raises(FewstepError, match=words):
        load(str(folder), size=SIDE)


def test_texts_beside_pictures_are_read_in_the_encodings_of_windows(folder):
    (folder / "0001.txt").write_text("café", encoding="utf-16")
    (folder / "0002.txt").write_text("cafe\u0301 au lait\n", encoding="utf-8-sig")
    assert load(str(folder), size=SIDE).captions == ["café", "café au lait"]
    (folder / "0001.txt").write_text("café", encoding="latin-1")
    with pytest.raises(FewstepError, match=r"0001\.txt.*UTF-8"):
        load(str(folder), size=SIDE)


# --- npz ------------------------------------------------------------------------------------------------------------


def test_arrays_of_other_shapes_and_depths(tmp_path):
    grey = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(1, SIDE, SIDE)
    for k, images in enumerate([grey, grey[..., None], np.stack([grey] * 3, -1), grey.astype(np.uint16) * 257]):
        np.savez(tmp_path / f"{k}.npz", images=images, captions=np.array([b"one"]))
        found = load(str(tmp_path / f"{k}.npz"), size=SIDE)
        assert torch.equal(found.images[0, 0], torch.from_numpy(grey[0]))
        assert found.captions == ["one"]


@pytest.mark.parametrize(
    "images", [np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 8, 8, 3)), np.zeros((8, 8), np.uint8)]
)
def test_arrays_that_cannot_be_told_are_refused(images, tmp_path):
    np.savez(tmp_path / "d.npz", images=images, captions=np.array(["one"]))
    with pytest.raises(FewstepError, match=r"d\.npz"):
        load(str(tmp_path / "d.npz"), size=SIDE)
