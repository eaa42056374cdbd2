"""What quantization does to the network's output, row by row, and corrections of it that cost nothing at run time.

Both fold into the plan: PTQD divides out the correlated part and takes the rest from the sampler's own noise
(arXiv 2305.10657); StepbaQ reads the error as noise that the state already carries, steps back to the time of that
noise, and goes on with a longer step. Run either before Q-Sched, which then searches around it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import FewstepError, PlanError
from fewstep.executor import Network, sample
from fewstep.plan import Coefficient, Plan, Row, data_of, noise_of
from fewstep.process import Process

LEAST_SLOPE = -0.5
"""A correction divides by 1 + slope: at the least slope an output is doubled, and its residual with it."""


@dataclass(frozen=True, eq=False)
class OutputError:
    """Error e = q - F of the low-bit output q against the full-precision F in one row, on equal inputs.

    mean: channel mean of e, shaped to broadcast on one sample.  variance: of e around it.
    slope, bias, residual: e = slope F + bias + r, with the channel mean `bias` and the variance `residual` of r; the
        slope is fitted within channels, so that a bias does not count as slope.
    """

    mean: Tensor
    variance: float
    slope: float
    bias: Tensor
    residual: float


def output_errors(
    plan: Plan, full: Network, low: Network, *, seeds: Sequence[int], shape: Sequence[int], batch: int = 8,
    channels: int = 0,
) -> tuple[OutputError, ...]:  # fmt: skip
    """Run the plan with the low-bit network and compare both networks on every state that it meets.

    Args:
        full, low: networks with conditions of `batch` samples bound; called with batches of at most that many.
        channels: dimension of one sample that holds channels (0 for (C, H, W), -1 for packed tokens).

    Raises:
        FewstepError: no seeds, or a plan whose rows name other networks than "main".
    """
    if not seeds:
        raise FewstepError("output errors need seeds", hint="Give at least one; 32 or more make the means reliable.")
    if any(row.network != "main" for row in plan.rows):
        raise FewstepError("output errors are measured for plans of one network", hint="Use rows of network 'main'.")
    sums: list[dict[str, Tensor]] = [{} for _ in plan.rows]
    for i in range(0, len(seeds), batch):
        rows = iter(sums)

        def both(x: Tensor, time: Tensor, rows: Iterator[dict[str, Tensor]] = rows) -> Tensor:
            q, known = low(x, time), next(rows)
            for name, value in _moments(full(x, time), q, channels).items():
                known[name] = known[name] + value if name in known else value
            return q

        with torch.no_grad():
            sample(plan, both, seeds=seeds[i : i + batch], shape=shape)
    return tuple(map(_error, sums))


def compare(full: Tensor, low: Tensor, *, channels: int = 0) -> tuple[OutputError, ...]:
    """Errors of outputs (rows, samples, ...) that both networks gave on equal states, row by row.

    channels: dimension of one sample that holds channels, as in `output_errors`.

    Raises:
        FewstepError: the shapes differ, or there are no samples.
    """
    if full.shape != low.shape or full.ndim < 3 or not full.numel():
        shapes = tuple(full.shape), tuple(low.shape)
        raise FewstepError("outputs to compare need equal shapes (rows, samples, ...)", value=shapes)
    return tuple(_error(_moments(truth, output, channels)) for truth, output in zip(full, low, strict=True))


def ptqd(plan: Plan, errors: Sequence[OutputError], *, rising_only: bool = True) -> Plan:
    """The plan with n_k -> (n_k - bias_k) / (1 + slope_k), and the residual's variance taken from each row's noise.

    A row's noise cannot get negative: what the residual adds beyond it stays (deterministic rows keep all of it).

    Args:
        errors: one per row, from `output_errors`.
        rising_only: take negative slopes as 0, as the authors' code does; False corrects them too.

    Raises:
        PlanError: not one error per row, a negative slope below `LEAST_SLOPE` to be corrected, or a row with a hook.
    """
    _check(plan, errors)
    slopes = [max(e.slope, 0.0) if rising_only else e.slope for e in errors]
    if min(slopes) < LEAST_SLOPE:
        what = "quantization lost more than half of an output: what is left would be amplified with its error"
        raise PlanError(what, value=min(slopes), hint="Use more bits, or rising_only=True.")
    rows = []
    for row in plan.rows:
        scaled: dict[int, Coefficient] = {j: c / (1 + slopes[j]) for j, c in row.output.items()}
        offset, added = row.offset, 0.0
        for j, c in scaled.items():
            offset = offset - c * errors[j].bias
            added += _square(c) * errors[j].residual
        rows.append(dataclasses.replace(row, output=scaled, offset=offset, noise=_less(row.noise, added)))
    for k, slope in enumerate(slopes):
        rows[k] = dataclasses.replace(rows[k], output_scale=rows[k].output_scale / (1 + slope))
    return plan.replace(rows=tuple(rows), origin={**plan.origin, "correction": "ptqd"})


def stepbaq(plan: Plan, errors: Sequence[OutputError], process: Process) -> Plan:
    """The plan whose rows start at the noise level that their states really have.

    After row k the state carries output[k]^2 variance_k of noise beyond sigma_{k+1}, and a mean that is subtracted. So
    row k+1 asks the network at the time t' with sigma(t') / alpha(t') = sqrt(sigma^2 + that) / alpha, and its step to
    the next level is as long as it has to be: the weights of data and noise in the row are kept, those in state and
    output follow from t'.

    It pays when steps are short beside the noise level; at four steps the longer steps can cost more than they repair,
    so compare before use.

    Raises:
        PlanError: not one error per row, a row that reads earlier states or outputs (multistep), one with a non-linear
            hook, or one that is not on this process.
    """
    _check(plan, errors)
    rows = []
    extra = 0.0
    for k, row in enumerate(plan.rows):
        if set(row.output) - {k} or set(row.state) - {k}:
            raise PlanError(f"row {k} is of a multistep sampler", hint="Use StepbaQ with single-step plans, or ptqd.")
        moved = _stepped_back(row, k, extra, plan, process) if extra > 0 else row
        coefficient = moved.output.get(k, 0.0)
        rows.append(dataclasses.replace(moved, offset=moved.offset - coefficient * errors[k].mean))
        extra = _square(coefficient) * errors[k].variance
    return plan.replace(rows=tuple(rows), origin={**plan.origin, "correction": "stepbaq"})


def _stepped_back(row: Row, k: int, extra: float, plan: Plan, process: Process) -> Row:
    alpha, sigma = float(row.alpha), float(row.sigma)
    if not math.isclose(_input_scale(float(row.time), alpha, plan, process), float(row.input_scale), rel_tol=1e-3):
        hint = "Pass the process that the plan was made for (`fewstep.pipelines.process_of`)."
        raise PlanError(f"row {k} is not on this process", value=row.input_scale, hint=hint)
    noisy = math.sqrt(sigma**2 + extra)
    time = min(process.time(math.log(alpha / noisy)), process.noisiest)
    at = dataclasses.replace(
        row, time=time, network_time=process.network_time(time), sigma=noisy,
        input_scale=_input_scale(time, alpha, plan, process),
    )  # fmt: skip
    data, noise = data_of(row, k, plan.prediction), noise_of(row, k, plan.prediction)
    # state[k] x + output[k] n = d data + e noise, solved at the old level and written out at the new one
    a, b = row.state.get(k, 0.0), row.output.get(k, 0.0)
    determinant = data.state[k] * noise.output[k] - noise.state[k] * data.output[k]
    d = (a * noise.output[k] - b * noise.state[k]) / determinant
    e = (b * data.state[k] - a * data.output[k]) / determinant
    step = d * data_of(at, k, plan.prediction) + e * noise_of(at, k, plan.prediction)
    return dataclasses.replace(at, state=step.state, output=step.output)


def _input_scale(time: float, alpha: float, plan: Plan, process: Process) -> float:
    """What brings a state of signal scale `alpha` to the network's own scale at this time."""
    own = process.alpha(time)
    return own / alpha * plan.prediction.input_scale(own, process.sigma(time))


def _check(plan: Plan, errors: Sequence[OutputError]) -> None:
    if len(errors) != plan.steps:
        raise PlanError("one measured error per row is needed", value=len(errors), hint="Measure with this plan.")
    for k, row in enumerate(plan.rows):
        if row.hook:
            raise PlanError(f"row {k} clips its data estimate: no linear correction passes through", value=row.hook)


def _square(value: Coefficient) -> float:
    return float((value.double() ** 2).mean()) if isinstance(value, Tensor) else value**2


def _less(noise: Coefficient, variance: float) -> Coefficient:
    if isinstance(noise, Tensor):
        return (noise.double() ** 2 - variance).clamp(min=0).sqrt()
    return math.sqrt(max(noise**2 - variance, 0.0))


def _moments(full: Tensor, low: Tensor, channels: int) -> dict[str, Tensor]:
    """Sums of one row's outputs (B, ...) by channel, in float64, and how many numbers each of them adds up."""
    f, e = full.double().cpu(), (low - full).double().cpu()
    axis = channels % (f.ndim - 1) + 1
    dims = [d for d in range(f.ndim) if d != axis]
    sums = {
        name: (f**i * e**j).sum(dims, keepdim=True)[0]
        for name, (i, j) in {"f": (1, 0), "e": (0, 1), "ff": (2, 0), "fe": (1, 1), "ee": (0, 2)}.items()
    }
    return {**sums, "each": torch.tensor(f.numel() / f.shape[axis], dtype=torch.float64)}


def _error(sums: Mapping[str, Tensor]) -> OutputError:
    """What the moments of a row say, summed over batches."""
    f, e, ff, fe, ee = (sums[name] / sums["each"] for name in ("f", "e", "ff", "fe", "ee"))
    # within channels: pooled, channel means of F and e that happen to go together would count as slope
    covariance, spread = (fe - f * e).mean(), (ff - f * f).mean()
    slope = float(covariance / spread) if float(spread) > 0 else 0.0
    bias = e - slope * f
    second = (ee - 2 * slope * fe + slope**2 * ff).mean()
    residual = float(second - bias.square().mean())
    variance = float(ee.mean() - e.square().mean())
    return OutputError(e, max(variance, 0.0), slope, bias, max(residual, 0.0))
