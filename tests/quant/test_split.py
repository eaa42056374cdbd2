import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.quant import dequantize, quantize
from fewstep.quant.split import SplitConv2d, find_skips, merge_skips, split_skips

Build = Callable[[], nn.Module]
Evaluate = Callable[..., torch.Tensor]


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(reference.square().sum() / (reference - other).square().sum()))


def test_the_halves_are_those_that_the_network_concatenates(
    build: Build, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    joined: dict[int, int] = {}
    real = torch.cat

    def recording(tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
        result = real(tensors, dim=dim)
        joined[result.data_ptr()] = tensors[0].shape[1]
        alive.append(result)
        return result

    alive: list[torch.Tensor] = []
    seen: dict[str, int] = {}
    for name, module in model.named_modules():
        if name.endswith("conv_shortcut"):
            module.register_forward_pre_hook(
                lambda _, x, name=name: seen.update({name: joined[x[0].data_ptr()]}) if "up_blocks" in name else None
            )
    monkeypatch.setattr(torch, "cat", recording)
    evaluate(model)
    assert find_skips(model) == seen
    assert bool(seen) == hasattr(model, "up_blocks")


def test_splitting_and_merging_change_nothing(build_unet: Build, evaluate: Evaluate) -> None:
    model = build_unet()
    expected, state = evaluate(model), copy.deepcopy(model.state_dict())
    names = split_skips(model)
    assert names
    assert torch.allclose(evaluate(model), expected, atol=1e-5)
    assert not find_skips(model)  # done once
    merge_skips(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(evaluate(model), expected)


def test_halves_of_unlike_ranges_keep_their_precision() -> None:
    torch.manual_seed(0)
    source = nn.Conv2d(16, 24, 1)
    x = torch.randn(2, 16, 9, 7)
    x[:, 8:] *= 0.01
    source.weight.data[:, 8:] *= 100  # the small half matters as much as the large one
    quality = []
    for layer in (copy.deepcopy(source), SplitConv2d(source, 8)):
        model = nn.Sequential(layer)
        quantize(model, "w8a8", rules=())
        with torch.no_grad():
            quality.append(sqnr(source(x), model(x)))
    assert quality[1] > quality[0] + 20


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_a_split_model_saves_loads_and_merges(
    build_unet: Build, evaluate: Evaluate, tmp_path: Path, scheme: str
) -> None:
    model = build_unet()
    names = split_skips(model)
    report = quantize(model, scheme)
    assert {f"{name}.{half}" for name in names for half in ("hidden", "skip")} <= {row.name for row in report.rows}
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    again = type(model).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert torch.equal(evaluate(again), evaluate(model))
    weights = {name: [half.weight for half in model.get_submodule(name).children()] for name in names}
    merge_skips(dequantize(again))
    assert all(torch.equal(again.get_submodule(name).weight, torch.cat(pair, 1)) for name, pair in weights.items())


@pytest.mark.parametrize("channels", [0, 4])
def test_empty_halves_are_refused(channels: int) -> None:
    with pytest.raises(FewstepError, match="split"):
        SplitConv2d(nn.Conv2d(4, 4, 1), channels)
    with pytest.raises(FewstepError, match="groups"):
        SplitConv2d(nn.Conv2d(4, 4, 1, groups=2), 2)
