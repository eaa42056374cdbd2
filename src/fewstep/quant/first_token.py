"""The first text token apart, in full precision (the BOS-aware quantization of MixDQ, arXiv 2405.17873, section 4.1).

CLIP's text features begin with a token that is the same for every prompt and tens of times larger than all others: an
activation scale that covers it leaves the others few levels, and attention looks at it all the time. Its product with
a layer's weight is a constant; it is computed once in full precision and kept, `out` numbers per layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.quant.calls import Call, replay
from fewstep.quant.modules import eligible

SAME = 0.1
"""Relative distance up to which a token counts as the stored one: a low-bit text encoder moves it by a few percent."""


class FirstToken(nn.Module):
    """A Linear over tokens (..., L, in) that knows the result of one token at the first place.

    Where the first token is another one (zeros as the negative prompt of SDXL, embeddings of one's own) it is an
    ordinary token. `rest` never sees the known token, so that it has no part in activation ranges.

    Buffers:
        token: (in,), the token; first: (out,), what the full-precision layer made of it, bias included.
    """

    token: Tensor
    first: Tensor

    wraps_layer = True  # see fewstep.quant.wrappers

    def __init__(self, rest: nn.Module, token: Tensor, first: Tensor) -> None:
        super().__init__()
        self.rest = rest
        self.register_buffer("token", token)
        self.register_buffer("first", first)

    def forward(self, x: Tensor) -> Tensor:
        """(..., L, in) -> (..., L, out); without a dimension of tokens as `rest` alone."""
        if x.ndim < 3:
            return self.rest(x)
        begin, token = x[..., :1, :], self.token.to(x.dtype)
        away = torch.linalg.vector_norm((begin - token).float(), dim=-1, keepdim=True)
        known = away <= SAME * torch.linalg.vector_norm(token.float())
        y = self.rest(torch.cat([torch.where(known, 0, begin), x[..., 1:, :]], -2))
        return torch.cat([torch.where(known, self.first.to(y.dtype), y[..., :1, :]), y[..., 1:, :]], -2)

    @property
    def weight(self) -> Tensor:
        """The weight of `rest`, for code that asks a layer for its weight or its type and device."""
        return self.rest.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The bias of `rest`."""
        return self.rest.bias  # type: ignore[return-value]


def keep_first_tokens(model: nn.Module, calls: Sequence[Call], names: Iterable[str] | None = None) -> list[str]:
    """Put the first token apart in every Linear where it is always the same; in place, before quantizing.

    Which layers these are is seen in the calls and not guessed from names: keys and values of the cross attention in
    UNets, the context embedder of SD3, most of a CLIP text encoder; none where the text encoder has no first token of
    its own (T5) or the tokens of text have met those of the image.

    Args:
        model: in full precision.
        calls: recorded calls with at least two different prompts.
        names: layers to look at; all that can be quantized unless given.

    Returns:
        Names of the layers; `NAME.rest` is what is left to quantize.

    Raises:
        FewstepError: there are no calls.
    """
    found = constant_first_tokens(model, calls, names)
    for name, seen in found.items():
        layer = model.get_submodule(name)
        assert seen.token is not None
        with torch.no_grad():
            first = layer(seen.token[None, None])[0, 0]
        model.set_submodule(name, FirstToken(layer, seen.token, first))
    return list(found)


@dataclass
class TokenStatistics:
    """What a layer's inputs have shown: the one first token, and whether other places differ between samples."""

    token: Tensor | None = None
    constant: bool = True
    others: Tensor | None = None
    varied: bool = False
    hooks: list[Any] = field(default_factory=list)

    def look(self, x: Tensor) -> None:
        """Take in inputs (B, L, in) of one call."""
        if x.ndim != 3 or x.shape[1] < 2:
            self.constant = False
            return
        begin, rest = x[:, 0], x[:, 1:]
        given = begin.abs().amax(-1) > 0  # zeros stand for no prompt
        for token, others in zip(begin[given], rest[given], strict=True):
            if self.token is None or self.others is None:
                self.token, self.others = token.clone(), others.clone()
                continue
            self.constant &= bool((token - self.token).norm() <= 1e-3 * self.token.norm())
            self.varied |= others.shape != self.others.shape or bool(
                (others - self.others).norm() > 1e-2 * self.others.norm()
            )


def constant_first_tokens(
    model: nn.Module, calls: Sequence[Call], names: Iterable[str] | None = None
) -> dict[str, TokenStatistics]:
    """Linear layers whose first token is the same in all calls while others differ."""
    wanted = list(eligible(model) if names is None else names)
    seen = {name: TokenStatistics() for name in wanted if isinstance(model.get_submodule(name), nn.Linear)}
    for name, one in seen.items():
        layer = model.get_submodule(name)
        one.hooks.append(layer.register_forward_pre_hook(lambda _, args, one=one: one.look(args[0].detach())))
    try:
        replay(model, calls)
    finally:
        for one in seen.values():
            for hook in one.hooks:
                hook.remove()
    return {n: one for n, one in seen.items() if one.constant and one.varied and one.token is not None}


def first_token_layers(model: nn.Module) -> list[str]:
    """Names of the layers that have their first token apart."""
    return [name for name, module in model.named_modules() if isinstance(module, FirstToken)]


def install_first_tokens(model: nn.Module, names: Iterable[str]) -> None:
    """Put empty `FirstToken`s around the named Linear layers, for a checkpoint to fill.

    Raises:
        FewstepError: the model has no such Linear.
    """
    for name in names:
        layer = dict(model.named_modules()).get(name)
        if not isinstance(layer, nn.Linear):
            raise FewstepError(
                "the checkpoint keeps the first token of a layer that this model does not have",
                value=name,
                hint="Load it with the model class and configuration it was saved from.",
            )
        token, first = (
            torch.empty(size, device="meta", dtype=layer.weight.dtype)
            for size in (layer.in_features, layer.out_features)
        )
        model.set_submodule(name, FirstToken(layer, token, first).train(layer.training))
