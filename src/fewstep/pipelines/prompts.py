"""Prompts of one generator: each is encoded once as long as the encoders stay what they are, and losses are told."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoiser import fingerprint
from fewstep.pipelines.protocol import Pipeline
from fewstep.tokens import lost_words, warn_of_lost_words

_NO_ENCODERS = ("unet", "transformer", "transformer_2", "vae", "image_encoder", "safety_checker", "scheduler")


class Prompts:
    """What the text encoders of a pipeline made of prompts. It belongs to its generator, never to the pipeline.

    limit: bytes of embeddings kept; the oldest go first.
    """

    def __init__(self, limit: int = 512_000_000) -> None:
        self.limit = limit
        self._kept: dict[str, Any] = {}
        self._encoders: tuple[list[Any], Any] = [], None
        self._told: set[str] = set()

    def encoding(self, pipe: Pipeline) -> Callable[..., Any]:
        """The pipeline's `encode_prompt`, which remembers: a search repeats the same prompts for every candidate."""
        original = pipe.encode_prompt

        @functools.wraps(original)
        def encode(*args: Any, **kwargs: Any) -> Any:
            if not _plain([args, kwargs]):
                return original(*args, **kwargs)
            self._forget_others(pipe)
            key = repr((args, sorted(kwargs.items()), _settings(pipe)))
            if key not in self._kept:
                with torch.no_grad():
                    self._kept[key] = original(*args, **kwargs)
                while len(self._kept) > 1 and sum(map(_bytes, self._kept.values())) > self.limit:
                    self._kept.pop(next(iter(self._kept)))
            return self._kept[key]

        return encode

    def tell_lost(self, pipe: Pipeline, prompts: Sequence[Any], call: Mapping[str, Any]) -> None:
        """Warn, once per prompt, of words that no text encoder of the pipeline reads."""
        new = [p for p in dict.fromkeys(prompts) if isinstance(p, str) and p not in self._told]
        self._told.update(new)
        readers = _readers(pipe, call)
        lost = {prompt: min((lost_words(t, prompt, n) for t, n in readers), key=len, default="") for prompt in new}
        warn_of_lost_words(lost)

    def _forget_others(self, pipe: Pipeline) -> None:
        (before, said), (parts, says) = self._encoders, _encoders(pipe)
        if len(before) != len(parts) or not all(map(operator.is_, before, parts)) or said != says:
            self._kept, self._encoders = {}, (parts, says)


def _encoders(pipe: Pipeline) -> tuple[list[Any], Any]:
    """What encoding depends on: parts and weights, which must stay the same objects, and what they say."""
    parts = {k: v for k, v in pipe.components.items() if k not in _NO_ENCODERS and v is not None}
    modules = [part for part in parts.values() if isinstance(part, nn.Module)]
    weights = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    says = (
        list(parts),
        [(t.dtype, None if t.is_inference() else t._version) for t in weights],
        [_some_values(module) for module in modules],  # changes through `.data` leave the version as it is
        [len(part) for part in parts.values() if isinstance(part, Sized)],  # words added to a tokenizer
        [_adapters(layer) for module in modules for layer in module.modules() if hasattr(layer, "scaling")],
        [module.training for module in modules],
    )
    return [*parts.values(), *weights], says


def _some_values(module: nn.Module) -> str | list[bytes]:
    """Up to 32 values of each weight: looked at before each call, so in a tenth of the time of a fingerprint."""
    weights = [weight.detach() for weight in (*module.parameters(), *module.buffers())]
    if any(weight.is_meta for weight in weights):  # they are kept elsewhere, which a fingerprint knows to read
        return fingerprint(module)
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for weight in weights:
        flat = weight.reshape(-1)
        flat = flat.view(torch.uint8) if flat.element_size() == 1 else flat
        alike.setdefault((flat.dtype, flat.device), []).append(flat[:: max(1, flat.numel() // 16)])
    return [torch.cat(some).cpu().view(torch.uint8).numpy().tobytes() for some in alike.values()]


def _adapters(layer: Any) -> str:
    names = ("scaling", "active_adapters", "disable_adapters", "merged_adapters")
    return repr([getattr(layer, name, None) for name in names])


def _settings(pipe: Pipeline) -> list[tuple[str, Any]]:
    """Plain settings of the pipeline itself, which its `encode_prompt` may read."""
    own = {**dict(pipe.config), **vars(pipe)}
    return sorted((k, v) for k, v in own.items() if isinstance(v, str | int | float | bool | None))


def _readers(pipe: Pipeline, call: Mapping[str, Any]) -> list[tuple[Any, int]]:
    """Tokenizers of the pipeline, and how many tokens of a prompt each passes on."""
    named = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    asked = call.get("max_sequence_length", None if named is None else named.default)
    found = []
    for name, part in pipe.components.items():
        if name.startswith("tokenizer") and part is not None and pipe.components.get(_encoder_of(name)) is not None:
            own = int(getattr(part, "model_max_length", 0) or 1 << 30)
            limit = own if asked is None or "CLIP" in type(part).__name__ else int(asked)
            found.append((part, limit))
    return found


def _encoder_of(tokenizer: str) -> str:
    return tokenizer.replace("tokenizer", "text_encoder")


def _plain(value: Any) -> bool:
    """Whether the text of a value says all about it."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float | bool | torch.device | torch.dtype)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0
