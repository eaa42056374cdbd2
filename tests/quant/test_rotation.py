"""The Hadamard rotation: orthogonal, exact in full precision, and it spreads what is large."""

import pytest
import torch
from scipy.linalg import hadamard
from torch import nn

from fewstep.quant import QuantLayer, quantize
from fewstep.quant.fidelity import sqnr
from fewstep.quant.rotation import block, rotate, rotate_back, rudin_shapiro


@pytest.mark.parametrize(("width", "size"), [(8, 8), (12, 4), (7, 1), (320, 64), (1024, 1024)])
def test_it_is_the_hadamard_matrix_times_signs_in_blocks(width: int, size: int) -> None:
    assert block(width) == size
    one = torch.tensor(hadamard(size)).double() / size**0.5 * rudin_shapiro(size).double()
    whole = torch.block_diag(*[one] * (width // size))
    assert torch.allclose(rotate(torch.eye(width, dtype=torch.float64), 0), whole, atol=1e-12)
    assert torch.allclose(whole @ whole.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    x = torch.randn(3, width, 2, dtype=torch.float64)
    assert torch.allclose(rotate(x, 1), torch.einsum("ij,bjk->bik", whole, x), atol=1e-12)
    assert torch.allclose(rotate_back(rotate(x, -2), -2), x, atol=1e-12)


@pytest.mark.parametrize("size", [16, 32, 64, 512])
def test_neither_one_large_value_nor_a_constant_stays_an_outlier(size: int) -> None:
    spike = torch.zeros(size)
    spike[3] = 1.0
    assert torch.allclose(rotate(spike, 0).abs(), torch.full((size,), size**-0.5))
    assert float(rotate(torch.ones(size), 0).abs().max()) <= 2**0.5 + 1e-5


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 24, 3, padding=1), nn.ConvTranspose2d(24, 12, 2, stride=2), nn.Conv2d(12, 12, 3, groups=3),
        nn.Conv2d(12, 7, 1), nn.Flatten(2), nn.Linear(36, 10),
    )  # fmt: skip


def test_a_rotated_layer_is_the_same_function_up_to_rounding() -> None:
    x = torch.randn(2, 8, 4, 4)
    model = layers()
    weights = {name: module.weight.detach().clone() for name, module in model.named_children() if name != "4"}
    with torch.no_grad():
        truth = model(x)
        report = quantize(model, "w8a16-hadamard", rules=())
        assert sqnr(truth, model(x)) > 35
    for name, low in model.named_children():
        if isinstance(low, QuantLayer):
            assert torch.allclose(low.weight, weights[name], atol=0.02 * float(weights[name].abs().max()))
    rows = {row.name: row for row in report.rows}
    assert "no rotation" in rows["2"].reason  # grouped
    assert [rows[name].bits for name in "0123"] == ["w8a16-hadamard"] * 2 + ["w8a16", "w8a16-hadamard"]
    assert rows["0"].bytes_after == quantize(layers(), "w8a16", rules=()).rows[0].bytes_after


def test_one_loud_input_costs_a_rotated_layer_little() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    x[:, 5] = 300.0
    weight = torch.randn(32, 256)
    weight[:, 5] *= 1e-3
    found = {}
    for name in ("w8a8", "w8a8-hadamard"):
        model = nn.Sequential(nn.Linear(256, 32, bias=False))
        model[0].weight = nn.Parameter(weight.clone())
        quantize(model, name, rules=())
        with torch.no_grad():
            found[name] = sqnr(x @ weight.T, model(x))
    assert found["w8a8-hadamard"] > found["w8a8"] + 12
