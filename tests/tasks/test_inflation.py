"""An inflated network begins as the image network and learns of other pictures only through what was added."""

import pytest
import torch

from fewstep.errors import FewstepError
from fewstep.tasks.articulation import inflate, train_only
from fewstep.tasks.articulation.inflation import ViewFrameAttention

LAYERS = ["down_blocks.0.resnets.0", "mid_block.resnets.1", "up_blocks.0.resnets.0"]


@pytest.fixture(scope="module")
def image_network():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(
        8, 3, 3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, num_class_embeds=2, **blocks
    ).eval()


@pytest.fixture
def clips():
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 4, 3, 8, 8, generator=g), torch.rand(2, 3, 1, 8, 8, generator=g)


TIME, LABELS = torch.tensor([10.0, 700.0]), torch.tensor([0, 1])


def test_at_the_start_every_picture_is_drawn_as_by_the_image_network(image_network, clips):
    x, mask = clips
    network = inflate(image_network, LAYERS)
    found = network(x, TIME, mask, class_labels=LABELS)
    for b, v, f in ((0, 0, 0), (0, 2, 1), (1, 1, 3)):
        alone = image_network(x[b, v, f][None], TIME[b], class_labels=LABELS[b][None]).sample
        torch.testing.assert_close(found[b, v, f], alone[0], rtol=1e-4, atol=1e-5)
    # other numbers of views and frames, and no mask
    few = network(x[:, :1, :2], TIME, class_labels=LABELS)
    torch.testing.assert_close(few, found[:, :1, :2], rtol=1e-4, atol=1e-5)
    assert not [m for m in image_network.modules() if isinstance(m, ViewFrameAttention)]  # the user's is as it was


def opened(image_network, **how):
    network = inflate(image_network, LAYERS, **how)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for added in network.added:
            for attention in (added.over_views, added.over_frames):
                if attention is not None:
                    attention.out.weight.copy_(torch.randn(attention.out.weight.shape, generator=g))
    return network.requires_grad_(False)


def test_opened_gates_let_frames_views_and_the_mask_speak_within_a_clip_alone(image_network, clips):
    x, mask = clips
    network = opened(image_network)
    before = network(x, TIME, mask, class_labels=LABELS)

    def change(y, m=mask):
        return (network(y, TIME, m, class_labels=LABELS) - before).abs().flatten(3).amax(3)

    y = x.clone()
    y[0, 1, 2] += 1
    moved = change(y)
    assert bool((moved[0] > 1e-6).all())  # all views and frames of the clip
    assert float(moved[1].max()) == 0
    m = mask.clone()
    m[1, 2] = m[1, 2].flip(-1)
    moved = change(x, m)
    assert float(moved[0].max()) == 0
    assert bool((moved[1, 2] > 1e-6).all())


def test_without_views_a_view_knows_only_its_own_frames(image_network, clips):
    x, mask = clips
    network = opened(image_network, across=())
    y = x.clone()
    y[0, 1, 2] += 1
    moved = (network(y, TIME, mask, class_labels=LABELS) - network(x, TIME, mask, class_labels=LABELS)).abs()
    assert float(moved[0, 1].flatten(1).amax(1).min()) > 1e-6
    assert float(moved[0, [0, 2]].max()) == 0


def test_only_what_is_chosen_trains_and_forgotten_new_layers_are_named(image_network, clips):
    x, mask = clips
    network = inflate(image_network, LAYERS)
    chosen = train_only(network)
    network(x, TIME, mask, class_labels=LABELS).square().mean().backward()
    new = {id(p) for added in network.added for p in added.parameters()}
    assert {id(p) for p in chosen} == new
    assert {id(p) for p in network.parameters() if p.grad is not None} <= new
    assert any(float(p.grad.abs().max()) > 0 for p in chosen if p.grad is not None)
    with pytest.warns(UserWarning, match="stay as they began: .*mask_net"):
        train_only(network, ["out.weight", "out.bias", "into.weight"], added=False)


def test_unknown_layers_are_named(image_network):
    with pytest.raises(FewstepError, match=r"mid_block\.resnets\.1"):
        inflate(image_network, ["mid_block.resnets.9"])
    with pytest.raises(FewstepError, match="channels"):
        inflate(image_network, ["mid_block"])
