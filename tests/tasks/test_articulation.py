"""Joints against closed forms, the renderer against finite differences, recovery against priors known exactly."""

import dataclasses
import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from fewstep.denoiser import Denoiser
from fewstep.distillation.core import Batch, Networks, Samples
from fewstep.distillation.parts import scale_weight, score_distillation, score_sampling, uniform_times
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import Cosine
from fewstep.tasks.articulation import (
    NoiseRange,
    PointCloud,
    RigidPart,
    axis_error,
    moved,
    orbit,
    origin_error,
    part_mask,
    recover,
    render,
    rotation,
    video,
)
from fewstep.tasks.articulation.recovery import together
from fewstep.testing.mixture import Mixture
from fewstep.transition import noise_like

PROCESS, PREDICTION = Cosine(), Prediction("epsilon")
Z = torch.tensor([0.0, 0.0, 1.0])


def random_part(kind, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    axis, origin = torch.randn(2, 3, generator=g, dtype=dtype)
    return RigidPart(kind, axis, 0.3 * origin, torch.tensor(0.8, dtype=dtype))


def test_rodrigues_is_scipys_rotation_and_rigid():
    axis = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axis, angle = axis / axis.norm(dim=1, keepdim=True), torch.linspace(-4, 4, 7, dtype=torch.float64)
    R = rotation(axis, angle)
    expected = Rotation.from_rotvec((axis * angle[:, None]).numpy()).as_matrix()
    torch.testing.assert_close(R, torch.from_numpy(expected))
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=torch.float64).expand(7, 3, 3))
    torch.testing.assert_close(R @ axis[..., None], axis[..., None])


def test_parts_stay_rigid_keep_their_axis_and_slide_along_it():
    points = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shares = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    turning = random_part("revolute")
    found = moved(points, turning, shares)
    torch.testing.assert_close(found[0], points)
    for frame in found:
        torch.testing.assert_close(torch.cdist(frame, frame), torch.cdist(points, points))
    on_axis = turning.origin + torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None] * turning.direction
    torch.testing.assert_close(moved(on_axis, turning, shares)[2], on_axis)
    sliding = random_part("prismatic")
    away = moved(points, sliding, shares)[2] - points
    torch.testing.assert_close(away, (0.8 * sliding.direction).expand(9, 3))
    # a batch of candidates is each of them
    both = RigidPart("revolute", turning.axis.expand(2, 3), turning.origin.expand(2, 3), torch.stack([shares[1]] * 2))
    torch.testing.assert_close(moved(points, both, shares)[1], moved(points, both.row(1), shares))


def test_errors_of_joints():
    true = RigidPart("revolute", Z, torch.tensor([1.0, 0.0, 0.0]), torch.tensor(1.0))
    tilted = RigidPart("revolute", torch.tensor([0.0, math.sin(0.1), math.cos(0.1)]), true.origin, true.travel)
    assert axis_error(tilted, true) == pytest.approx(math.degrees(0.1), rel=1e-4)
    turned_round = dataclasses.replace(true, axis=-Z)
    assert axis_error(turned_round, true) == pytest.approx(0, abs=1e-5)  # a line has no sense
    beside = dataclasses.replace(true, origin=torch.tensor([1.0, 0.25, 9.0]))
    assert origin_error(beside, true, torch.zeros(3)) == pytest.approx(0.25)
    # lines that cross far from the part are not near each other there
    assert origin_error(tilted, true, torch.tensor([0.0, 0.0, 2.0])) == pytest.approx(2 * math.sin(0.1), rel=1e-4)
    with pytest.raises(FewstepError, match="revolute"):
        RigidPart("revolut", Z, Z, torch.tensor(1.0))
    with pytest.raises(FewstepError, match="travel"):
        RigidPart("revolute", Z, Z, torch.ones(2))


def small_cloud(dtype=torch.float64):
    g = torch.Generator().manual_seed(2)
    positions = 0.4 * torch.randn(12, 3, generator=g, dtype=dtype)
    return PointCloud(positions, torch.rand(12, 3, generator=g, dtype=dtype), torch.arange(12) % 2 == 0)


@pytest.mark.parametrize("kind", ["revolute", "prismatic"])
def test_gradients_of_the_renderer_are_finite_differences(kind):
    cloud, views = small_cloud(), orbit(torch.tensor([20.0, 140.0], dtype=torch.float64))
    weights = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def value(axis, origin, travel):
        return (weights * video(cloud, RigidPart(kind, axis, origin, travel), views, 3, 8, width=0.9)).sum()

    part = random_part(kind)
    given = [part.axis, part.origin, part.travel]
    assert torch.autograd.gradcheck(value, [x.clone().requires_grad_() for x in given], eps=1e-6, atol=1e-5)


def test_pictures_have_the_near_point_in_front_and_lie_where_the_camera_says():
    views = orbit(torch.tensor([0.0]), 0.0)  # from +x: y to the right, z up
    torch.testing.assert_close(views[0], torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]))
    points = torch.tensor([[0.5, 0.5, 0.5], [-0.5, 0.5, 0.5]])
    drawn = render(points, torch.eye(2), views, 16, width=1.0)[0]
    red, green, coverage = drawn
    place = coverage.flatten().argmax().item()
    assert (place // 16, place % 16) in {(3, 11), (4, 11), (3, 12), (4, 12)}  # up and to the right
    assert float(red.max()) > 0.5
    assert float(green.max()) < 1e-3
    behind = render(points, torch.eye(2), orbit(torch.tensor([180.0]), 0.0), 16)[0]
    assert float(behind[1].max()) > 0.5 > 1e-3 > float(behind[0].max())
    cloud = PointCloud(points, torch.eye(2), torch.tensor([False, True]))
    assert float(part_mask(cloud, views, 16).max()) < 1e-3  # hidden behind the other
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 1


# --- a world with an exact prior: a bar of ten blobs that turns about an unknown pivot ------------------------------

FRAMES, PIXELS = 6, 24
TRUTH = (-0.2, -0.1, 1.2)


def bar():
    along = torch.linspace(0, 0.8, 10)
    positions = torch.stack([along, 0.15 * along, torch.zeros(10)], 1)
    return PointCloud(positions, torch.zeros(10, 0), torch.ones(10, dtype=torch.bool))


def pivot(theta):
    theta = torch.as_tensor(theta)
    origin = torch.cat([theta[..., :2], torch.zeros(*theta.shape[:-1], 1)], -1)
    return RigidPart("revolute", Z.expand(*theta.shape[:-1], 3), origin, theta[..., 2])


TOP = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]])


