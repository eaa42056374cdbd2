"""What users hang on layers stays: hooks go on with the low-bit twin, changed forwards stay in float."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm

from fewstep.quant import QuantLayer, dequantize, quantize
from fewstep.quant.fake import to_fake, to_packed
from fewstep.quant.mixed import quantize_stepped
from fewstep.quant.split import merge_skips, split_skips
from tests.pipelines import tiny_pipelines as tiny

X = torch.ones(2, 8)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


def hooked(layer):
    """A layer with one hook of each kind, what they note, and their handles."""
    noted = []
    handles = [
        layer.register_forward_pre_hook(lambda m, args: noted.append("before")),
        layer.register_forward_pre_hook(lambda m, args, kwargs: noted.append("before, named"), with_kwargs=True),
        layer.register_forward_hook(lambda m, args, y: noted.append("after")),
        layer.register_forward_hook(lambda m, args, kwargs, y: noted.append("after, named"), with_kwargs=True),
        layer.register_full_backward_hook(lambda m, left, right: noted.append("backward")),
    ]
    return noted, handles


ALL = ["before", "before, named", "after", "after, named"]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: quantize(m, "w4a8", rules=()),
        lambda m: quantize_stepped(m, [{"0": "w4a8", "2": "w8a8"}, {"0": "w8a8", "2": "w8a8"}]),
        lambda m: (quantize(m, "w8a8", rules=()), dequantize(m)),
        lambda m: (quantize(m, "w8a8", rules=()), to_packed(to_fake(m))),
    ],
)
def test_hooks_of_users_go_on_and_their_handles_remove_them(change):
    model = network()
    noted, handles = hooked(model[0])
    change(model)
    model(X.requires_grad_()).sum().backward()
    assert noted == [*ALL, "backward"]
    for handle in handles:
        handle.remove()
    model(X)
    assert noted == [*ALL, "backward"]


def test_hooks_see_the_split_convolution_as_one():
    model = tiny.unet()
    name = "up_blocks.0.resnets.0.conv_shortcut"
    shapes = []
    model.get_submodule(name).register_forward_hook(lambda m, args, y: shapes.append(tuple(args[0].shape)))
    call = torch.ones(1, 4, 8, 8), 10, torch.ones(1, 3, 32)
    for change in (lambda: None, lambda: split_skips(model), lambda: merge_skips(model)):
        change()
        with torch.no_grad():
            model(*call)
    assert len(shapes) == 3
    assert len(set(shapes)) == 1


def replaced_forward(layer):
    plain = layer.forward
    layer.forward = lambda x: 2 * plain(x)
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        weight_norm,
        parametrizations.weight_norm,
        lambda m: prune.random_unstructured(m, "weight", 0.5),
        replaced_forward,
    ],
)
def test_layers_that_do_more_than_their_weights_stay_in_float(change):
    model = network()
    change(model[0])
    before = model[0](X)
    report = quantize(model, "w8a8", rules=())
    assert not isinstance(model[0], QuantLayer)
    assert isinstance(model[2], QuantLayer)
    assert torch.equal(model[0](X), before)
    assert [row.reason for row in report.rows if row.name.split(".")[0] == "0" and row.reason]
