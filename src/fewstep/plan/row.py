"""One row of a plan: where it stands, which network it asks, and the coefficients of the next state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.plan import checks
from fewstep.plan.combination import Coefficient, Combination, is_exactly, output, state
from fewstep.plan.hooks import treatment
from fewstep.prediction import Prediction
from fewstep.shown import html_table

TABLES = ("state", "output")
"""Fields with a coefficient for each earlier state and output."""
SETTINGS = ("network", "guidance", "hook")
"""Fields that say how the network is asked; all others are coefficients."""


@dataclass(frozen=True, eq=False)
class Row:
    """One stage: where it stands, which network it asks, and the coefficients of the next state.

    `sample_scale` and `output_scale` are Q-Sched's scalars; they are ALREADY multiplied into the coefficients and are
    kept for reading. `guidance` overrides the pipeline's scale for this stage. `hook` names a non-linear treatment
    of the output ("clip_sample:1.0"), which takes the slower path.
    """

    time: Coefficient
    network_time: Coefficient
    alpha: Coefficient
    sigma: Coefficient
    state: Mapping[int, Coefficient]
    output: Mapping[int, Coefficient]
    noise: Coefficient = 0.0
    anchor: Coefficient = 0.0
    offset: Coefficient = 0.0
    input_scale: Coefficient = 1.0
    network: str = "main"
    guidance: float | None = None
    hook: str | None = None
    sample_scale: Coefficient = 1.0
    output_scale: Coefficient = 1.0

    def __repr__(self) -> str:
        """Where the row stands, and the sum that makes the next state."""
        terms = [(c, f"x_{j}") for j, c in sorted(self.state.items(), reverse=True)]
        terms += [(c, f"n_{j}") for j, c in sorted(self.output.items(), reverse=True)]
        terms += [(self.noise, "z"), (self.anchor, "y"), (self.offset, "1")]
        total = " ".join(f"{said(c, '+')} {name}" for c, name in terms if not is_exactly(c, 0.0)) or "0"
        usual = {f.name: f.default for f in dataclasses.fields(self) if f.name in _OTHERS}
        others = [name for name, default in usual.items() if _differs(getattr(self, name), default)]
        more = "".join(f", {name}={said(getattr(self, name))}" for name in others)
        place = f"time {said(self.network_time)}, alpha {said(self.alpha)}, sigma {said(self.sigma)}"
        return f"Row({place}: next = {total}{more})"

    def _repr_html_(self) -> str:
        """What differs from the usual, for notebooks."""
        values = [(name, value) for name, value in self.coefficients() if name in _PLACE or not is_exactly(value, 0.0)]
        named = [[name, str(getattr(self, name))] for name in ("network", "guidance", "hook") if getattr(self, name)]
        return html_table(["", "value"], [[name, said(value)] for name, value in values] + named, "Row")

    def coefficients(self) -> Iterator[tuple[str, Coefficient]]:
        """Every number of the row with its dotted name."""
        for name, value in vars(self).items():
            if name in TABLES:
                yield from ((f"{name}.{j}", c) for j, c in value.items())
            elif name not in SETTINGS:
                yield name, value

    def to_dict(self, number: Callable[[str, Coefficient], Any], place: str) -> dict[str, Any]:
        """The row as JSON values; `number` writes a coefficient of a dotted name, which begins with `place`."""
        entry: dict[str, Any] = {"state": {}, "output": {}}
        for name, value in self.coefficients():
            kind, _, j = name.partition(".")
            (entry[kind] if j else entry).__setitem__(j or kind, number(f"{place}.{name}", value))
        return entry | {name: getattr(self, name) for name in SETTINGS}

    def map(self, change: Callable[[Coefficient], Coefficient]) -> Row:
        """The row with `change` applied to every coefficient."""
        changed: dict[str, Any] = {
            f.name: change(value) if isinstance(value := getattr(self, f.name), float | Tensor) else value
            for f in dataclasses.fields(self)
            if f.name not in TABLES and f.name not in SETTINGS
        }
        tables: dict[str, Any] = {k: {j: change(c) for j, c in getattr(self, k).items()} for k in TABLES}
        return dataclasses.replace(self, **changed, **tables)


_PLACE = ("time", "network_time", "alpha", "sigma")
_OTHERS = ("input_scale", "network", "guidance", "hook", "sample_scale", "output_scale")


def _differs(value: Any, usual: Any) -> bool:
    return isinstance(value, Tensor) or value != usual


def said(value: Any, sign: str = "") -> str:
    """A number in four digits, the range of a tensor, or any other value as it is."""
    if isinstance(value, Tensor) and value.ndim:
        return "..".join(format(float(v), f"{sign}.3g") for v in (value.detach().min(), value.detach().max()))
    value = float(value.detach()) if isinstance(value, Tensor) else value
    return format(value, f"{sign}.4g") if isinstance(value, float | int) else "-" if value is None else str(value)


def data_of(row: Row, k: int, prediction: Prediction) -> Combination:
    """The data estimate x0 at row k as a combination of x_k and n_k."""
    p, m = prediction.sample(row.input_scale * row.alpha, row.input_scale * row.sigma)
    return (p * row.input_scale) * state(k) + m * output(k)


def noise_of(row: Row, k: int, prediction: Prediction) -> Combination:
    """The noise estimate eps at row k as a combination of x_k and n_k."""
    p, m = prediction.noise(row.input_scale * row.alpha, row.input_scale * row.sigma)
    return (p * row.input_scale) * state(k) + m * output(k)


def check_row(k: int, row: Row) -> None:
    """Refuse what row k may not hold (PlanError names the place)."""
    place = f"rows[{k}]"
    for name, value in row.coefficients():
        checks.coefficient(f"{place}.{name}", value)
    for name in ("time", "network_time"):
        checks.one_number(f"{place}.{name}", getattr(row, name))
    for name in ("alpha", "sigma"):
        checks.one_number(f"{place}.{name}", getattr(row, name), least=0.0)
    for kind in TABLES:
        checks.indices(f"{place}.{kind}", getattr(row, kind), k)
    checks.text(f"{place}.network", row.network)
    checks.guidance(f"{place}.guidance", row.guidance)
    if row.hook is not None:
        checks.text(f"{place}.hook", row.hook)
        treatment(row.hook, f"{place}.hook")
