"""Plans of reveals: which masked tokens become known in which step, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import TypeAdapter, ValidationError

from fewstep.discrete.process import MaskedDiffusion
from fewstep.discrete.transition import most_remasking
from fewstep.errors import FewstepError, PlanError, nearest
from fewstep.files import read_json, write_json
from fewstep.shown import html_table

SCHEMA = 1
Order = Literal["independent", "random", "confidence", "entropy", "entropy-bound"]


@dataclass(frozen=True)
class Reveal:
    """One call of the network and the tokens that it reveals.

    Attributes:
        time: before, in (0, 1].
        next_time: after; 0 reveals all that is left.
        temperature: of the tokens' law; 1 leaves it.
        order: which positions. `independent`: each by the probability of the ancestral sampler. Else a number of them,
            so that the share of masks follows the schedule: at `random`, where the drawn token is most probable
            (`confidence`, MaskGIT, arXiv 2202.04200), or where the law has least `entropy`. `entropy-bound`: in the
            order of entropy, as long as the sum of the entropies without the largest is at most `bound`: what is
            revealed together is then nearly independent, and the times say nothing.
        remask: probability that a revealed token is masked again (arXiv 2503.00307); for `independent` alone.
        bound: of `entropy-bound`, in nats.

    Raises:
        PlanError: times that do not fall within [0, 1], an unknown order, or a number out of its range.
    """

    time: float
    next_time: float
    temperature: float = 1.0
    order: Order = "independent"
    remask: float = 0.0
    bound: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.next_time < self.time <= 1:
            raise PlanError("times of reveals must fall, within [0, 1]", value=(self.time, self.next_time))
        if self.order not in get_args(Order):
            raise PlanError("unknown order of reveals", value=self.order, hint=nearest(self.order, get_args(Order)))
        if self.temperature <= 0:
            raise PlanError("a temperature must be positive", value=self.temperature, hint="1 leaves the law.")
        if self.remask and self.order != "independent":
            hint = "Use the order independent, or remask 0."
            raise PlanError("only independent reveals can mask tokens again", value=self.order, hint=hint)
        if self.bound < 0:
            raise PlanError("a bound on the entropy must not be negative", value=self.bound)


@dataclass(frozen=True)
class RevealPlan:
    """A sampler of masked tokens as data.

    Attributes:
        process: of the tokens it was made for; another network's is refused.
        rows: in order; each begins where the one before ends, the last ends at 0.
        name: of the sampler.

    Raises:
        PlanError: no rows, rows that do not follow each other, or masking again more than the schedule allows.
    """

    process: MaskedDiffusion
    rows: tuple[Reveal, ...]
    name: str = "reveals"

    def __post_init__(self) -> None:
        if not self.rows or self.rows[-1].next_time != 0:
            raise PlanError("the last row of a plan must reveal all tokens", hint="Let it end at time 0.")
        for k, (before, after) in enumerate(zip(self.rows, self.rows[1:], strict=False)):
            if before.next_time != after.time:
                raise PlanError(f"row {k + 1} must begin where row {k} ends", value=(before.next_time, after.time))
        for k, row in enumerate(self.rows):
            most = float(most_remasking(self.process, row.time, row.next_time))
            if not 0 <= row.remask <= most + 1e-9:
                raise PlanError(f"row {k} masks too many tokens again", value=row.remask, hint=f"At most {most:.4g}.")

    @property
    def steps(self) -> int:
        """Calls of the network."""
        return len(self.rows)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, atomically."""
        document = {"fewstep_reveal_plan": SCHEMA, "name": self.name, "process": asdict(self.process)}
        write_json(path, {**document, "rows": [asdict(row) for row in self.rows]})

    @classmethod
    def load(cls, path: str | Path) -> RevealPlan:
        """The plan of a file.

        Raises:
            PlanError: it is none, of a newer schema, or its values are wrong.
        """
        document: Any = read_json(path)
        if not isinstance(document, dict) or "fewstep_reveal_plan" not in document:
            hint = "Write one with RevealPlan.save."
            raise PlanError("not a plan of reveals: the key fewstep_reveal_plan is missing", value=str(path), hint=hint)
        if document.pop("fewstep_reveal_plan") != SCHEMA:
            raise PlanError("this plan of reveals is of another schema", value=str(path), hint="Update fewstep.")
        try:
            return TypeAdapter(cls).validate_python(document)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise PlanError(f"{path}: {place}: {first['msg']}", value=first.get("input")) from error

    def __repr__(self) -> str:
        """The plan in one line."""
        return f"RevealPlan({self.name}, {self.steps} steps, {self.process.schedule})"

    def _repr_html_(self) -> str:
        """Its rows for notebooks."""
        names = ["time", "next_time", "order", "temperature", "remask"]
        rows = [[k, *(getattr(row, name) for name in names)] for k, row in enumerate(self.rows)]
        return html_table(["row", *names], rows, repr(self))


def reveal_plan(
    process: MaskedDiffusion,
    steps: int,
    *,
    order: Order = "independent",
    temperature: float = 1.0,
    remask: float = 0.0,
    bound: float = 0.1,
    times: tuple[float, ...] | None = None,
) -> RevealPlan:
    """A plan with the same rule in every step.

    Args:
        process: of the tokens.
        steps: calls of the network.
        order: as in `Reveal`; `independent` is the ancestral sampler of MDLM.
        temperature: of the tokens' law.
        remask: as a share of the most that each step allows (`rescaled` ReMDM), in [0, 1].
        bound: as in `Reveal`.
        times: where the steps begin, from 1 down; evenly spaced unless given.

    Raises:
        FewstepError: no steps, or a share of masking again outside of [0, 1].
        PlanError: times that do not fall.
    """
    if times is None:
        if steps < 1:
            raise FewstepError("a plan needs at least one step", value=steps)
        times = tuple(torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1].tolist())
    if not 0 <= remask <= 1:
        raise FewstepError("the share of masking again must lie in [0, 1]", value=remask, hint="0: never.")
    again = [remask * float(most_remasking(process, t, s)) for t, s in zip(times, (*times[1:], 0.0), strict=True)]
    rows = tuple(
        Reveal(t, s, temperature, order, share, bound)
        for t, s, share in zip(times, (*times[1:], 0.0), again, strict=True)
    )
    return RevealPlan(process, rows, order if not remask else "remasking")
