"""What a quantized folder says of its layers: `quantization_config`, the same for diffusers and transformers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError, nearest
from fewstep.quant.first_token import first_token_layers
from fewstep.quant.kernels import check_backend
from fewstep.quant.layer import QuantLayer
from fewstep.quant.scheme import Scheme
from fewstep.quant.steps import tables_of
from fewstep.quant.wrappers import family

VERSION = 1
MARKS: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {}
"""Library -> how a model of it is told the fields of its `QuantConfig`; `pipelines/low_bit`, which knows the libraries,
adds itself as soon as they are imported."""
SAVE_AGAIN = "config.json was changed or damaged: save the model again."


class QuantMethod(str, Enum):
    """The name under which diffusers and transformers find us (they read `.value`)."""

    FEWSTEP = "fewstep"


class QuantConfig:
    """`quantization_config` of a model, whichever library reads it; the fields are written by `quantize`.

    Raises:
        FewstepError: unknown keys, a newer version, or a malformed scheme.
    """

    def __init__(
        self,
        scheme: str = "w4a8",
        layers: Mapping[str, list[str]] | None = None,
        backend: str = "auto",
        version: int = VERSION,
        quant_method: str = "fewstep",
        first_token: list[str] | None = None,
        tables: Mapping[str, list[int]] | None = None,
        **unknown: object,
    ) -> None:
        if unknown:
            key = next(iter(unknown))
            known = ("scheme", "layers", "backend", "version", "first_token", "tables")
            raise FewstepError("unknown key in quantization_config", value=key, hint=nearest(str(key), known))
        if type(version) is not int or version != VERSION:
            raise FewstepError("unknown version of quantization_config", value=version, hint="Update fewstep.")
        _check("layers", layers, _lists_of(str))
        _check("first_token", first_token, lambda value: _list_of(str, value))
        _check("tables", tables, _lists_of(int))
        _check("backend", [backend], lambda value: _list_of(str, value))
        self.quant_method = QuantMethod.FEWSTEP
        self.scheme, self.version = str(Scheme.parse(scheme)), version
        self.layers = {str(Scheme.parse(name)): list(names) for name, names in (layers or {}).items()}
        self.backend = check_backend(backend)
        self.first_token = list(first_token or [])
        self.tables = {name: list(choice) for name, choice in (tables or {}).items()}
        every = [name for names in self.layers.values() for name in names]
        twice = next((name for name, count in Counter(every).items() if count > 1), None)
        if twice is not None or len(self.layers) != len(layers or {}):
            raise FewstepError("quantization_config names a layer or a scheme twice", value=twice, hint=SAVE_AGAIN)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {**self.__dict__, "quant_method": self.quant_method.value}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same values: diffusers prints this one."""
        return self.to_dict()

    def schemes(self) -> dict[str, Scheme]:
        """Scheme of each quantized layer by its name."""
        return {layer: Scheme.parse(scheme) for scheme, names in self.layers.items() for layer in names}


def main_scheme(scheme: Scheme, layers: Mapping[str, Scheme]) -> str:
    """The scheme that stands for a model: its own, or that of most layers where rules gave it to none."""
    names = Counter(str(own) for own in layers.values())
    return str(scheme) if not names or str(scheme) in names else names.most_common(1)[0][0]


def by_scheme(layers: Mapping[str, Scheme]) -> dict[str, list[str]]:
    """The layers under the name of their scheme, as `config.json` lists them."""
    found: dict[str, list[str]] = {}
    for name, scheme in layers.items():
        found.setdefault(str(scheme), []).append(name)
    return found


def seal(model: nn.Module) -> None:
    """Note beside the codes, in the first layer, eight bytes that stand for the schemes of all layers in their order.

    Codes of int4 and nf4, of int8 and fp8, and of schemes that differ in their inputs alone look alike: without this a
    configuration that names another one would be believed.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLayer)]
    if layers:
        layers[0].schemes_digest = _digest(layers).to(layers[0].packed.device)


def check_seal(model: nn.Module) -> None:
    """Refuse schemes that are not those of the codes (FewstepError); models of folders without a seal get theirs."""
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLayer)]
    sealed = layers[0].schemes_digest if layers else None
    if sealed is not None and not torch.equal(sealed.cpu(), _digest(layers)):
        raise FewstepError("the codes are not those of the schemes that quantization_config names", hint=SAVE_AGAIN)
    seal(model)


def _digest(layers: Iterable[QuantLayer]) -> Tensor:
    names = "\n".join(str(layer.scheme) for layer in layers)
    return torch.tensor([*hashlib.sha256(names.encode()).digest()[:8]], dtype=torch.uint8)


def mark(model: Any, scheme: Scheme, layers: Mapping[str, Scheme], backend: str) -> None:
    """Tell a model of diffusers or transformers how it is quantized, so that it saves and loads by itself."""
    library = family(model)
    if library is None:
        return
    seal(model)
    MARKS[library](
        model,
        {
            "scheme": main_scheme(scheme, layers),
            "layers": by_scheme(layers),
            "backend": backend,
            "first_token": first_token_layers(model),
            "tables": tables_of(model),
        },
    )


def unmark(model: Any) -> None:
    """Take back what `mark` noted in the configuration."""
    library = family(model)
    if library == "diffusers" and "quantization_config" in model.config:
        kept = {name: value for name, value in model.config.items() if name != "quantization_config"}
        model._internal_dict = type(model._internal_dict)(kept)
    elif library == "transformers" and hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def refuse_truncated(model: nn.Module) -> None:
    """Refuse a model with a tensor that its file did not bring (FewstepError)."""
    empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if empty:
        hint = "The file is truncated: save the model again."
        raise FewstepError("the quantized checkpoint lacks a tensor", value=empty[0], hint=hint)


def _check(key: str, value: object, right: Callable[[object], bool]) -> None:
    if value is not None and not right(value):
        raise FewstepError(f"quantization_config.{key} is malformed", value=value, hint=SAVE_AGAIN)


def _list_of(kind: type, value: object) -> bool:
    return isinstance(value, list | tuple) and all(type(item) is kind for item in value)


def _lists_of(kind: type) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and all(_list_of(kind, items) for items in value.values())
    )
