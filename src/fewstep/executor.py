"""The executor: one loop that runs any plan."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fewstep.denoiser import Guided
from fewstep.errors import FewstepError, NonFiniteError, PlanError, nearest
from fewstep.plan import Plan, Row
from fewstep.plan.combination import is_exactly
from fewstep.plan.history import History, RunState, ready_rows, refuse_misfit
from fewstep.transition import Transition

Network = Callable[[Tensor, Tensor], Tensor]
"""(scaled state (B, ...), time as a 0-dim tensor) -> raw output (B, ...); conditions and guidance are already bound."""


@dataclass(frozen=True)
class SamplingProgress:
    """What a callback sees after each row: rows done, rows in all, and the new state (B, ...), not to be changed."""

    done: int
    steps: int
    state: Tensor
    _kept: Callable[[int, Tensor], RunState] = field(repr=False)

    @property
    def run_state(self) -> RunState:
        """All that `sample(plan, ..., start=...)` needs to go on from here; holds tensors, so keep few of them."""
        return self._kept(self.done, self.state)


def generator_of(seed: int) -> torch.Generator:
    """The CPU generator of a seed, of which torch reads the last 32 bits alone: 7 and 2**32 + 7 are one stream.

    Raises:
        FewstepError: not a whole number, or one that does not fit into 64 bits.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = None
    if number is None or not -(2**63) <= number < 2**64:
        raise FewstepError("a seed must be a whole number of at most 64 bits", value=seed, hint="Use 0, 1, 2, ...")
    return torch.Generator().manual_seed(number)


