"""Block reconstruction (BRECQ, arXiv 2102.05426): roundings of all layers of a block are learned under its own output.

AdaRound judges each layer alone; inside a block an error of one layer can be made up for by the next. Blocks go in the
order in which they run, each fed with what the already reconstructed network gives it (as Q-Diffusion does,
arXiv 2302.04304), while the targets are those of the full-precision network.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError, nearest
from fewstep.quant.fake import FakeLayer, to_fake
from fewstep.quant.grids import StoredWeight
from fewstep.quant.layer import QuantLayer
from fewstep.quant.methods.adaround import limits, rectified_sigmoid, start
from fewstep.quant.modules import PRODUCTS

Run = Callable[[nn.Module], Any]
"""(network) -> anything; draws the calibration samples with this network in the place of the backbone."""
Call = tuple[tuple[Any, ...], dict[str, Any], Tensor]


@dataclass(frozen=True)
class BlockError:
    """Mean squared error of a block's output on the calibration calls, before and after; `kept`: after was better."""

    name: str
    before: float
    after: float

    @property
    def kept(self) -> bool:
        """Whether the learned roundings were taken."""
        return self.after < self.before


def reconstruct(
    full: nn.Module, low: nn.Module, run: Run, blocks: Sequence[str], *, calls: int = 16, steps: int = 200,
    rate: float = 0.05, pull: float = 0.01,
) -> tuple[BlockError, ...]:  # fmt: skip
    """Learn the roundings of a quantized model block by block, in place.

    Args:
        full: the full-precision model; low: its quantized copy (`quantize` or any method), which is changed.
        run: runs one of the two on equal calibration items and seeds, such as `lambda m: draw(m, prompts, seeds)`.
        blocks: names of submodules with a tensor (or a tuple that begins with one) as output, in running order.
        calls: calls of a block kept in memory; the first ones, so `run` should mix prompts and times early.
        steps, rate, pull: of the optimisation; pull is the weight of eq. 24 of AdaRound per weight.

    Layers whose codes have no neighbours (fp8, nf4) stay as they are. A block that does not get better stays too.

    Raises:
        FewstepError: no such block, one that `run` does not reach, or one without quantized integer layers.
    """
    done = []
    for name in blocks:
        original, block = _block(full, name), _block(low, name)
        layers = {n: m for n, m in block.named_modules() if isinstance(m, QuantLayer) and _uniform(m)}
        if not layers:
            raise FewstepError("the block has no layer with integer weights", value=name, hint="Leave it out.")
        with _recorded(block, calls) as seen:
            run(low)
        with _recorded(original, calls) as wanted:
            run(full)
        if not seen or len(seen) != len(wanted):
            raise FewstepError("the block was not called, or not equally often", value=name, hint="Check `run`.")
        pairs = [(args, kwargs, target) for (args, kwargs, _), (_, _, target) in zip(seen, wanted, strict=True)]
        done.append(_learn(name, block, original, layers, pairs, steps, rate, pull))
    return tuple(done)


def blocks_of(model: nn.Module, run: Run) -> list[str]:
    """Blocks of a quantized model that can be reconstructed, in the order in which `run` calls them.

    Blocks are what diffusers says not to split (the smallest such modules), or the elements of lists of modules.
    """
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    found = {n: m for n, m in model.named_modules() if n and type(m).__name__ in kinds}
    if not found:
        lists = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList)}
        outer = {n: m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)}
        found = {f"{n}.{k}": block for n, blocks in outer.items() for k, block in enumerate(blocks)}
    found = {n: m for n, m in found.items() if not any(other.startswith(f"{n}.") for other in found)}
    found = {n: m for n, m in found.items() if any(isinstance(x, QuantLayer) and _uniform(x) for x in m.modules())}
    order: dict[str, None] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: order.setdefault(name)

    with ExitStack() as stack, torch.no_grad():
        for name, block in found.items():
            stack.callback(block.register_forward_pre_hook(note(name)).remove)
        run(model)
    return list(order)


