"""The small prior: trained, saved, loaded; the whole way from a mesh to a joint with a prior that is known."""

import dataclasses
import math

import pytest
import torch

from fewstep.denoiser import Denoiser
from fewstep.errors import FewstepError
from fewstep.prediction import Prediction
from fewstep.process import Cosine
from fewstep.tasks.articulation import RigidPart, axis_error, beliefs, origin_error
from fewstep.tasks.articulation.articulate import Search, articulate, collision
from fewstep.tasks.articulation.beliefs import beliefs_of
from fewstep.tasks.articulation.objects import box, in_frame, out_of_frame
from fewstep.tasks.articulation.points import frame_of, sampled
from fewstep.tasks.articulation.prior import (
    PriorSettings,
    clips,
    condition_of,
    family_of,
    load_prior,
    without_family,
)
from fewstep.tasks.articulation.training import made_clips, train_prior
from fewstep.testing.mixture import Mixture

SMALL = PriorSettings(side=16, frames=3, channels=(8, 16))


def cabinet():
    return {"body": box((0, 0, 0), (60, 40, 90)), "door": box((0, -3, 0), (60, 0, 90))}


HINGE = RigidPart(
    "revolute", torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, -1.5, 0.0]), torch.tensor(math.radians(-80))
)


def test_a_prior_is_trained_saved_and_loaded_and_goes_on_where_it_was(tmp_path):
    data = made_clips(8, SMALL, points=60)
    assert data["clips"].shape == (8, 2, 3, 3, 16, 16)
    assert data["family"].tolist() == [0, 1, 2, 3] * 2
    torch.testing.assert_close(data["clips"][:, :, 0], data["rest"])  # a clip begins at rest
    how = {"picture_steps": 2, "batch": 2}
    network = train_prior(data, SMALL, tmp_path, steps=2, **how)
    denoiser, settings = load_prior(tmp_path)
    assert settings == SMALL
    told = {name: data[name][:2].float() if name != "family" else data[name][:2] for name in ("rest", "mask", "family")}
    x = torch.randn(2, 2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    said = denoiser(x, torch.tensor([0.3, 0.8], dtype=torch.float64), told)
    assert said.shape == x.shape
    free = denoiser(x, torch.tensor([0.3, 0.8], dtype=torch.float64), without_family(told))
    assert not torch.equal(free, said)
    before = [p.clone() for p in network.parameters()]
    again = train_prior(data, SMALL, tmp_path, steps=2, **how)  # nothing is left to do
    assert all(torch.equal(a, b) for a, b in zip(before, again.parameters(), strict=True))
    (tmp_path / "prior.json").write_text('{"settings": {"side": 16, "frames": 3, "channels": [8, 8]}}')
    with pytest.raises(FewstepError, match="no prior of motions"):
        load_prior(tmp_path)


def test_texts_name_families():
    assert family_of("The door of the cabinet opens.") == "door"
    assert family_of("someone turns the tap") == "handle"
    assert family_of("the wings flap") == "any"
    with pytest.raises(FewstepError, match="drawer"):
        condition_of(sampled(cabinet(), "door"), "wing", SMALL)


def test_furniture_is_believed_to_move_as_furniture_does(monkeypatch):
    """A wide thin slab in front of a body: what is called a door turns about an upright edge, a drawer slides out."""
    monkeypatch.setattr(beliefs, "PER_FAMILY", 24)
    beliefs._library.cache_clear()
    cloud = sampled(cabinet(), "door", 300)
    edges = {float(cloud.positions[cloud.moving][:, 0].min()), float(cloud.positions[cloud.moving][:, 0].max())}
    found = beliefs_of(cloud, "door")
    assert float(found.weights.sum()) == pytest.approx(1)
    for joint in found.joints[:4]:
        assert joint.kind == "revolute"
        assert abs(float(joint.direction[2])) == pytest.approx(1)
        assert min(abs(float(joint.origin[0]) - edge) for edge in edges) < 0.1
    assert {joint.kind for joint in beliefs_of(cloud, "drawer").joints} == {"prismatic"}
    with pytest.raises(FewstepError, match="drawer"):
        beliefs_of(cloud, "wing")
    beliefs._library.cache_clear()


def test_frames_of_joints_there_and_back():
    centre, radius = frame_of(cabinet())
    for kind in ("revolute", "prismatic"):
        joint = dataclasses.replace(HINGE, kind=kind)
        back = out_of_frame(in_frame(joint, centre, radius), centre, radius)
        torch.testing.assert_close(back.origin, joint.origin)
        torch.testing.assert_close(back.travel, joint.travel)


def knowing(parts, joint, settings):
    """A prior that believes in one video of this object."""
    cloud, centred = sampled(parts, "door", 300), in_frame(joint, *frame_of(parts))
    mean = clips(cloud, centred, settings).flatten()[None]
    process, prediction = Cosine(), Prediction("epsilon")
    network = Mixture.gaussian(mean[0], torch.full_like(mean[0], 0.01)).network(process, prediction)
    return Denoiser(lambda x, time, **told: network(x, time), process, prediction), settings


def test_a_door_in_centimetres_gets_its_hinge_from_a_prior_that_knows_it():
    search = Search(steps=60, kept=2, rate=0.05, points=300)
    found = articulate(cabinet(), "door", "the door opens", prior=knowing(cabinet(), HINGE, SMALL), search=search)
    assert found.joint.kind == "revolute"
    assert found.misfit["revolute"] < found.misfit["prismatic"]
    assert axis_error(found.joint, HINGE) < 5
    assert origin_error(found.joint, HINGE, torch.tensor([30.0, -1.5, 45.0])) < 5  # centimetres
    assert found.warnings == ()
    assert found.family == "door"


def test_collisions_are_seen_and_opening_is_none():
    cloud, frame = sampled(cabinet(), "door", 600), frame_of(cabinet())
    assert collision(cloud, in_frame(HINGE, *frame)) < 0.03
    walled = {**cabinet(), "wall": box((0, -40, 0), (60, -30, 90))}
    outwards = RigidPart("prismatic", torch.tensor([0.0, -1.0, 0.0]), torch.zeros(3), torch.tensor(30.0))
    assert collision(sampled(walled, "door", 1200), in_frame(outwards, *frame_of(walled))) > 0.05


def test_a_part_that_no_view_shows_is_refused():
    parts = {"body": box((0, 0, 0), (1, 1, 1)), "screw": box((0.5, 0.5, 0.5), (0.52, 0.52, 0.52))}
    with pytest.raises(FewstepError, match="no view shows"):
        articulate(parts, "screw", "the screw turns", prior=knowing(cabinet(), HINGE, SMALL))
