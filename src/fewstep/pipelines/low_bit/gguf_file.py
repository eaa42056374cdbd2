"""Linear weights in a GGUF file (Q8_0, Q4_0), written with the `gguf` package, under the names of diffusers.

GGUF keeps weights only: calibrated inputs, smoothing and float branches have no place in it; convolutions and
embeddings stay in float. Weights in groups of 32 with 4 or 8 bit (`w4a16`, `w8g32`, also after gptq or adaround) go
over code for code; others are rounded once more. Programs that want the original names of a model (ComfyUI) do not
read these files, and diffusers turns blocks into float16 before it multiplies, whatever its compute type.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError, nearest
from fewstep.files import atomic
from fewstep.ownership import SOFTWARE
from fewstep.quant.layer import QuantLayer
from fewstep.quant.linear_conv import QuantLinear
from fewstep.quant.modules import kept_reason, shared_parameters
from fewstep.quant.rules import FEW_STEP_RULES, decide
from fewstep.quant.scheme import Scheme

BLOCK = 32
KINDS = {"Q8_0": "w8g32", "Q4_0": "w4g32"}
"""GGUF types, and the scheme that each is code for code."""


@dataclass(frozen=True)
class GgufReport:
    """What became of every tensor: names under their GGUF type, and which were moved code for code.

    loader: whether diffusers reads this class from a single file; if not, `gguf.quants.dequantize` still does.
    """

    bytes: int
    types: dict[str, list[str]]
    exact: list[str]
    loader: bool

    def summary(self) -> str:
        """One sentence with the counts, and who can read the file."""
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in self.types.items())
        reader = (
            "diffusers reads it: from_single_file(file, config=FOLDER, quantization_config=GGUFQuantizationConfig())"
            if self.loader
            else "diffusers has no single-file loader for this class: read it with the gguf package"
        )
        return f"{self.bytes / 1e6:.2f} MB: {counts}; {len(self.exact)} weights code for code. {reader}."


def export_gguf(model: nn.Module, file: str | Path, kind: str = "Q8_0", overwrite: bool = False) -> GgufReport:
    """Write a diffusers model, in full precision or quantized by fewstep, as one GGUF file.

    Linear weights whose rows are whole blocks of 32 get `kind`; first, last and conditioning layers of a float model
    Q8_0 (`FEW_STEP_RULES`); all else stays in float32 (float16 where it was). The model is not changed.

    overwrite: replace a file that fewstep wrote; others are never replaced.

    Raises:
        FewstepError: something is there that may not be replaced, unknown kind, the `gguf` package is missing, or
            layers that GGUF has no place for (several precisions, split skip connections, first tokens apart).
    """
    if kind not in KINDS:
        raise FewstepError("unknown GGUF type", value=kind, hint=nearest(kind, KINDS))
    gguf = _package()
    _check_plain(model)
    shared = shared_parameters(model)
    wide = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    types: dict[str, list[str]] = {}
    exact: list[str] = []
    with atomic(file, over="ours" if overwrite else "nothing") as draft:
        writer = gguf.GGUFWriter(str(draft), "diffusers")
        writer.add_string("general.quantized_by", SOFTWARE)
        writer.add_string("diffusers.class", type(model).__name__)
        writer.add_string("diffusers.config", json.dumps(dict(getattr(model, "config", {})), default=str))
        done: set[str] = set()
        for name, module in model.named_modules():
            if not isinstance(module, nn.Linear | QuantLayer):
                continue
            wanted = _kind(name, module, kind, shared, wide)
            values, how = _weight(module, wanted, gguf)
            if how == "codes":
                exact.append(name)
            _add(writer, gguf, f"{name}.weight", values, wanted, types)
            done |= {
                f"{name}.{part}" for part, _ in [*module.named_buffers(), *module.named_parameters()] if part != "bias"
            }
        for name, tensor in model.state_dict().items():
            if name not in done:
                _add(writer, gguf, name, _plain(tensor), "", types)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return GgufReport(Path(file).stat().st_size, types, exact, type(model).__name__ in readable())


def readable() -> tuple[str, ...]:
    """Classes that diffusers' own single-file loader takes: those whose GGUF files plain diffusers can read."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    return tuple(SINGLE_FILE_LOADABLE_CLASSES)


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise FewstepError("the gguf package is not installed", hint="pip install 'fewstep[gguf]'.") from None
    return gguf


