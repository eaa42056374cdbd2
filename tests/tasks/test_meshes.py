"""Meshes in and out: what is read, what is refused, and that a GLB moves its part as the joint does."""

import json
import math
import struct

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from fewstep.errors import FewstepError
from fewstep.tasks.articulation import RigidPart, moved, sampled
from fewstep.tasks.articulation.animation import key_frames
from fewstep.tasks.articulation.mjcf import read_mjcf
from fewstep.tasks.articulation.objects import FAMILIES, box, random_object
from fewstep.tasks.articulation.points import frame_of, named_part
from fewstep.tasks.meshes import Mesh, read_meshes, write_glb

CUBE = """
o body
v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
v 0 0 1
f 1 2 3 4   # a square
g door/left
f 1/1/1 2/2/2 -1//3
"""


def write(folder, text, name="mesh.obj"):
    (folder / name).write_text(text)
    return folder / name


def test_groups_of_an_obj_are_parts_and_polygons_triangles(tmp_path):
    parts = read_meshes(write(tmp_path, CUBE))
    assert list(parts) == ["body", "door/left"]
    assert parts["body"].faces.shape == (2, 3)
    torch.testing.assert_close(parts["door/left"].corners[0], torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 1]]))
    turned = read_meshes(write(tmp_path, CUBE), up="y")  # y to z, z to -y
    torch.testing.assert_close(turned["door/left"].corners[0, 2], torch.tensor([0.0, -1, 0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no triangles"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "faces of none"),
        ("v 0 0 nan\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "not finite"),
        ("v 0 0 zero\n", "line 1"),
        ("v 0 0 0\nv 1 0 0\nv 0 1 0\no a\nf 1 2 3\no b\nf 1 2 3\no a\nf 1 2 3\n", "two parts have one name"),
    ],
)
def test_broken_objs_are_refused_with_what_is_wrong(tmp_path, text, message):
    with pytest.raises(FewstepError, match=message):
        read_meshes(write(tmp_path, text))


def test_other_files_are_refused_by_name(tmp_path):
    with pytest.raises(FewstepError, match=r"Use \.obj"):
        read_meshes(write(tmp_path, "", "mesh.doc"))
    with pytest.raises(FewstepError, match="absent.obj"):
        read_meshes(tmp_path / "absent.obj")


def test_a_part_is_found_by_a_piece_of_its_name_or_not_guessed():
    one = box((0, 0, 0), (1, 1, 1))
    parts = {"body": one, "door_left": one, "door_right": one}
    assert named_part(parts, "left") == "door_left"
    with pytest.raises(FewstepError, match="several parts"):
        named_part(parts, "door")
    with pytest.raises(FewstepError, match="door_left"):
        named_part(parts, "dor_left")
    with pytest.raises(FewstepError, match="one part alone"):
        named_part({"door": one}, "door")


def test_points_lie_on_the_surface_by_area_half_of_them_on_the_part():
    parts = {"body": box((-1, -1, 0), (1, 1, 2)), "lid": box((-1, -1, 2), (1, 1, 2.1))}
    cloud = sampled(parts, "lid", 4000)
    centre, radius = frame_of(parts)
    places = cloud.positions * radius + centre
    assert int(cloud.moving.sum()) == 2000
    assert float(cloud.positions.norm(dim=1).max()) <= 0.7 + 1e-6
    body = places[~cloud.moving]
    on_face = (
        ((body[:, :2].abs() - 1).abs().amin(1) < 1e-5) | (body[:, 2].abs() < 1e-5) | ((body[:, 2] - 2).abs() < 1e-5)
    )
    assert bool(on_face.all())
    top = ((body[:, 2] - 2).abs() < 1e-5).float().mean()
    assert float(top) == pytest.approx(1 / 6, abs=0.03)
    with pytest.raises(FewstepError, match="no surface"):
        sampled({"body": parts["body"], "lid": Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))}, "lid")


@pytest.mark.parametrize("family", FAMILIES)
def test_procedural_parts_open_away_from_their_bodies(family):
    g = torch.Generator().manual_seed(3)
    for _ in range(4):
        made = random_object(family, g)
        vertices = made.parts[made.part].vertices
        out = moved(vertices, made.joint, torch.tensor([1.0]))[0]
        assert float((out - vertices).norm(dim=1).max()) > 0.1
        if family == "lid":
            assert float(out[:, 2].max()) > float(vertices[:, 2].max()) + 0.1
        if family in ("door", "drawer"):
            body = made.parts["body"].vertices
            assert (
                float((out - body.mean(0)).norm(dim=1).max())
                > float((vertices - body.mean(0)).norm(dim=1).max()) - 0.05
            )