def draw(part):
    return video(bar(), part, TOP, FRAMES, PIXELS, width=1.2)


def exact_prior(thetas, std=0.1):
    """A mixture of rendered videos with this deviation of pixels."""
    means = draw(pivot(thetas)).flatten(1)
    mixture = Mixture(torch.ones(len(means)) / len(means), means, torch.full_like(means, std**2))
    return Denoiser(mixture.network(PROCESS, PREDICTION), PROCESS, PREDICTION), means


def values(part):
    return torch.cat([part.origin[..., :2], part.travel[..., None]], -1)


def test_the_gradient_is_the_analytic_difference_of_scores_for_a_gaussian_prior():
    std, t = 0.1, 0.6
    teacher, means = exact_prior([TRUTH], std)
    theta = torch.tensor([[-0.1, 0.05, 0.8]], requires_grad=True)
    x = draw(pivot(theta))
    times = uniform_times(t, t)
    term = score_distillation(score_sampling(), times, (scale_weight(1, 1),))
    zero = torch.zeros(1, dtype=torch.float64)
    batch, samples = Batch(1, tuple(x.shape[1:])), Samples(x, x.detach(), zero, zero, zero.long())
    loss, _ = term(Networks(teacher, teacher), batch, samples, torch.Generator().manual_seed(5))
    (found,) = torch.autograd.grad(loss, theta)
    # by hand: sigma^2 (eps_phi - eps) with eps_phi = -sigma score of N(alpha mu, alpha^2 s^2 + sigma^2)
    g = torch.Generator().manual_seed(5)
    assert float(times(1, PROCESS, g, None)) == pytest.approx(t)
    alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
    flat = x.detach().flatten(1)
    eps = noise_like(tuple(x.shape), g, x).flatten(1)
    noisy = alpha * flat + sigma * eps
    score = -(noisy - alpha * means) / (alpha**2 * std**2 + sigma**2)
    own_score = -eps / sigma
    pull = sigma**2 * -sigma * (score - own_score) / flat.numel()
    # through the renderer by central differences
    expected = []
    for k in range(3):
        step = torch.zeros(1, 3)
        step[0, k] = 1e-3
        rise = (draw(pivot(theta.detach() + step)) - draw(pivot(theta.detach() - step))).flatten(1) / 2e-3
        expected.append((pull * rise).sum())
    torch.testing.assert_close(found[0], torch.stack(expected), rtol=2e-3, atol=1e-6)


@pytest.fixture(scope="module")
def one_video():
    teacher, _ = exact_prior([TRUTH])
    starts = pivot([(0.0, 0.0, 0.6), (0.1, -0.3, 0.9), (0.0, 0.0, -0.6)])
    return recover(draw, starts, teacher, steps=150, rate=0.05, held=("axis",))


def test_one_video_gives_its_pivot_back_and_the_wrong_sense_is_seen_to_be_wrong(one_video):
    found = torch.stack([values(part) for part in one_video.parts])
    near = (found - torch.tensor(TRUTH)).abs().amax(1)
    assert float(near[:2].max()) < 6e-3  # two starts
    assert float(near[2]) > 0.3  # a start of the wrong sense does not come back ...
    assert float(one_video.misfit[2]) > 3 * float(one_video.misfit[1])  # ... and the prior says so


def test_low_noise_picks_one_belief_and_high_noise_averages_them():
    g = torch.Generator().manual_seed(0)
    beliefs = torch.tensor(TRUTH) + 0.1 * torch.randn(16, 3, generator=g)
    teacher, _ = exact_prior(beliefs)
    start, how = pivot([(0.0, 0.0, 0.6)]), {"steps": 120, "rate": 0.05, "held": ("axis",)}
    picked = values(recover(draw, start, teacher, noise=NoiseRange(0.02, 0.98, 0.1), **how).best)
    averaged = values(recover(draw, start, teacher, noise=NoiseRange(0.8, 0.98, 0.98), **how).best)
    distance = lambda x: float((x - beliefs).abs().amax(1).min())  # noqa: E731
    assert distance(picked) < 0.02 < distance(averaged)
    error = lambda x: float((x - torch.tensor(TRUTH)).abs().max())  # noqa: E731
    assert error(averaged) < error(picked)


def test_single_joints_join_a_batch_of_starts():
    batch = pivot([(0.0, 0.0, 0.6), (0.1, -0.3, 0.9)])
    found = together(batch, [batch.row(1), pivot(TRUTH)])
    torch.testing.assert_close(
        values(found), torch.tensor([(0.0, 0.0, 0.6), (0.1, -0.3, 0.9), (0.1, -0.3, 0.9), TRUTH])
    )
    assert together(batch, []) is batch


def test_a_range_of_noise_must_fall():
    with pytest.raises(FewstepError, match="low <= final"):
        NoiseRange(0.5, 0.9, 0.3)
