"""A scheme per layer, as an allocation of bits gives it, or several for steps that name one (`fewstep.quant.steps`)."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fewstep.errors import FewstepError, nearest
from fewstep.quant.apply import check_quantizable, quantize_as
from fewstep.quant.calibration import Calibration
from fewstep.quant.modules import eligible, lookups
from fewstep.quant.report import QuantReport, disk_bytes, resident_bytes
from fewstep.quant.rules import LOOKUP, Decision, decisions
from fewstep.quant.scheme import Scheme
from fewstep.quant.steps import copy_layers, tie
from fewstep.quant.wrappers import bare

FLOAT = "float"
"""The name that keeps a layer as it is."""


def quantize_mixed(
    model: nn.Module, schemes: Mapping[str, str], *, reasons: Mapping[str, str] | None = None, **options: Any
) -> QuantReport:
    """Quantize a model in place with a scheme per layer; the report's scheme is the one that most weights get.

    Args:
        schemes: scheme, or `float`, of every Linear and convolution that can be quantized; embeddings may be named too.
        reasons: why, for the report.
        options: of `fewstep.quant.quantize` (`backend`, `method`, `calibration`).

    Raises:
        FewstepError: a layer that the model does not have, or one without a scheme; and as `quantize`.
    """
    model = bare(model)
    check_quantizable(model)
    names = eligible(model)
    for name in schemes:
        if name not in names + lookups(model):
            raise FewstepError("no layer of this name can be quantized", value=name, hint=nearest(name, names))
    missing = [name for name in names if name not in schemes]
    if missing:
        raise FewstepError("a layer has no scheme", value=missing[0], hint=f"Name one, or {FLOAT!r}.")
    chosen = {name: None if text == FLOAT else Scheme.parse(text) for name, text in schemes.items()}
    weights: Counter[Scheme] = Counter()
    for name, scheme in chosen.items():
        if scheme is not None:
            layer: Any = model.get_submodule(name)
            weights[scheme] += layer.weight.numel()
    most = weights.most_common(1)[0][0] if weights else Scheme(8, 8)

    def choose(name: str) -> Decision:
        if name not in chosen:
            return LOOKUP
        reason = (reasons or {}).get(name, "chosen by the allocation of bits")
        return chosen[name], "" if chosen[name] == most else reason

    return quantize_as(model, decisions(model, most, choose), **options)


def quantize_stepped(model: nn.Module, tables: Sequence[Mapping[str, str]], **options: Any) -> QuantReport:
    """Quantize a model in place with several tables of schemes, for plans whose rows name `bits:0`, `bits:1`, ...

    Args:
        tables: scheme, or `float`, of every layer, as `quantize_mixed` takes one of them.
        options: of `quantize_mixed`; a calibration of the model before counts for all copies of a layer.

    Raises:
        FewstepError: no table, tables of different layers, or as `quantize_mixed`.
    """
    if not tables or any(set(table) != set(tables[0]) for table in tables):
        raise FewstepError("tables of bits must be of the same layers", value=len(tables), hint="Give at least one.")
    model = bare(model)
    flat: dict[str, str] = {}
    copied: dict[str, list[int]] = {}
    for name in tables[0]:
        wanted = [table[name] for table in tables]
        distinct = list(dict.fromkeys(wanted))
        if len(distinct) == 1:
            flat[name] = distinct[0]
            continue
        copied[name] = [distinct.index(scheme) for scheme in wanted]
        flat |= {f"{name}.options.{k}": scheme for k, scheme in enumerate(distinct)}
    copy_layers(model, copied)
    if options.get("calibration") is not None:
        options["calibration"] = _for_copies(options["calibration"], flat)
    report = quantize_mixed(model, flat, **options)
    if not tie(model):
        return report
    return dataclasses.replace(report, disk_after=disk_bytes(model), resident_after=resident_bytes(model))


def _for_copies(calibration: Calibration, names: Mapping[str, str]) -> Calibration:
    """Statistics under the names of the copies that share them."""
    found = {name: calibration.get(re.sub(r"\.options\.\d+$", "", name)) for name in names}
    return dataclasses.replace(calibration, layers={name: seen for name, seen in found.items() if seen is not None})
