"""A scheme per layer, as an allocation of bits gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from fewstep.errors import FewstepError, nearest
from fewstep.quant.apply import Rule, quantize
from fewstep.quant.report import QuantReport
from fewstep.quant.scheme import Scheme
from fewstep.quant.sensitivity import eligible
from fewstep.quant.wrappers import bare

FLOAT = "float"
"""The name that keeps a layer as it is."""


@dataclass(frozen=True)
class AssignedRule(Rule):
    """A rule that gives the layers of exactly these names its scheme, more bits or fewer."""

    def covers(self, name: str) -> bool:
        """Whether the layer is one of those named."""
        return name in self.patterns

    def adapt(self, scheme: Scheme) -> Scheme | None:
        """The rule's own scheme."""
        return self.scheme


def quantize_mixed(
    model: nn.Module, schemes: Mapping[str, str], *, reasons: Mapping[str, str] | None = None, **options: Any
) -> QuantReport:
    """Quantize a model in place with a scheme per layer; the report's scheme is the one that most weights get.

    Args:
        schemes: scheme, or `float`, of every Linear and Conv2d that can be quantized.
        reasons: why, for the report.
        options: of `fewstep.quant.quantize` (`backend`, `method`, `calibration`).

    Raises:
        FewstepError: a layer that the model does not have, or one without a scheme; and as `quantize`.
    """
    model = bare(model)
    names = eligible(model)
    for name in schemes:
        if name not in names:
            raise FewstepError("no layer of this name can be quantized", value=name, hint=nearest(name, names))
    missing = [name for name in names if name not in schemes]
    if missing:
        raise FewstepError("a layer has no scheme", value=missing[0], hint=f"Name one, or {FLOAT!r}.")
    weights: Counter[str] = Counter()
    for name in names:
        if schemes[name] != FLOAT:
            layer: Any = model.get_submodule(name)
            weights[str(Scheme.parse(schemes[name]))] += layer.weight.numel()
    rules = [
        AssignedRule(
            (name,),
            None if scheme == FLOAT else Scheme.parse(scheme),
            (reasons or {}).get(name, "chosen by the allocation of bits"),
        )
        for name, scheme in schemes.items()
    ]
    most = weights.most_common(1)[0][0] if weights else "w8a8"
    return quantize(model, most, rules=rules, **options)
