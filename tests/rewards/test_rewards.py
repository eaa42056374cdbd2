from functools import partial

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.rewards import REWARDS, Reward, RewardFunction, load_reward
from fewstep.rewards.quality import QualityNet, realness

WEIGHTLESS = ["sharpness", "colourfulness", "contrast"]


def images(n=3, side=12, seed=0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def slope_error(reward, some):
    """Relative error of the gradient along a random direction against a central difference, float64."""
    some = some.double().requires_grad_()
    prompts = ["x"] * len(some)
    (gradient,) = torch.autograd.grad(reward.score(some, prompts).sum(), some)
    direction = torch.randn(some.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        ahead, behind = (reward.score(some + h * direction, prompts).sum() for h in (1e-5, -1e-5))
    slope = float(ahead - behind) / 2e-5
    return abs(float((gradient * direction).sum()) - slope) / abs(slope)


@pytest.mark.parametrize("name", WEIGHTLESS)
def test_gradients_of_weightless_rewards(name):
    reward = load_reward(name)
    assert isinstance(reward, Reward)
    assert reward.differentiable
    assert slope_error(reward, images()) < 1e-5
    flat = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    reward.score(flat, [""]).sum().backward()
    assert flat.grad.isfinite().all()


def test_gradient_of_the_quality_reward():
    torch.manual_seed(0)
    network = QualityNet().double().eval()
    assert slope_error(RewardFunction("quality", partial(realness, network)), images(side=20)) < 1e-5


def test_known_values():
    white_black = torch.cat([torch.zeros(1, 3, 6, 3), torch.ones(1, 3, 6, 3)], dim=3)
    assert float(load_reward("contrast").score(white_black, [""])) == pytest.approx(0.5, abs=1e-4)
    assert float(load_reward("colourfulness").score(white_black, [""])) == pytest.approx(0, abs=1e-2)
    red = torch.zeros(1, 3, 6, 6)
    red[:, 0] = 1  # rg = 255, yb = 127.5, no spread
    expected = 0.3 * (255**2 + 127.5**2) ** 0.5
    assert float(load_reward("colourfulness").score(red, [""])) == pytest.approx(expected, rel=1e-4)
    # One bright pixel in a 5x5 grey image: Laplacian on the 3x3 inside is -4 once, 1 four times, 0 four times.
    dot = torch.zeros(1, 3, 5, 5)
    dot[..., 2, 2] = 1
    assert float(load_reward("sharpness").score(dot, [""])) == pytest.approx(20 / 9, rel=1e-5)


def test_blur_and_grey_lower_the_measures():
    some = images(side=32)
    blurred = torch.nn.functional.avg_pool2d(some, 3, 1, 1)
    grey = some.mean(1, keepdim=True).expand_as(some)
    for name, worse in (("sharpness", blurred), ("contrast", blurred), ("colourfulness", grey)):
        reward = load_reward(name)
        assert torch.all(reward.score(worse, [""] * 3) < reward.score(some, [""] * 3))


def test_quality_round_trip_through_half_precision(tmp_path):
    torch.manual_seed(0)
    network = QualityNet().eval().half()
    network.save_pretrained(tmp_path)
    reward = load_reward(f"quality:{tmp_path}")
    some = images(side=33)
    torch.testing.assert_close(reward.score(some, [""] * 3), network.float()(some), rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in reward.function.args[0].parameters())


def test_quality_network_learns_real_from_noise():
    torch.manual_seed(0)
    network = QualityNet(widths=(8, 16), groups=4)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)

    def batch(n):
        smooth = torch.nn.functional.interpolate(torch.rand(n, 3, 2, 2, generator=generator), 16, mode="bilinear")
        noisy = (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)
        return torch.cat([smooth, noisy]), torch.cat([torch.ones(n), torch.zeros(n)])

    for _ in range(60):
        some, label = batch(16)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(some), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    some, label = batch(64)
    assert float(((network(some) > 0) == label.bool()).float().mean()) > 0.9


def test_a_new_reward_joins_with_one_decorator():
    class Mean:
        name, differentiable = "mean", True

        def score(self, images, prompts):
            return images.mean((1, 2, 3))

    REWARDS.register("mean-for-test")(lambda argument: Mean())
    assert load_reward("mean-for-test").score(torch.ones(2, 3, 4, 4), ["", ""]).tolist() == [1, 1]
    assert "mean-for-test" in REWARDS.kinds()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sharpnes", "Did you mean 'sharpness'"),
        ("sharpness:3", "takes no argument"),
        ("quality", "needs an argument"),
        ("quality:no-such-folder", "no such quality"),
        ("clip:./no-such/folder", "no such CLIP"),
    ],
)
def test_wrong_specs_are_explained(spec, message):
    with pytest.raises(FewstepError, match=message):
        load_reward(spec)


@pytest.mark.parametrize("kind", ["quality", "clip"])
def test_an_empty_folder_is_explained(kind, tmp_path):
    with pytest.raises(FewstepError, match="cannot load"):
        load_reward(f"{kind}:{tmp_path}")


def test_wrong_images_are_explained():
    reward = load_reward("contrast")
    with pytest.raises(FewstepError, match="uint8"):
        reward.score(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), [""])
    with pytest.raises(FewstepError, match="2 images need 2 prompts"):
        reward.score(torch.zeros(2, 3, 4, 4), [""])