def nodes_of(file):
    data = file.read_bytes()
    magic, version, total, size = struct.unpack("<4sIII", data[:16])
    assert (magic, version, total) == (b"glTF", 2, len(data))
    document = json.loads(data[20 : 20 + size])
    binary = data[28 + size :]

    def array(k):
        about = document["accessors"][k]
        view = document["bufferViews"][about["bufferView"]]
        kind = np.float32 if about["componentType"] == 5126 else np.uint32
        raw = np.frombuffer(binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]], kind)
        return raw.reshape(about["count"], -1)

    return document, array


@pytest.mark.parametrize("kind", ["revolute", "prismatic"])
def test_the_animation_of_a_glb_is_the_joint(tmp_path, kind):
    parts = {"body": box((0, 0, 0), (1, 1, 1)), "door": box((0, -0.1, 0), (1, 0, 1))}
    joint = RigidPart(kind, torch.tensor([0.0, 0.6, 0.8]), torch.tensor([1.0, 0.2, 0.0]), torch.tensor(-2.0))
    write_glb(tmp_path / "a.glb", parts, key_frames(joint, "door"))
    document, array = nodes_of(tmp_path / "a.glb")
    animation = document["animations"][0]
    target, sampler = animation["channels"][0]["target"], animation["samplers"][0]
    times, values = array(sampler["input"]), array(sampler["output"])
    k = int(np.argmin(np.abs(times - times.max() / 2)))  # farthest out
    node = document["nodes"][target["node"]]
    child = document["nodes"][node["children"][0]]
    vertices = array(document["meshes"][child["mesh"]]["primitives"][0]["attributes"]["POSITION"])
    inner = vertices + np.array(child["translation"])
    found = (
        Rotation.from_quat(values[k]).apply(inner) + np.array(node["translation"])
        if target["path"] == "rotation"
        else inner + values[k]
    )
    expected = moved(parts["door"].vertices, joint, torch.tensor([1.0]))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert node["extras"]["joint"]["type"] == kind
    assert node["extras"]["joint"]["range"] == [0.0, -2.0]


MODEL = """
<mujoco>
  <compiler angle="degree"/>
  <default>
    <default class="seen"><geom group="1" type="box"/><default class="felt"><geom group="4"/></default></default>
  </default>
  <worldbody>
    <body name="cabinet" pos="0 0 1" childclass="seen">
      <geom size="1 1 1"/>
      <geom class="felt" size="9 9 9"/>
      <body name="door" pos="1 0 0" euler="0 0 90">
        <joint type="hinge" axis="0 1 0" pos="0 0.5 0" range="-90 10"/>
        <geom size="0.1 0.5 0.5" pos="0 0 0.25"/>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


@pytest.mark.extra("trimesh")
def test_a_mujoco_model_gives_visible_parts_and_true_joints(tmp_path):
    (base, still, none), (name, door, joint) = read_mjcf(write(tmp_path, MODEL, "model.xml"))
    assert (base, none, name) == ("base", None, "door")
    torch.testing.assert_close(still.vertices.amax(0), torch.tensor([1.0, 1, 2]))  # what is only felt is left out
    torch.testing.assert_close(joint.axis, torch.tensor([-1.0, 0, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(joint.origin, torch.tensor([0.5, 0, 1]), atol=1e-6, rtol=0)
    assert float(joint.travel) == pytest.approx(-math.pi / 2)
    torch.testing.assert_close(door.vertices.amax(0), torch.tensor([1.5, 0.1, 1.75]), atol=1e-6, rtol=0)


@pytest.mark.extra("trimesh")
def test_our_glb_is_read_back_by_trimesh(tmp_path):
    parts = {"body": box((0, 0, 0), (1, 1, 1)), "lid": box((0, 0, 1), (1, 1, 1.1))}
    write_glb(tmp_path / "a.glb", parts)
    found = read_meshes(tmp_path / "a.glb", up="y")
    low = torch.stack([mesh.vertices.amin(0) for mesh in found.values()]).amin(0)
    high = torch.stack([mesh.vertices.amax(0) for mesh in found.values()]).amax(0)
    torch.testing.assert_close(torch.stack([low, high]), torch.tensor([[0.0, 0, 0], [1, 1, 1.1]]), atol=1e-5, rtol=0)