class Noise:
    """One random stream per sample: sample i draws the same numbers in any batch.

    The streams live on the CPU, so that a seed means the same image on every device; they are those of a list of
    `torch.Generator` handed to a diffusers pipeline.
    """

    def __init__(self, seeds: Iterable[int]) -> None:
        self.generators = [generator_of(seed) for seed in seeds]

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers (B, *shape), float32, each sample from its own stream."""
        if not self.generators:
            return torch.empty(0, *shape)
        return torch.stack([torch.randn(tuple(shape), generator=g) for g in self.generators])

    def seeds(self) -> list[int]:
        """A seed per sample for a run of its own, drawn from its stream: noise that was drawn here does not recur."""
        return [int(torch.randint(2**62, (), generator=g)) for g in self.generators]


def sample(
    plan: Plan,
    network: Network | Mapping[str, Network],
    *,
    seeds: Sequence[int],
    shape: Sequence[int],
    state: Tensor | None = None,
    start: RunState | None = None,
    until: int | None = None,
    anchor: Tensor | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    callback: Callable[[SamplingProgress], None] | None = None,
) -> Tensor:
    """Run a plan and return the final states (B, *shape).

    All random numbers are drawn before the loop (first state, then the noise of the stochastic rows in order), so that
    nothing in the loop waits for the device. Gradients flow if the caller has them enabled.

    Args:
        plan: the sampler. Its coefficients may require gradients.
        network: raw-output network, or a mapping if the plan's rows name several.
        seeds: one per sample; B = len(seeds).
        shape: shape of one sample.
        state: first states (B, *shape), instead of noise times `plan.prior_scale` plus `plan.prior_offset`.
        start: early states, instead of the first ones: the run begins at the row of the last of them. The network is
            asked at earlier ones whose output a later row reads, unless that output is given too. A start that a
            callback noted (`SamplingProgress.run_state`) continues as the whole run, with the same seeds.
        until: end before this row, with the states there; after the last row unless given.
        anchor: the known y of residual-shifting processes, (B, *shape).
        dtype: arithmetic of the states; the network's output may have any other.
        callback: called after each row (progress, preview).

    Raises:
        NonFiniteError: the network returned NaN or infinity; the message names the row.
        PlanError: a tensor coefficient does not fit `shape`; a start lacks what a later row reads, has states of
            another shape or lies outside the plan; no row is left to run.
        FewstepError: a row names a network that is not given, or sets the guidance of one that has none; a seed that is
            no whole number of 64 bits; both `state` and `start`.
    """
    networks = _network_of_each_row(plan.rows, network)
    refuse_misfit(plan, shape)
    noise = Noise(seeds)
    if start is None:
        first = noise.draw(shape) * plan.prior_scale + plan.prior_offset if state is None else state
        start = RunState({0: first}, drawn=int(state is None))
    elif state is not None:
        raise FewstepError("a run begins with `state` or with `start`, not with both", hint="Leave one of them out.")
    else:
        _check_start(plan, start, (len(seeds), *shape))
        for _ in range(start.drawn):
            noise.draw(shape)
    rows = ready_rows(plan, device, dtype)
    start, last = start.to(device, dtype), _last(plan, start, until)
    # one 0-dim tensor per row, made here: making it in the loop would copy from host to device each time
    width = torch.promote_types(dtype, torch.float32)
    times = plan.network_times.to(device=device, dtype=width).unbind()
    draws: list[Tensor | None] = [None] * plan.steps
    for k in range(start.row, last):  # earlier rows have drawn theirs
        if not is_exactly(rows[k].noise, 0.0):
            draws[k] = noise.draw(shape).to(device=device, dtype=dtype)
    calls = list(zip(rows, networks, times, draws, strict=True))[:last]
    result = _run(History.of(plan, rows), calls, start, anchor, callback)
    # one look at the end, and a cheap one: any NaN or infinity spoils the sum; only a failure pays for finding the row
    if not math.isfinite(float(result.detach().sum(dtype=width))) and not bool(result.isfinite().all()):
        _run(History.of(plan, rows), calls, start, anchor, None, check=True)
        raise NonFiniteError("the final state is not finite", hint="Check the coefficients with `fewstep plan show`.")
    return result


def _run(
    history: History,
    calls: Sequence[tuple[Row, Network, Tensor, Tensor | None]],
    start: RunState,
    anchor: Tensor | None,
    callback: Callable[[SamplingProgress], None] | None,
    *,
    check: bool = False,
) -> Tensor:
    """The states that the calls from `start` on lead to; `check` looks at every output, which waits for the device."""

    def ask(k: int, x: Tensor) -> Tensor:
        row, network, time, _ = calls[k]
        raw = network(x * row.input_scale, time)
        return _finite(raw, k, row) if check else raw

    history.resume(start, ask)
    x, drawn = start.states[start.row], start.drawn
    for k, (row, network, time, draw) in enumerate(calls[start.row :], start.row):
        scaled = x if is_exactly(row.input_scale, 1.0) else x * row.input_scale
        raw = network(scaled, time)
        if check:
            _finite(raw, k, row)
        x = history.advance(k, x, raw, draw, anchor)
        if callback is not None:
            drawn += draw is not None
            callback(SamplingProgress(k + 1, len(calls), x, partial(history.run_state, drawn)))
    return x


def step_laws(
    plan: Plan, states: Sequence[Tensor], outputs: Sequence[Tensor], anchor: Tensor | None = None
) -> dict[int, Transition]:
    """The law of the next state in each stochastic row, given the states and raw outputs up to it: {row: law}.

    `laws[k].log_prob(states[k + 1], "sum")` is the log density of what was drawn. Rows without noise, such as the last
    of most samplers, have none and are left out.

    Args:
        plan: the sampler.
        states: x_0..x_K (B, ...).
        outputs: n_0..n_{K-1} (B, ...); gradients flow from the means to them.
        anchor: as in `sample`.
    """
    rows = ready_rows(plan, states[0].device, states[0].dtype)
    history, laws = History.of(plan, rows), dict[int, Transition]()
    for k, (row, x, raw) in enumerate(zip(rows, states, outputs, strict=False)):
        mean = history.advance(k, x, raw, None, anchor)
        if not is_exactly(row.noise, 0.0):
            laws[k] = Transition(mean, torch.as_tensor(row.noise, dtype=mean.dtype, device=mean.device))
    return laws


def _finite(raw: Tensor, k: int, row: Row) -> Tensor:
    if not bool(raw.isfinite().all()):
        raise NonFiniteError(
            f"the network {row.network!r} returned NaN or infinity in row {k} (time {float(row.time):g})",
            hint="Check its weights and dtype (float16 overflows; try bfloat16 or float32).",
        )
    return raw


def _network_of_each_row(rows: Sequence[Row], network: Network | Mapping[str, Network]) -> list[Network]:
    networks: Mapping[str, Network] = network if isinstance(network, Mapping) else {"main": network}
    for k, row in enumerate(rows):
        if row.network not in networks:
            hint = nearest(row.network, networks)
            raise FewstepError(f"row {k} runs a network that was not given", value=row.network, hint=hint)
    return [_at_scale(networks[row.network], row.guidance, k) for k, row in enumerate(rows)]


def _check_start(plan: Plan, start: RunState, shape: tuple[int, ...]) -> None:
    if not 0 <= start.row < plan.steps or min(start.states) < 0:
        raise PlanError(f"the plan has rows 0 to {plan.steps - 1} to start at", value=start.row)
    for kind, kept in (("state", start.states), ("output", start.outputs)):
        for j, x in kept.items():
            if x.shape != shape:
                hint = f"Give one per seed, {shape}."
                raise PlanError(f"the {kind} of row {j} has another shape", value=tuple(x.shape), hint=hint)


def _last(plan: Plan, start: RunState, until: int | None) -> int:
    last = plan.steps if until is None else until
    if not start.row < last <= plan.steps:
        hint = f"Give `until` from {start.row + 1} to {plan.steps}."
        raise PlanError("no row is left to run", value=until, hint=hint)
    return last


def _at_scale(network: Network, guidance: float | None, k: int) -> Network:
    """The network at the guidance scale that row k asks for."""
    if guidance is None:
        return network
    if not isinstance(network, Guided):
        hint = "Wrap the network in `fewstep.denoiser.Guided`."
        raise FewstepError(f"row {k} sets the guidance, which its network does not know", value=guidance, hint=hint)
    return dataclasses.replace(network, scale=guidance)
