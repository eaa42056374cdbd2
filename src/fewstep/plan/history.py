"""One stage of a plan on tensors: what the executor and the diffusers scheduler both do per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.errors import PlanError
from fewstep.plan.combination import Coefficient, is_exactly
from fewstep.plan.hooks import treatment
from fewstep.plan.plan import Plan
from fewstep.plan.row import Row, data_of
from fewstep.prediction import Prediction


def ready_rows(plan: Plan, device: torch.device | str, dtype: torch.dtype) -> list[Row]:
    """The rows with tensor coefficients on `device` in `dtype`; numbers stay numbers."""

    def ready(value: Coefficient) -> Coefficient:
        return value.to(device=device, dtype=dtype) if isinstance(value, Tensor) else value

    return [row.map(ready) for row in plan.rows] if plan.has_tensors else list(plan.rows)


def refuse_misfit(plan: Plan, shape: Sequence[int]) -> None:
    """Refuse tensor coefficients that do not broadcast on one sample of this shape, or that would enlarge it.

    Raises:
        PlanError: names the coefficient; without it, four coefficients make four channels of one.
    """
    named = [("prior_offset", plan.prior_offset)]
    if plan.has_tensors:
        named += [(f"rows[{k}].{name}", c) for k, row in enumerate(plan.rows) for name, c in row.coefficients()]
    whole = (1, *shape)
    for name, value in named:
        if isinstance(value, Tensor) and not _broadcasts(value.shape, whole):
            raise PlanError(
                f"{name} does not fit samples of shape {tuple(shape)}",
                value=tuple(value.shape),
                hint="Search per-channel coefficients with the channels of this model (Family(channels=...)).",
            )


def _broadcasts(shape: Sequence[int], whole: Sequence[int]) -> bool:
    if len(shape) > len(whole):
        return False
    return all(n in (1, m) for n, m in zip(reversed(shape), reversed(whole), strict=False))


Table = list[tuple[int, Coefficient]]
Layout = tuple[list[tuple[Table, Table]], list[list[tuple[str, int]]]]
"""By row what it adds up, of the states and of the outputs, and what no later row reads."""


@dataclass(frozen=True, eq=False)
class RunState:
    """Where a run of a plan stands: before the row of the last of its states.

    Args:
        states: x_j (B, ...) by j: the last is the state there, earlier ones are what later rows read.
        outputs: n_j (B, ...) by j, as later rows read them: after the treatment that the hook of row j names.
        drawn: how often noise was drawn for each sample on the way there.

    Raises:
        PlanError: no state.
    """

    states: Mapping[int, Tensor]
    outputs: Mapping[int, Tensor] = field(default_factory=dict)
    drawn: int = 0

    def __post_init__(self) -> None:
        if not self.states:
            raise PlanError("a run state needs the state that it stands at", hint="Give states={k: x_k}.")

    @property
    def row(self) -> int:
        """The row that comes next."""
        return max(self.states)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> RunState:
        """The same elsewhere."""

        def moved(kept: Mapping[int, Tensor]) -> dict[int, Tensor]:
            return {j: x.to(device=device, dtype=dtype) for j, x in kept.items()}

        return RunState(moved(self.states), moved(self.outputs), self.drawn)


class History:
    """States and raw outputs that later rows still read; everything else is dropped as soon as it is used."""

    def __init__(self, rows: Sequence[Row], prediction: Prediction, layout: Layout | None = None) -> None:
        self.rows, self.prediction = rows, prediction
        self.states: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self._tables, self._expiring = layout or _layout(rows)

    @classmethod
    def of(cls, plan: Plan, rows: Sequence[Row]) -> History:
        """The history of a run: rows of `ready_rows(plan)`; what does not change is worked out once per plan."""
        if plan.has_tensors:
            return cls(rows, plan.prediction)
        layout = vars(plan).get("_layout")
        if layout is None:
            layout = vars(plan)["_layout"] = _layout(rows)
        return cls(rows, plan.prediction, layout)

    def resume(self, start: RunState, ask: Callable[[int, Tensor], Tensor]) -> None:
        """Take over what the rows from `start.row` on read of earlier ones.

        An output that is not given is asked: `ask` (j, x_j) -> n_j.

        Raises:
            PlanError: neither an output nor its state is given, or not a state that is read.
        """
        for kind, j in sorted(self._read_before(start.row)):
            if kind == "output" and j in start.outputs:
                self.outputs[j] = start.outputs[j]
            elif j not in start.states:
                hint = f"Give it, or run `plan.starting_at({start.row})`, whose rows need none before them."
                raise PlanError(f"rows from {start.row} on read the {kind} of row {j}, which is not given", hint=hint)
            elif kind == "state":
                self.states[j] = start.states[j]
            else:
                x, row = start.states[j], self.rows[j]
                raw = ask(j, x).to(x.dtype)
                self.outputs[j] = _treated(row, j, x, raw, self.prediction) if row.hook else raw

    def _read_before(self, first: int) -> set[tuple[str, int]]:
        """The states and outputs of rows before `first` that rows from there on read."""
        read = set[tuple[str, int]]()
        for tables in self._tables[first:] if first else ():
            for kind, table in zip(("state", "output"), tables, strict=True):
                read |= {(kind, j) for j, _ in table if j < first}
        return read

    def advance(
        self, k: int, x: Tensor, raw: Tensor, noise: Tensor | None = None, anchor: Tensor | None = None
    ) -> Tensor:
        """The state after row k, from the state x (B, ...) and the raw output there; one new tensor per row."""
        row = self.rows[k]
        raw = raw.to(x.dtype)
        self.states[k] = x
        self.outputs[k] = _treated(row, k, x, raw, self.prediction) if row.hook else raw
        of_states, of_outputs = self._tables[k]
        terms = [(c, self.states[j]) for j, c in of_states] + [(c, self.outputs[j]) for j, c in of_outputs]
        if noise is not None:
            terms.append((row.noise, noise))
        if anchor is not None and not is_exactly(row.anchor, 0.0):
            terms.append((row.anchor, anchor))
        result = _combine(terms, x)
        if not is_exactly(row.offset, 0.0):
            result += row.offset
        for kind, j in self._expiring[k]:
            (self.states if kind == "state" else self.outputs).pop(j, None)
        return result

    def run_state(self, drawn: int, k: int, x: Tensor) -> RunState:
        """What a run stands at that has come to the state x of row k."""
        return RunState({**self.states, k: x}, dict(self.outputs), drawn)

    def estimate(self, k: int, x: Tensor, raw: Tensor) -> Tensor:
        """The data estimate at row k (FewstepError where the output tells no data)."""
        estimate = data_of(self.rows[k], k, self.prediction)
        return estimate.state[k] * x + estimate.output[k] * raw


def _combine(terms: Sequence[tuple[Coefficient, Tensor]], like: Tensor) -> Tensor:
    if not terms:
        return torch.zeros_like(like)
    coefficient, tensor = terms[0]
    rest = terms[1:]
    if is_exactly(coefficient, 1.0) and rest and not isinstance(rest[0][0], Tensor):
        total = torch.add(tensor, rest[0][1], alpha=rest[0][0])  # Euler in one kernel
        rest = rest[1:]
    else:
        total = tensor * coefficient
    for coefficient, tensor in rest:
        if isinstance(coefficient, Tensor):
            total.addcmul_(tensor, coefficient.expand_as(tensor))
        else:
            total.add_(tensor, alpha=coefficient)
    return total


def _treated(row: Row, k: int, x: Tensor, raw: Tensor, prediction: Prediction) -> Tensor:
    """Treat the data estimate, then re-express it as a raw output, so that histories see the treated one."""
    estimate = data_of(row, k, prediction)
    p, m = estimate.state[k], estimate.output[k]
    return (treatment(str(row.hook))(p * x + m * raw) - p * x) / m


def _layout(rows: Sequence[Row]) -> Layout:
    # always added in the order of their index: a saved plan, whose keys JSON sorts, gives the same bits
    return [(sorted(row.state.items()), sorted(row.output.items())) for row in rows], _expiry(rows)


def _expiry(rows: Sequence[Row]) -> list[list[tuple[str, int]]]:
    """For each row, the history entries that no later row reads."""
    last: dict[tuple[str, int], int] = {}
    for k, row in enumerate(rows):
        tables: Mapping[str, Mapping[int, Coefficient]] = {"state": row.state, "output": row.output}
        for kind, table in tables.items():
            last.update({(kind, j): k for j in [k, *table]})
    dropped: list[list[tuple[str, int]]] = [[] for _ in rows]
    for entry, k in last.items():
        dropped[k].append(entry)
    return dropped