def _check_plain(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).__name__ in ("FirstToken", "SplitConv2d", "Stepped"):
            hint = "Quantize with first_token=false, split_skips=false and without per_step, or export the original."
            raise FewstepError(f"{type(module).__name__} layers have no place in a GGUF file", value=name, hint=hint)


def _kind(name: str, module: nn.Module, kind: str, shared: set[int], wide: set[str]) -> str:
    """GGUF type of a layer's weight; empty for float."""
    if not isinstance(module, nn.Linear | QuantLinear) or wide & set(name.split(".")):
        return ""
    if isinstance(module, QuantLinear):
        scheme = module.scheme
        columns = module.in_features
        kind = kind if scheme.weight_bits < 8 else "Q8_0"
    elif isinstance(module, nn.Linear):
        kept = kept_reason(module, shared)
        target = None if kept else decide(name, Scheme.parse(KINDS[kind]), FEW_STEP_RULES)[0]
        columns = module.in_features if target is not None else 1
        kind = kind if target is None or target.weight_bits < 8 else "Q8_0"
    return kind if columns % BLOCK == 0 else ""


def _weight(module: Any, kind: str, gguf: Any) -> tuple[np.ndarray, str]:
    """Bytes of the blocks, or floats, and how they were made."""
    if not kind:
        weight = module.as_held(module.dequantize()) if isinstance(module, QuantLayer) else module.weight
        return _plain(weight), "float"
    if isinstance(module, QuantLayer) and str(_storage(module.scheme)) == str(Scheme.parse(KINDS[kind])):
        grid = module.grid()
        if not bool((grid.scale == 0).any()):
            return blocks(module.codes(), grid.scale, kind), "codes"
    weight = module.dequantize() if isinstance(module, QuantLayer) else module.weight
    rows = weight.detach().float().cpu().numpy()
    return gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind]), "rounded"


def _storage(scheme: Scheme) -> Scheme | None:
    """What a scheme stores of a weight, if it is nothing but integers and scales."""
    changed = scheme.smooth or scheme.rank or scheme.hadamard
    if scheme.weight_format != "int" or changed or scheme.group_size != BLOCK:
        return None
    return Scheme(scheme.weight_bits, 16, BLOCK)


def blocks(codes: Tensor, scale: Tensor, kind: str) -> np.ndarray:
    """Blocks of Q4_0 or Q8_0, uint8 (rows, bytes), from codes (rows, columns) and float16 scales (rows, columns / 32).

    A block is the scale and then its codes: bytes, or halves of bytes with 8 added, the first 16 in the low halves.
    """
    rows = codes.shape[0]
    parts = codes.cpu().view(rows, -1, BLOCK)
    if kind == "Q4_0":
        shifted = (parts + 8).view(torch.uint8)
        packed = shifted[..., :16] | (shifted[..., 16:] << 4)
    else:
        packed = parts.contiguous().view(torch.uint8)
    head = scale.cpu().half().contiguous().view(rows, -1, 1).view(torch.uint8)
    return torch.cat([head, packed], -1).flatten(1).numpy()


def _plain(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype == torch.float16 else tensor.float()).contiguous().numpy()


def _add(writer: Any, gguf: Any, name: str, values: np.ndarray, kind: str, types: dict[str, list[str]]) -> None:
    types.setdefault(kind or ("F16" if values.dtype == np.float16 else "F32"), []).append(name)
    if not kind:
        writer.add_tensor(name, values)
        return
    writer.add_tensor(name, np.ascontiguousarray(values), raw_dtype=gguf.GGMLQuantizationType[kind])
