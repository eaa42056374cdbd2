"""Block reconstruction: its own error falls below that of other methods, and nothing gets worse."""

import copy

import pytest
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.quant import QuantLayer, quantize
from fewstep.quant.reconstruct import blocks_of, reconstruct


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 24, 3, padding=1), nn.Conv2d(24, 8, 3, padding=1)
        self.token = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, int]:
        x = x + self.second(nn.functional.silu(self.first(x)) * scale)
        return x + self.token(x.mT.reshape(-1, 8)).reshape(x.shape), 7


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, scale=torch.tensor(1.5))[0]
        return x


def data() -> torch.Tensor:
    """Smooth images of three sources in eight channels: correlated, as activations are."""
    generator = torch.Generator().manual_seed(0)
    sources = nn.functional.avg_pool2d(torch.randn(32, 3, 8, 8, generator=generator), 3, 1, 1)
    mixing = torch.randn(8, 3, generator=generator)
    return 2 * torch.einsum("ck,bkhw->bchw", mixing, sources) + 0.1 * torch.randn(32, 8, 8, 8, generator=generator)


def run(model: nn.Module) -> None:
    for part in data().split(8):
        model(part)


@pytest.mark.parametrize("scheme", ["w3a16", "w2a16-asym", "w4a8-r2"])
def test_blocks_get_better_and_so_does_the_network(scheme: str) -> None:
    full = Network()
    low = copy.deepcopy(full)
    quantize(low, scheme, rules=())
    with torch.no_grad():
        start = float((low(data()) - full(data())).square().mean())
        errors = reconstruct(full, low, run, ["blocks.0", "blocks.1"], steps=120)
        end = float((low(data()) - full(data())).square().mean())
    assert [e.name for e in errors] == ["blocks.0", "blocks.1"]
    assert all(e.kept for e in errors)
    assert errors[0].after < 0.8 * errors[0].before
    assert end < 0.8 * start
    assert end == pytest.approx(errors[1].after, rel=1e-3)  # the last block's output is the network's
    assert sum(isinstance(m, QuantLayer) for m in low.modules()) == 6


def test_blocks_are_found_in_running_order() -> None:
    class Backwards(Network):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in reversed(list(self.blocks)):
                x = block(x, scale=torch.tensor(1.5))[0]
            return x

    low = Backwards()
    assert blocks_of(low, run) == []  # nothing is quantized
    quantize(low, "w4a8", rules=(), skip=["blocks.0.token"])
    assert blocks_of(low, run) == ["blocks.1", "blocks.0"]
    low._no_split_modules = ["Linear"]  # type: ignore[assignment]
    assert blocks_of(low, run) == []  # only the skipped layer is such a module, and it is float


def test_a_block_that_does_not_get_better_stays() -> None:
    full = Network()
    low = copy.deepcopy(full)
    quantize(low, "w4a16", rules=())
    before = {name: value.clone() for name, value in low.state_dict().items()}
    (error,) = reconstruct(full, low, run, ["blocks.1"], steps=1, rate=30.0)
    assert not error.kept
    assert all(torch.equal(value, before[name]) for name, value in low.state_dict().items())


def test_mistakes_are_named() -> None:
    full = Network()
    low = copy.deepcopy(full)
    with pytest.raises(FewstepError, match="integer"):
        reconstruct(full, low, run, ["blocks.0"])
    quantize(low, "w4a16", rules=())
    with pytest.raises(FewstepError, match="no such block"):
        reconstruct(full, low, run, ["block.0"])
    with pytest.raises(FewstepError, match="not called"):
        reconstruct(full, low, lambda m: None, ["blocks.0"])
