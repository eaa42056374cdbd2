"""The executor: one loop that runs any plan."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoiser import Guided
from fewstep.errors import FewstepError, NonFiniteError, nearest
from fewstep.plan import Plan, Row
from fewstep.plan.combination import is_exactly
from fewstep.plan.history import History, ready_rows, refuse_misfit

Network = Callable[[Tensor, Tensor], Tensor]
"""(scaled state (B, ...), time as a 0-dim tensor) -> raw output (B, ...); conditions and guidance are already bound."""


@dataclass(frozen=True)
class SamplingProgress:
    """What a callback sees after each row: rows done, rows in all, and the new state (B, ...), not to be changed."""

    done: int
    steps: int
    state: Tensor


def generator_of(seed: int) -> torch.Generator:
    """The CPU generator of a seed.

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


def sample(
    plan: Plan,
    network: Network | Mapping[str, Network],
    *,
    seeds: Sequence[int],
    shape: Sequence[int],
    state: Tensor | None = None,
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
        anchor: the known y of residual-shifting processes, (B, *shape).
        dtype: arithmetic of the states; the network's output may have any other.
        callback: called after each row (progress, preview).

    Raises:
        NonFiniteError: the network returned NaN or infinity; the message names the row.
        PlanError: a tensor coefficient does not fit `shape`.
        FewstepError: a row names a network that is not given, or sets the guidance of one that has none; a seed that is
            no whole number of 64 bits.
    """
    networks = _network_of_each_row(plan.rows, network)
    refuse_misfit(plan, shape)
    noise = Noise(seeds)
    if state is None:
        state = noise.draw(shape) * plan.prior_scale + plan.prior_offset
    state = state.to(device=device, dtype=dtype)
    rows = ready_rows(plan, device, dtype)
    # one 0-dim tensor per row, made here: making it in the loop would copy from host to device each time
    width = torch.promote_types(dtype, torch.float32)
    times = plan.network_times.to(device=device, dtype=width).unbind()
    draws = [None if is_exactly(row.noise, 0.0) else noise.draw(shape).to(device=device, dtype=dtype) for row in rows]
    calls = list(zip(rows, networks, times, draws, strict=True))
    result = _run(History.of(plan, rows), calls, state, anchor, callback)
    # one look at the end, and a cheap one: any NaN or infinity spoils the sum; only a failure pays for finding the row
    if not math.isfinite(float(result.detach().sum(dtype=width))) and not bool(result.isfinite().all()):
        _run(History.of(plan, rows), calls, state, anchor, None, check=True)
        raise NonFiniteError("the final state is not finite", hint="Check the coefficients with `fewstep plan show`.")
    return result


def _run(
    history: History,
    calls: Sequence[tuple[Row, Network, Tensor, Tensor | None]],
    x: Tensor,
    anchor: Tensor | None,
    callback: Callable[[SamplingProgress], None] | None,
    *,
    check: bool = False,
) -> Tensor:
    """The states that one call per row leads to; `check` looks at every output, which waits for the device."""
    for k, (row, network, time, draw) in enumerate(calls):
        scaled = x if is_exactly(row.input_scale, 1.0) else x * row.input_scale
        raw = network(scaled, time)
        if check and not bool(raw.isfinite().all()):
            raise NonFiniteError(
                f"the network {row.network!r} returned NaN or infinity in row {k} (time {float(row.time):g})",
                hint="Check its weights and dtype (float16 overflows; try bfloat16 or float32).",
            )
        x = history.advance(k, x, raw, draw, anchor)
        if callback is not None:
            callback(SamplingProgress(k + 1, len(calls), x))
    return x


def _network_of_each_row(rows: Sequence[Row], network: Network | Mapping[str, Network]) -> list[Network]:
    networks: Mapping[str, Network] = network if isinstance(network, Mapping) else {"main": network}
    for k, row in enumerate(rows):
        if row.network not in networks:
            hint = nearest(row.network, networks)
            raise FewstepError(f"row {k} runs a network that was not given", value=row.network, hint=hint)
    return [_at_scale(networks[row.network], row.guidance, k) for k, row in enumerate(rows)]


def _at_scale(network: Network, guidance: float | None, k: int) -> Network:
    """The network at the guidance scale that row k asks for."""
    if guidance is None:
        return network
    if not isinstance(network, Guided):
        hint = "Wrap the network in `fewstep.denoiser.Guided`."
        raise FewstepError(f"row {k} sets the guidance, which its network does not know", value=guidance, hint=hint)
    return dataclasses.replace(network, scale=guidance)