class _Soft(FakeLayer):
    """A twin whose weights lie between the two neighbouring codes; what is learned is how far up."""

    def __init__(self, layer: QuantLayer, weight: Tensor) -> None:
        super().__init__(layer, weight)
        grid = self.grid()
        spread = grid.columns(0, self.weight.flatten(1).shape[1], self.weight.flatten(1).shape[1], self.scheme)
        self.step = spread.scale.detach().float()
        self.shift = 0.0 if spread.zero is None else spread.zero.float()
        levels = (self.weight.detach().flatten(1) / self.step) + self.shift
        low, high = limits(self.scheme)
        # the codes that the layer has now are one of the two ends, so that other methods' choices are the start
        codes = layer.codes().float()
        self.floor = torch.where(levels >= codes, codes, codes - 1).clamp(low, high)
        rest = (levels - self.floor).clamp(0, 1)
        now = codes - self.floor
        self.v = nn.Parameter(start((0.5 * rest + 0.5 * now).clamp(0.02, 0.98)))
        self.low, self.high = low, high
        self.requires_grad_(False)
        self.v.requires_grad_(True)

    def rounded(self) -> Tensor:
        return (self.floor + (rectified_sigmoid(self.v.detach()) >= 0.5)).clamp(self.low, self.high).to(torch.int8)

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        soft = (self.floor + rectified_sigmoid(self.v)).clamp(self.low, self.high)
        return self.product(x, ((soft - self.shift) * self.step).view_as(self.weight), output_size)


def _learn(
    name: str, block: nn.Module, original: nn.Module, layers: Mapping[str, QuantLayer], pairs: Sequence[Call],
    steps: int, rate: float, pull: float,
) -> BlockError:  # fmt: skip
    before = _error(block, pairs)
    found = {n: m for n, m in original.named_modules() if isinstance(m, PRODUCTS)}
    weights = {n: cast("Tensor", m.weight).detach() for n, m in found.items()}
    twin = to_fake(copy.deepcopy(block), {n: w for n, w in weights.items() if n in layers}, kind=_kind).eval()
    twin.requires_grad_(False)
    soft = {n: m for n, m in twin.named_modules() if isinstance(m, _Soft)}
    for layer in soft.values():
        layer.v.requires_grad_(True)
    optimizer = torch.optim.Adam([layer.v for layer in soft.values()], lr=rate)
    unit = max(before, 1e-30)
    for step in range(steps):
        args, kwargs, target = pairs[step % len(pairs)]
        share = step / steps
        with torch.enable_grad():
            loss = (_first(twin(*args, **kwargs)) - target).square().mean() / unit
            if share > 0.2:
                beta = 2 + 18 * (1 - (share - 0.2) / 0.8)
                opening = [(1 - (2 * rectified_sigmoid(m.v) - 1).abs() ** beta).sum() for m in soft.values()]
                loss = loss + pull * torch.stack(opening).sum()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
    kept = {n: layers[n].stored() for n in soft}
    for n, layer in soft.items():
        layers[n].load(_with_codes(kept[n], layer.rounded()))
    after = _error(block, pairs)
    if after >= before:
        for n, stored in kept.items():
            layers[n].load(stored)
    return BlockError(name, before, after)


def _kind(layer: QuantLayer, weight: Tensor | None) -> FakeLayer:
    return FakeLayer(layer) if weight is None or not _uniform(layer) else _Soft(layer, weight)


def _with_codes(stored: StoredWeight, codes: Tensor) -> StoredWeight:
    return dataclasses.replace(stored, codes=codes)


def _uniform(layer: QuantLayer) -> bool:
    return layer.scheme.weight_format in ("int", "asym")


@torch.no_grad()
def _error(block: nn.Module, pairs: Sequence[Call]) -> float:
    errors = [
        (_first(block(*args, **kwargs)).float() - target.float()).square().mean() for args, kwargs, target in pairs
    ]
    return float(torch.stack(errors).mean())


@contextmanager
def _recorded(block: nn.Module, limit: int) -> Iterator[list[Call]]:
    """The first calls of a block: arguments and first output, detached."""
    found: list[Call] = []

    def keep(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        if len(found) < limit:
            found.append((_detached(args), _detached(kwargs), _first(result).detach().clone()))

    handle = block.register_forward_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            yield found
    finally:
        handle.remove()


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list):
        return type(value)(_detached(v) for v in value)
    if isinstance(value, Mapping):
        return {k: _detached(v) for k, v in value.items()}
    return value


def _first(result: Any) -> Tensor:
    found = result if isinstance(result, Tensor) else result[0]
    if not isinstance(found, Tensor):
        raise FewstepError("the block's output does not begin with a tensor", value=type(found).__name__)
    return found


def _block(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if name not in modules:
        raise FewstepError("no such block", value=name, hint=nearest(name, modules))
    return modules[name]
