import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.metrics import load_features


def images(n, side=24, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spec", ["random", "pixels", "pixels:4"])
def test_features_do_not_depend_on_the_batch_size(spec):
    net, some = load_features(spec), images(13)
    whole = net(some)
    for batch in (1, 4, 13):
        torch.testing.assert_close(net(some, batch=batch), whole, rtol=1e-5, atol=1e-6)


def test_bytes_and_floats_give_the_same():
    some = (images(3) * 255).round().to(torch.uint8)
    net = load_features("random")
    torch.testing.assert_close(net(some), net(some.float() / 255))


def test_seed_decides_the_random_network_and_nothing_else_does():
    some = images(5)
    torch.manual_seed(1)
    first = load_features("random:7")(some)
    torch.manual_seed(2)
    assert torch.equal(load_features("random:7")(some), first)
    assert not torch.allclose(load_features("random:8")(some), first)
    assert first.shape == (5, 64)
    assert load_features("random")(images(2, side=7)).shape == (2, 64)


def test_random_features_keep_the_scale_through_the_layers():
    # He's variance: the second moment of the last layer stays of the order of the input's, neither fading nor growing.
    noise = (images(64, side=32) > 0.5).float()  # +-1 after centring: second moment 1
    found = load_features("random")(noise)
    assert 0.1 < float(found.square().mean()) < 10
    assert float(found.std(0).mean()) > 1e-3


def test_random_features_see_fine_damage_that_pooled_pixels_miss():
    some = torch.nn.functional.interpolate(images(4, side=8), 32, mode="nearest")
    board = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2 - 1) * 0.2
    damaged = some + board  # has mean zero in every pooled cell
    pixels, noise = load_features("pixels"), load_features("random")
    torch.testing.assert_close(pixels(damaged), pixels(some), rtol=0, atol=1e-6)
    assert float((noise(damaged) - noise(some)).norm(dim=1).min()) > 0.05


def test_pixels_are_means_of_cells():
    image = torch.zeros(1, 3, 4, 4)
    image[0, 0, :2, :2] = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    found = load_features("pixels:2")(image)[0]
    assert found.tolist() == pytest.approx([0.75] + [0.0] * 11)


@pytest.mark.parametrize(
    ("spec", "message"),
    [("randon", "Did you mean 'random'"), ("pixels:big", "whole number"), ("pixels:0", "whole"), ("clip", "argument")],
)
def test_wrong_specs_are_explained(spec, message):
    with pytest.raises(FewstepError, match=message):
        load_features(spec)


def test_broken_images_are_refused():
    net = load_features("random")
    with pytest.raises(FewstepError, match="NaN"):
        net(torch.full((1, 3, 8, 8), float("nan")))
    with pytest.raises(FewstepError, match="images"):
        net(torch.zeros(0, 3, 8, 8))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.full((2, 3, 8, 8), 200.0), "Divide images in 0..255"),
        (torch.full((2, 3, 8, 8), -1.0), "shift images in"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "int64"),
        (torch.full((2, 3, 8, 8), float("nan")), "NaN"),
    ],
)
def test_images_of_another_range_are_refused_everywhere(images, words):
    from fewstep.metrics.distances import psnr
    from fewstep.rewards import load_reward

    for use in (load_features("pixels"), lambda x: psnr(x, x), lambda x: load_reward("contrast").score(x, ["", ""])):
        with pytest.raises(FewstepError, match=words if images.is_floating_point() else "float"):
            use(images)


def test_what_a_decoder_overshoots_is_taken_as_it_is():
    images = torch.full((1, 3, 8, 8), 1.2)
    assert load_features("pixels")(images).mean() == pytest.approx(1.2)
