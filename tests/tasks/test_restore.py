import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import Cosine
from fewstep.solvers import SOLVERS, grids
from fewstep.tasks.restoration.guidance import ddnm
from fewstep.tasks.restoration.photos import Photo, read_photo, write_photo
from fewstep.tasks.restoration.restore import Restoration, restore_picture
from fewstep.tasks.restoration.tiles import starts, tiled


def local(x):
    """A network that looks 2 pixels far, and is the same everywhere."""
    kernel = torch.arange(1.0, 26.0).reshape(1, 1, 5, 5).to(x) / 325
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    return torch.nn.functional.conv2d(padded.flatten(0, 1)[:, None], kernel).reshape(x.shape).tanh()


def test_seams_are_invisible_for_a_network_that_looks_a_quarter_of_the_overlap_far():
    picture = torch.randn(3, 37, 50, dtype=torch.float64)
    whole = local(picture[None])[0]
    found = tiled(lambda tile, top, left: local(tile[None])[0], picture, 20, 8)
    torch.testing.assert_close(found, whole)
    # with no overlap the seams are there, so that the test can see them
    cut = tiled(lambda tile, top, left: local(tile[None])[0], picture, 20, 0)
    assert float((cut - whole).abs().max()) > 1e-3


def test_tiles_cover_the_picture_and_scale_it():
    assert starts(20, 20, 8) == [0]
    assert starts(50, 20, 8)[-1] == 30
    assert all(b - a <= 12 for a, b in zip(starts(101, 20, 8), starts(101, 20, 8)[1:], strict=False))
    picture = torch.rand(1, 9, 30)
    twice = lambda tile, top, left: tile.repeat_interleave(2, 1).repeat_interleave(2, 2)  # noqa: E731
    torch.testing.assert_close(tiled(twice, picture, 12, 4, 2), twice(picture, 0, 0))
    with pytest.raises(FewstepError, match="half their side"):
        tiled(twice, picture, 12, 7)


def smooth():
    """The exact denoiser of independent pixels around grey: mean 0, variance 0.2."""
    process, prediction = Cosine(), Prediction("sample")

    def network(x, time):
        t = process.from_network_time(torch.as_tensor(time).double())
        alpha, sigma = process.scales(t, x)
        return alpha * 0.2 / (alpha**2 * 0.2 + sigma**2) * x

    return Denoiser(network, process, prediction)


def plan(steps=4):
    return SOLVERS["ddim"](Cosine(), Prediction("sample"), grids.uniform_lambda(Cosine(), steps, 0.02, first=0.98))


@pytest.mark.parametrize("operator", ["box:2", "bicubic:4", "grey", "blur:0.8"])
def test_a_restored_picture_of_any_size_has_the_measurement_given(operator):
    """Also across tiles, for a picture that is no multiple of them; without noise the measurement is kept."""
    how = Restoration(operator, rule=ddnm(), tile=16)
    shape = (3, 48, 32)
    truth = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    given = how.of(shape).forward(truth[None])[0]
    found = restore_picture(smooth(), plan(), given, how, seeds=[0, 1])
    assert found.shape == (2, *shape)
    if operator != "blur:0.8":  # blur is periodic in each tile
        torch.testing.assert_close(how.of(shape).forward(found), given.expand(2, *given.shape), atol=0.03, rtol=0)
    else:
        assert float((found - truth).abs().mean()) < 0.25


def test_known_pixels_stay_and_unknown_ones_are_drawn():
    mask = torch.ones(20, 24)
    mask[5:15, 5:15] = 0
    picture = torch.rand(3, 20, 24)
    how = Restoration("inpainting", rule=ddnm(), tile=16)
    found = restore_picture(smooth(), plan(), picture, how, mask=mask, seeds=[0, 1])
    known = mask.bool().expand(3, -1, -1)
    torch.testing.assert_close(found[0][known], picture[known], atol=1e-4, rtol=0)
    assert float((found[0] - found[1])[~known].abs().mean()) > 0.01


