"""What a picture is does not depend on the pictures drawn beside it, as far as integers multiply."""

import copy

import pytest
import torch
from torch import nn

from fewstep.quant import QuantLayer, quantize
from fewstep.quant.fake import to_fake, to_packed
from tests.pipelines import tiny_pipelines as tiny

CONDITIONING = {"time_embedding.linear_1", "time_embedding.linear_2"}


def by_row(model):
    return {name for name, m in model.named_modules() if isinstance(m, QuantLayer) and m.by_row}


def loaded(model, folder):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


@pytest.mark.parametrize(("scheme", "expected"), [("w8a8", CONDITIONING), ("w4a8row", CONDITIONING), ("w8a16", set())])
def test_conditioning_takes_rows_one_by_one_where_all_else_is_exact(scheme, expected, tmp_path):
    model = tiny.unet()
    quantize(model, scheme)
    assert by_row(model) == by_row(loaded(model, tmp_path)) == by_row(copy.deepcopy(model)) == expected
    assert by_row(to_packed(to_fake(model))) == expected


@torch.no_grad()
def test_rows_of_conditioning_are_the_same_bits_at_any_batch_size(tmp_path):
    """torch's own float product does not give them: a vector and a matrix are summed in different orders."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"time_embedding": nn.Linear(320, 1280), "body": nn.Linear(1280, 64)})
    quantize(model, "w8a8")
    x = torch.randn(9, 320)
    layer = model["time_embedding"]
    alone = torch.cat([layer(row[None]) for row in x])
    assert torch.equal(layer(x), alone)
    layer.by_row = False
    torch.testing.assert_close(layer(x), alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_w8a8_networks_agree_between_batch_sizes(tmp_path):
    model = tiny.unet()
    quantize(model, "w8a8", rules=())
    quantize_ruled = tiny.unet()
    quantize(quantize_ruled, "w8a8")
    model = loaded(quantize_ruled, tmp_path)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 4, 8, 8, generator=generator)
    text = torch.randn(8, 5, tiny.unet().config.cross_attention_dim, generator=generator)
    times = torch.linspace(10, 990, 8)
    together = model(x, times, text).sample
    alone = torch.cat([model(x[k : k + 1], times[k : k + 1], text[k : k + 1]).sample for k in range(8)])
    worst = float((together - alone).abs().max() / alone.abs().max())
    assert worst < 1e-5, worst
