"""What a quantized folder says of its layers: `quantization_config`, the same for diffusers and transformers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from torch import nn

from fewstep.errors import FewstepError, nearest
from fewstep.quant.kernels import check_backend
from fewstep.quant.scheme import Scheme

VERSION = 1


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
            raise FewstepError("unknown key in quantization_config", value=key, mend=nearest(key, known))
        if version != VERSION:
            raise FewstepError("unknown version of quantization_config", value=version, mend="Update fewstep.")
        self.quant_method = QuantMethod.FEWSTEP
        self.scheme, self.version = str(Scheme.parse(scheme)), version
        self.layers = {str(Scheme.parse(name)): list(names) for name, names in (layers or {}).items()}
        self.backend = check_backend(backend)
        self.first_token = list(first_token or [])
        self.tables = {name: list(choice) for name, choice in (tables or {}).items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {**self.__dict__, "quant_method": self.quant_method.value}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same values: diffusers prints this one."""
        return self.to_dict()

    def schemes(self) -> dict[str, Scheme]:
        """Scheme of each quantized layer by its name."""
        return {layer: Scheme.parse(scheme) for scheme, names in self.layers.items() for layer in names}


def by_scheme(layers: Mapping[str, Scheme]) -> dict[str, list[str]]:
    """The layers under the name of their scheme, as `config.json` lists them."""
    found: dict[str, list[str]] = {}
    for name, scheme in layers.items():
        found.setdefault(str(scheme), []).append(name)
    return found


def refuse_truncated(model: nn.Module) -> None:
    """Refuse a model with a tensor that its file did not bring (FewstepError)."""
    empty = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if empty:
        mend = "The file is truncated: save the model again."
        raise FewstepError("the quantized checkpoint lacks a tensor", value=empty[0], mend=mend)