@pytest.mark.parametrize(
    ("how", "picture", "mask", "says"),
    [
        (Restoration("bixcubic:4"), torch.rand(3, 8, 8), None, "unknown operator"),
        (Restoration("bicubic"), torch.rand(3, 8, 8), None, "needs a number"),
        (Restoration("bicubic:1.5"), torch.rand(3, 8, 8), None, "whole number"),
        (Restoration("grey:2"), torch.rand(1, 8, 8), None, "takes no number"),
        (Restoration("denoise"), torch.rand(4, 8, 8), None, "does not fit"),
        (Restoration("denoise"), torch.rand(8, 8), None, "does not fit"),
        (Restoration("denoise"), torch.full((3, 8, 8), float("nan")), None, "NaN"),
        (Restoration("inpainting"), torch.rand(3, 8, 8), torch.ones(4, 4), "another size"),
        (Restoration("inpainting"), torch.rand(3, 8, 8), None, "needs a mask"),
    ],
)
def test_what_does_not_fit_is_refused(how, picture, mask, says):
    with pytest.raises(FewstepError, match=says):
        restore_picture(smooth(), plan(), picture, how, mask=mask)


def test_a_constant_picture_smaller_than_a_tile_is_restored():
    found = restore_picture(smooth(), plan(), torch.full((3, 3, 5), 0.5), Restoration("bicubic:2", tile=16))
    assert found.shape == (1, 3, 6, 10)
    assert bool(found.isfinite().all())


def test_the_verb_restores_with_a_denoiser_and_with_a_pipeline(tmp_path):
    import fewstep as fs
    from tests.pipelines import tiny_pipelines as tiny

    small = torch.rand(2, 3, 4, 4)
    found = fs.restore(smooth(), small, "box:2", rule="ddnm", plan=plan(), tile=8, seeds=[3, 4])
    alone = restore_picture(smooth(), plan(), small[1], Restoration("box:2", rule=ddnm(), tile=8), seeds=[4])
    torch.testing.assert_close(found[1][1:], alone)
    drawn = fs.restore(tiny.unconditional(tmp_path), small, "box:2", steps=2)
    assert [tuple(x.shape) for x in drawn] == [(1, 3, 8, 8)] * 2
    with pytest.raises(FewstepError, match="unknown guidance"):
        fs.restore(smooth(), small, "box:2", rule="ddmn", plan=plan())


def test_files_keep_grey_depth_alpha_and_what_they_say(tmp_path):
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (5, 7), dtype=np.uint16)
    clear = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    grey = rng.integers(0, 256, (5, 7), dtype=np.uint8)
    for name, pixels in (("deep", deep), ("clear", clear), ("grey", grey)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        photo = read_photo(tmp_path / f"{name}.png")
        write_photo(photo, tmp_path / f"{name}-again.png")
        with Image.open(tmp_path / f"{name}-again.png") as again:
            assert np.array_equal(np.asarray(again).astype(np.int64), pixels)
    about = Image.Exif()
    about[0x010E] = "a hill"
    about[0x0112] = 6  # to be turned
    Image.fromarray(clear[..., :3]).save(tmp_path / "turned.jpg", exif=about, quality=95)
    photo = read_photo(tmp_path / "turned.jpg")
    assert photo.pixels.shape == (3, 7, 5)
    write_photo(photo, tmp_path / "upright.jpg")
    with Image.open(tmp_path / "upright.jpg") as upright:
        assert upright.size == (5, 7)
        assert upright.getexif()[0x010E] == "a hill"
        assert upright.getexif().get(0x0112, 1) == 1


def test_files_that_cannot_be_used_are_refused_and_nothing_is_overwritten(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no")
    with pytest.raises(FewstepError, match="cannot read"):
        read_photo(tmp_path / "broken.png")
    photo = Photo(torch.rand(1, 4, 4), None, 16, {})
    with pytest.raises(FewstepError, match="16 bits"):
        write_photo(photo, tmp_path / "deep.jpg")
    with pytest.raises(FewstepError, match="transparency"):
        write_photo(Photo(torch.rand(3, 4, 4), torch.rand(1, 4, 4), 8, {}), tmp_path / "clear.jpg")
    Image.new("L", (4, 4)).save(tmp_path / "theirs.png")
    for over in ("nothing", "ours"):
        with pytest.raises(FewstepError):
            write_photo(photo, tmp_path / "theirs.png", over)
    write_photo(photo, tmp_path / "ours.png")
    write_photo(photo, tmp_path / "ours.png", "ours")
