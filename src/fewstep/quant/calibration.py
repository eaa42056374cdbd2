"""What layers see when the model draws its own pictures: conditions times the plan's own times, collected once.

Statistics are sums over a stream of inputs, so memory does not grow with the number of pictures; second moments of wide
layers can go to disk, a few layers per pass over the same seeds.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import FewstepError, NonFiniteError
from fewstep.files import check_free, read_json, read_tensors, write_json, write_tensors
from fewstep.quant.modules import PRODUCTS
from fewstep.quant.patches import dimensions, moments_shape, patches
from fewstep.quant.statistics import LayerStatistics, ranges_of
from fewstep.quant.wrappers import check_unwrapped

RECORD = "calibration.json"
VERSION = 2
Run = Callable[[Sequence[Any], Sequence[int]], Any]
"""(conditions, seeds of one batch) -> anything; must run the model with the plan it will be used with."""


@dataclass(frozen=True)
class Calibration:
    """Statistics by layer name, and what they were collected from."""

    layers: Mapping[str, LayerStatistics]
    conditions: int
    seeds: tuple[int, ...]
    calls: int
    times: tuple[float, ...] = ()
    """Distinct network times at which the model was called, falling."""
    ranges: str = "max"
    """How ranges were taken; see `calibrate`."""

    def get(self, name: str) -> LayerStatistics | None:
        """Statistics of a layer; None if no call reached it."""
        return self.layers.get(name)

    @classmethod
    def load(cls, folder: str | Path) -> Calibration:
        """Read what `calibrate(..., folder=...)` wrote; tensors are read when a layer is asked for.

        Raises:
            FewstepError: absent, half-written or of a newer version.
        """
        record = read_json(Path(folder) / RECORD)
        if not isinstance(record, dict) or record.get("version") != VERSION:
            hint = "Calibrate again, or update fewstep."
            raise FewstepError("not a calibration of this version", value=str(folder), hint=hint)
        layers = _Folder(Path(folder), tuple(record["layers"]))
        rest = tuple(record["seeds"]), record["calls"], tuple(record["times"]), record["ranges"]
        return cls(layers, record["conditions"], *rest)


def calibrate(
    model: nn.Module,
    run: Run,
    conditions: Sequence[Any],
    seeds: Sequence[int],
    *,
    batch: int = 8,
    second: bool = True,
    rows: int = 512,
    sample: int = 64,
    ranges: str = "max",
    limit: float = 2e9,
    folder: str | Path | None = None,
) -> Calibration:
    """Run the model on conditions with their seeds and collect statistics of all inputs of its products.

    Args:
        run: draws one batch with the plan to be used, such as `lambda c, s: generator(plan, c, s, "latent")`.
        second: collect second moments (GPTQ, AdaRound; SmoothQuant and static scales do without).
        rows: at most so many tokens or patches of one sample and call enter the second moments, drawn at random.
        sample: rows kept per layer.
        ranges: of static activations and smoothing. `max`: all that was seen. `ema:0.95`: extremes of the calls,
            averaged with weight 0.95 on what was before (ViDiT-Q, arXiv 2406.02540). `percentile:99.9`: of the sampled
            values.
        limit: bytes that second moments may take at once. With `folder` layers are done in several passes of that
            size and written there; without, more than this is an error.

    Raises:
        FewstepError: unknown `ranges`, no conditions, not one seed per condition, no layer reached, more memory than
            `limit`, or a compiled or wrapped model (`fewstep.quant.wrappers`).
        NonFiniteError: a layer's input holds NaN or infinity; the message names the layer.
    """
    _check_items(conditions, seeds)
    check_unwrapped(model)
    if folder is not None:
        check_free(Path(folder) / RECORD, overwrite=True)
    momentum, percentile = ranges_of(ranges)
    passes = _passes(model, second, limit, folder is not None)
    calls, names, times = 0, list[str](), dict[float, None]()
    done: dict[str, LayerStatistics] = {}
    for layers in passes:
        collectors = {
            name: _Collector(name, layer, second, rows, sample, momentum, percentile) for name, layer in layers.items()
        }
        calls = _one_pass(model, run, collectors, conditions, seeds, batch, times)
        found = {name: c.statistics() for name, c in collectors.items() if c.seen}
        names += found
        if folder is None:
            done |= found
            continue
        for name, statistics in found.items():
            _write_layer(Path(folder), name, statistics)
    if not names:
        raise FewstepError(
            "no Linear or convolution was called during calibration", hint="Let `run` call this very model."
        )
    seen = tuple(map(int, seeds)), calls, tuple(sorted(times, reverse=True))
    result = Calibration(done, len(conditions), *seen, ranges)
    return result if folder is None else _written(result, names, Path(folder))


def _check_items(conditions: Sequence[Any], seeds: Sequence[int]) -> None:
    if not len(conditions) or len(conditions) != len(seeds):
        raise FewstepError(
            "calibration needs conditions and one seed for each", value=(len(conditions), len(seeds)),
            hint="Give at least one prompt or label, and as many seeds.",
        )  # fmt: skip


def _written(calibration: Calibration, names: Sequence[str], folder: Path) -> Calibration:
    """The calibration whose layers lie in a folder already, with its record there."""
    record = {f.name: getattr(calibration, f.name) for f in dataclasses.fields(calibration)}
    write_json(folder / RECORD, {"fewstep_calibration": VERSION, **record, "layers": names, "version": VERSION})
    return Calibration.load(folder)


class _Collector:
    """Running sums of one layer; one random stream per layer, so that the choice of rows does not depend on others."""

    def __init__(
        self, name: str, layer: nn.Module, second: bool, rows: int, sample: int, momentum: float, percentile: float
    ) -> None:
        self.momentum, self.percentile = momentum, percentile
        self.name, self.layer, self.rows, self.keep = name, layer, rows, sample
        self.generator = torch.Generator().manual_seed(0)
        self.groups, width = moments_shape(layer)
        self.second = torch.zeros(self.groups, width, width) if second else None
        self.ends: tuple[Tensor, Tensor] | None = None
        self.seen, self.taken = 0, 0
        self.sample, self.keys = torch.empty(0, self.groups * width), torch.empty(0)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        x = (inputs[0] if inputs else named["input"]).detach()
        if not x.numel():
            return
        size = dimensions(self.layer)
        dims = [d for d in range(x.ndim) if d != x.ndim - 1 - size]
        ends = (x.amin(dims), x.amax(dims)) if dims else (x, x)
        ends = ends[0].float().cpu(), ends[1].float().cpu()
        if not all(bool(end.isfinite().all()) for end in ends):
            hint = "Check the weights, the prompts and the dtype (float16 overflows)."
            raise NonFiniteError(f"the input of layer {self.name!r} holds NaN or infinity", hint=hint)
        self.ends = self._merged(ends)
        self.seen += 1
        # one sample at a time: patches of a whole batch would not fit
        for one in x if size and x.ndim == size + 2 else [x]:
            for rows in patches(self.layer, one):
                self._take(rows)

    def _merged(self, ends: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if self.ends is None:
            return ends
        if self.momentum:
            low, high = (torch.lerp(new, old, self.momentum) for old, new in zip(self.ends, ends, strict=True))
            return low, high
        return torch.minimum(self.ends[0], ends[0]), torch.maximum(self.ends[1], ends[1])

    def _take(self, rows: Tensor) -> None:
        if len(rows) > self.rows:
            rows = rows[torch.randperm(len(rows), generator=self.generator)[: self.rows].to(rows.device)]
        if self.second is not None:
            parts = rows.view(len(rows), self.groups, -1).transpose(0, 1)
            self.second += (parts.mT @ parts).cpu()
        self.taken += len(rows)
        # every row of the stream draws a key and the smallest stay: an even draw without knowing the length
        keys = torch.cat([self.keys, torch.rand(len(rows), generator=self.generator)])
        order = keys.argsort()[: self.keep]
        self.sample = torch.cat([self.sample, rows.cpu()])[order]
        self.keys = keys[order]

    def statistics(self) -> LayerStatistics:
        low, high = (torch.empty(0), torch.empty(0)) if self.ends is None else self.ends
        second = None if self.second is None else self.second / max(self.taken, 1)
        largest = torch.maximum(high, -low)
        return LayerStatistics(self.taken, largest, self.sample, second, low, high, self.percentile)


class _Folder(Mapping[str, LayerStatistics]):
    """Layers on disk, read one at a time."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder, self.names = folder, names

    def __getitem__(self, name: str) -> LayerStatistics:
        if name not in self.names:
            raise KeyError(name)
        tensors = read_tensors(_file(self.folder, name))
        ends = tensors["lowest"], tensors["highest"], float(tensors["percentile"])
        return LayerStatistics(
            int(tensors["rows"]), tensors["largest"], tensors["sample"], tensors.get("second"), *ends
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _passes(model: nn.Module, second: bool, limit: float, on_disk: bool) -> list[dict[str, nn.Module]]:
    """Layers whose second moments fit in memory together."""
    passes: list[dict[str, nn.Module]] = [{}]
    size = 0.0
    for name, layer in model.named_modules():
        if type(layer) not in PRODUCTS:
            continue
        groups, width = moments_shape(layer)
        own = 4 * groups * width * width if second else 0
        if size + own > limit and passes[-1]:
            if not on_disk:
                raise FewstepError(
                    "second moments of all layers need more memory than the limit",
                    value=f"{limit / 1e9:g} GB",
                    hint="Pass folder=... (several passes, kept on disk), a higher limit, or second=False.",
                )
            passes.append({})
            size = 0.0
        passes[-1][name] = layer
        size += own
    return passes


@torch.no_grad()
def _one_pass(
    model: nn.Module, run: Run, collectors: Mapping[str, _Collector], conditions: Sequence[Any], seeds: Sequence[int],
    batch: int, times: dict[float, None],
) -> int:  # fmt: skip
    count = [0]
    signature = inspect.signature(model.forward)

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        count[0] += 1
        given = signature.bind_partial(*args, **kwargs).arguments
        for key in ("timestep", "timesteps", "t", "time"):
            if key in given:
                value = given[key]
                times.update(dict.fromkeys(value.flatten().tolist() if isinstance(value, Tensor) else [float(value)]))

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(note, with_kwargs=True).remove)
        for collector in collectors.values():
            stack.callback(collector.layer.register_forward_pre_hook(collector, with_kwargs=True).remove)
        for i in range(0, len(conditions), batch):
            run(conditions[i : i + batch], seeds[i : i + batch])
    return count[0]


def _write_layer(folder: Path, name: str, statistics: LayerStatistics) -> None:
    tensors = {
        "rows": torch.tensor(statistics.rows),
        "percentile": torch.tensor(statistics.percentile, dtype=torch.float64),
    }
    for key in ("largest", "sample", "second", "lowest", "highest"):
        value = getattr(statistics, key)
        if value is not None:
            tensors[key] = value
    write_tensors(_file(folder, name), tensors)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
