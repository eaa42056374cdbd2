"""The plan: a sampler as data.

Row k of a plan says how to go from the states x_0..x_k and the RAW network outputs n_0..n_k to the next state,

    x_{k+1} = sum_j state[j] x_j + sum_j output[j] n_j + noise z_k + anchor y + offset,        z_k ~ N(0, I),

with n_k = network(input_scale x_k, network_time) and x_0 = prior_scale z + prior_offset. The meaning of the output
(epsilon, v, ...) is already inside the coefficients, so one executor runs every linear sampler of the field.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.plan import checks, files, schema
from fewstep.plan.combination import Coefficient, is_exactly, number
from fewstep.plan.identity import Identity
from fewstep.plan.row import Row, check_row, data_of, noise_of
from fewstep.plan.shown import rows_as_cells, rows_as_text
from fewstep.prediction import Prediction
from fewstep.shown import html_table


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampler as data: rows, where they end, and what they belong to. Immutable; JSON on disk.

    Raises:
        PlanError: no rows or too many, a coefficient that is not finite or has no usable shape, a negative scale, a row
            that refers to a state not yet made, or an origin that no file can hold.
    """

    rows: tuple[Row, ...]
    prediction: Prediction
    final_alpha: Coefficient
    final_sigma: Coefficient
    prior_scale: Coefficient = 1.0
    """Standard deviation of the first state."""
    prior_offset: Coefficient = 0.0
    """Mean of the first state."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """How the plan was made, for people: solver, settings, search."""
    identity: Identity = field(default_factory=Identity)

    def __post_init__(self) -> None:
        if not self.rows:
            raise PlanError("a plan needs at least one row", hint="Build it with steps >= 1.")
        if len(self.rows) > checks.MOST_ROWS:
            raise PlanError(
                f"a plan has at most {checks.MOST_ROWS} rows", value=len(self.rows), hint="Use fewer steps."
            )
        for k, row in enumerate(self.rows):
            check_row(k, row)
        for name in ("final_alpha", "final_sigma"):
            checks.one_number(name, getattr(self, name), least=0.0)
        checks.scale("prior_scale", self.prior_scale)
        checks.coefficient("prior_offset", self.prior_offset)
        # kept as a file gives it back, so that a plan and its file are equal
        object.__setattr__(self, "origin", checks.plain_values("origin", self.origin))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def summary(self) -> str:
        """The plan in one line."""
        first, last = (number(row.network_time) for row in (self.rows[0], self.rows[-1]))
        return f"Plan({self.steps} rows, {self.prediction.kind}, network times {first:g} to {last:g})"

    def __repr__(self) -> str:
        """One line, and a table of the rows."""
        return f"{self.summary()}\n{rows_as_text(self.rows)}"

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return html_table(*rows_as_cells(self.rows), title=self.summary())

    @property
    def steps(self) -> int:
        """Number of network evaluations."""
        return len(self.rows)

    @cached_property
    def has_tensors(self) -> bool:
        """Whether any coefficient is a tensor (which must then be moved to the device of the states)."""
        return any(isinstance(c, Tensor) for row in self.rows for _, c in row.coefficients())

    @cached_property
    def _times(self) -> Tensor:
        return torch.tensor([number(row.network_time) for row in self.rows], dtype=torch.float64)

    @property
    def network_times(self) -> Tensor:
        """The network time of each row, (K,) float64; carries gradients."""
        if any(isinstance(row.network_time, Tensor) and row.network_time.requires_grad for row in self.rows):
            return torch.stack([torch.as_tensor(row.network_time, dtype=torch.float64) for row in self.rows])
        return self._times

    def index_at(self, network_time: float) -> int:
        """Index of the row at this time. Where a time stands twice, it is the second, as in diffusers: a sampler that
        starts there continues.

        Raises:
            PlanError: the plan has no row there.
        """
        times = self.network_times.tolist()
        places = [k for k, time in enumerate(times) if abs(time - network_time) < 1e-3]
        if not places:
            hint = f"Its times are {[round(time, 3) for time in times]}."
            raise PlanError("the plan has no row at this time", value=network_time, hint=hint)
        return places[1] if places[0] > 0 and len(places) > 1 else places[0]

    @property
    def learned(self) -> bool:
        """Whether any coefficient requires gradients."""
        ends = (self.prior_scale, self.prior_offset, self.final_alpha, self.final_sigma)
        numbers = [*ends, *(c for row in self.rows for _, c in row.coefficients())]
        return any(isinstance(c, Tensor) and c.requires_grad for c in numbers)

    @property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return any(not is_exactly(row.noise, 0.0) for row in self.rows)

    def replace(self, **changes: Any) -> Plan:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def scaled(self, sample_scale: Sequence[Any] | Tensor, output_scale: Sequence[Any] | Tensor) -> Plan:
        """Fold Q-Sched's scalars into the coefficients (arXiv 2509.01624): x_k -> s_k x_k and n_k -> m_k n_k.

        This equals calling `scheduler.step(m_k * n_k, t, s_k * x_k)` on the scheduler the plan was read from, multistep
        solvers included, because they remember what `step` was given. The network input and the noise stay as they are.

        Args:
            sample_scale: s, one per row; numbers or tensors of shape (C, 1, 1).
            output_scale: m, likewise.

        Raises:
            PlanError: not one value per row.
        """
        for name, values in (("sample_scale", sample_scale), ("output_scale", output_scale)):
            if len(values) != self.steps:
                raise PlanError(
                    f"{name} needs one value per row, {self.steps}",
                    value=len(values),
                    hint="Search coefficients for this step count.",
                )
        s, m = [_coefficient(v) for v in sample_scale], [_coefficient(v) for v in output_scale]
        rows = tuple(
            dataclasses.replace(
                row,
                state={j: c * s[j] for j, c in row.state.items()},
                output={j: c * m[j] for j, c in row.output.items()},
                sample_scale=row.sample_scale * s[k],
                output_scale=row.output_scale * m[k],
            )
            for k, row in enumerate(self.rows)
        )
        return self.replace(rows=rows)

    def starting_at(self, first: int) -> Plan:
        """The rest of the plan from row `first` (image-to-image): later rows keep their coefficients and scalars.

        A row whose history is gone becomes the first-order (DDIM) row between the same noise levels; a corrector or
        multistep row further on that still reaches back before `first` does too.

        Raises:
            PlanError: no such row.
        """
        if not 0 <= first < self.steps:
            raise PlanError(f"the plan has rows 0 to {self.steps - 1}", value=first, hint="Start at one of them.")
        rows = []
        for k in range(first, self.steps):
            row = self.rows[k]
            if min([*row.state, *row.output]) < first:
                row = self._first_order(k)
            moved: dict[str, Any] = {
                kind: {j - first: c for j, c in getattr(row, kind).items()} for kind in ("state", "output")
            }
            rows.append(dataclasses.replace(row, **moved))
        return self.replace(rows=tuple(rows), prior_scale=_root(self.rows[first]), prior_offset=0.0)

    def stopping_at(self, last: int) -> Plan:
        """The plan up to row `last`, which ends in what the network takes the clean sample for there: a preview.

        Raises:
            PlanError: no such row.
        """
        if not 0 <= last < self.steps:
            raise PlanError(f"the plan has rows 0 to {self.steps - 1}", value=last, hint="Stop at one of them.")
        clean = self._towards(last, self.final_alpha, 0.0)
        return self.replace(rows=(*self.rows[:last], clean), final_sigma=0.0)

    def _first_order(self, k: int) -> Row:
        if k + 1 == self.steps:
            return self._towards(k, self.final_alpha, self.final_sigma)
        return self._towards(k, self.rows[k + 1].alpha, self.rows[k + 1].sigma)

    def _towards(self, k: int, alpha: Coefficient, sigma: Coefficient) -> Row:
        """Row k as the first-order (DDIM) step to these noise levels."""
        row = self.rows[k]
        step = alpha * data_of(row, k, self.prediction) + sigma * noise_of(row, k, self.prediction)
        return dataclasses.replace(
            row,
            state={j: c * row.sample_scale for j, c in step.state.items()},
            output={j: c * row.output_scale for j, c in step.output.items()},
            noise=0.0,
            offset=0.0,
        )

    def check(self, found: Identity) -> None:
        """Refuse to run with another model, quantization or guidance than the plan was made for (IdentityError)."""
        self.identity.check(found)

    # --- in and out -------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, tensors as nested lists; diffusers writes parts of configurations by this name."""
        return self._written(None)

    @classmethod
    def from_dict(cls, document: Any, tensors: Mapping[str, Tensor] | None = None) -> Plan:
        """A plan from JSON values.

        Args:
            document: what `to_dict` gives.
            tensors: of the file beside it, for coefficients that are stored there.

        Raises:
            PlanError: of a newer schema, an unknown or missing key, a value of the wrong kind, or an invalid plan.
        """
        return cls._read(files.parsed(document, cls), tensors)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write `path` (JSON), and tensor coefficients to a `.safetensors` beside it; atomic.

        overwrite: replace an earlier plan. Other files are never replaced (FewstepError).
        """
        tensors: dict[str, Tensor] = {}
        files.write(path, self._written(tensors), tensors, type(self), overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read and validate a plan file.

        Raises:
            FewstepError: the file is absent, too large, not JSON, or names a key twice.
            PlanError: it is JSON, but not a valid plan.
        """
        return cls._read(*files.read(path, cls))

    def _written(self, tensors: dict[str, Tensor] | None) -> dict[str, Any]:
        written = partial(files.written_number, tensors)
        ends = ("prior_scale", "prior_offset", "final_alpha", "final_sigma")
        return {
            "fewstep_plan": files.SCHEMA,
            "steps": self.steps,
            "prediction": vars(self.prediction),
            **{name: written(name, getattr(self, name)) for name in ends},
            "rows": [row.to_dict(written, f"rows.{k}") for k, row in enumerate(self.rows)],
            "identity": vars(self.identity),
            "origin": dict(self.origin),
        }

    @classmethod
    def _read(cls, found: Any, tensors: Mapping[str, Tensor] | None) -> Plan:
        return schema.built(cls, found, partial(files.read_number, tensors))


def _root(row: Row) -> float:
    return math.hypot(float(row.alpha), float(row.sigma))


def _coefficient(value: Any) -> Coefficient:
    if isinstance(value, Tensor):
        return value if value.ndim or value.requires_grad else float(value)
    return float(value)
