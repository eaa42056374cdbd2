"""The first text token apart: exact for it, ordinary for all else; found in the calls of real pipelines; saved."""

import copy

import pytest
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.quant import quantize
from fewstep.quant.calls import recording, replay
from fewstep.quant.fidelity import sqnr
from fewstep.quant.first_token import (
    FirstToken,
    constant_first_tokens,
    first_token_layers,
    install_first_tokens,
    keep_first_tokens,
)
from tests.pipelines import tiny_pipelines as tiny


def recorded(pipe, name, prompts):
    model = pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer
    with recording(model) as calls:
        tiny.draw(pipe, name, prompts, list(range(len(prompts))), steps=2)
    return model, calls


def tokens(largest, count=77, width=64):
    torch.manual_seed(0)
    x = torch.randn(4, count, width)
    x[:, 0] = torch.randn(width)
    x[:, 0] *= largest / x[:, 0].abs().max()
    return x


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.to_k = nn.Linear(64, 32)

    def forward(self, x):
        return self.to_k(x)


def test_the_first_token_is_exact_and_the_others_are_quantized():
    x, text = tokens(140.0), Text()
    truth = text(x)
    layer = text.to_k
    assert keep_first_tokens(text, [((x,), {})]) == ["to_k"]
    quantize(text, "w4a8", rules=())
    found = text(x)
    with torch.no_grad():
        assert torch.equal(found[:, 0], layer(x[:1, :1])[0].expand(4, -1))
    plain = nn.Sequential(copy.deepcopy(layer))
    quantize(plain, "w4a8", rules=())
    assert torch.equal(found[:, 1:], plain(x)[:, 1:])
    assert not torch.equal(plain(x)[:, 0], truth[:, 0])


def test_an_outlier_leaves_the_range_of_the_others_alone():
    x, text = tokens(140.0), Text()
    keep_first_tokens(text, [((x,), {})])
    seen = []
    text.to_k.rest.register_forward_pre_hook(lambda _, args: seen.append(float(args[0].abs().max())))
    text(x)
    assert seen[0] == float(x[:, 1:].abs().max()) < 6


def test_another_first_token_is_an_ordinary_token():
    x, text = tokens(26.0), Text()
    plain = copy.deepcopy(text)
    keep_first_tokens(text, [((x,), {})])
    y = x.clone()
    y[0, 0] = 0.0  # what SDXL gives for an empty negative prompt
    y[1, 0] = torch.randn(64)
    torch.testing.assert_close(text(y), plain(y))
    assert text(torch.randn(3, 64)).shape == (3, 32)
    assert text.to_k.weight is plain.to_k.weight or torch.equal(text.to_k.weight, plain.to_k.weight)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sd", "attn2.to_"), ("sdxl", "attn2.to_"), ("sd3", "context_embedder"), ("pixart", None), ("flux", None)],
)
def test_where_it_applies_is_seen_in_the_calls(name, expected, tmp_path):
    pipe = tiny.MAKERS[name](tmp_path)
    model, calls = recorded(pipe, name, ["a", "bc", "def"])
    found = constant_first_tokens(model, calls)
    if expected is None:
        assert not found
        return
    assert found
    assert all(expected in layer for layer in found)
    if name.startswith("sd") and expected == "attn2.to_":
        keys = [n for n, _ in model.named_modules() if n.endswith(("attn2.to_k", "attn2.to_v"))]
        assert sorted(found) == sorted(keys)
    truth = replay(model, calls)
    keep_first_tokens(model, calls)
    torch.testing.assert_close(replay(model, calls), truth, rtol=1e-4, atol=1e-5)


def test_one_prompt_tells_nothing(tmp_path):
    pipe = tiny.MAKERS["sd"](tmp_path)
    model, calls = recorded(pipe, "sd", ["a", "a"])
    assert constant_first_tokens(model, calls) == {}


def test_it_is_stored_with_the_model(tmp_path):
    pipe = tiny.MAKERS["sd"](tmp_path)
    model, calls = recorded(pipe, "sd", ["a", "bc"])
    names = keep_first_tokens(model, calls)
    quantize(model, "w2a8")
    model.save_pretrained(tmp_path / "unet")
    again = type(model).from_pretrained(tmp_path / "unet")
    assert first_token_layers(again) == names
    assert isinstance(again.get_submodule(names[0]), FirstToken)
    assert torch.equal(replay(again, calls), replay(model, calls))
    with pytest.raises(FewstepError, match="first token"):
        install_first_tokens(again, ["conv_in"])


def test_it_helps_where_tokens_attend_to_it(tmp_path):
    """The claim: with the first token large, keys and values at 2 bit lose less when it is apart."""
    pipe = tiny.MAKERS["sd"](tmp_path)
    model, calls = recorded(pipe, "sd", ["a", "bc", "def"])
    for _, kwargs in calls:
        kwargs["encoder_hidden_states"][:, 0] *= 10  # as in CLIP, where it is tens of times larger
    truth = replay(model, calls)
    scores = []
    for apart in (False, True):
        copied = copy.deepcopy(model)
        if apart:
            keep_first_tokens(copied, calls)
        keep = [n for n in dict(copied.named_modules()) if ".attn2.to_k" not in n and ".attn2.to_v" not in n]
        linear = [n for n in keep if isinstance(copied.get_submodule(n), nn.Linear | nn.Conv2d)]
        quantize(copied, "w2a8", skip=linear, rules=())
        scores.append(sqnr(truth, replay(copied, calls)))
    assert scores[1] > scores[0] + 1
