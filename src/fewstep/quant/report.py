"""What quantization did to every layer, and the bytes before and after, measured on the tensors themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fewstep.quant.modules import KINDS
from fewstep.shown import html_table, text_table

if TYPE_CHECKING:
    from rich.table import Table


_COLUMNS = ("layer", "kind", "shape", "bits", "kernel", "before", "after", "reason")


@dataclass(frozen=True)
class LayerReport:
    """One layer: `weights` counts its weight without bias; `bits` is a scheme, or the width of a kept float type."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    bits: str
    kernel: str
    bytes_before: int
    bytes_after: int
    reason: str = ""
    quantized: bool = False


@dataclass(frozen=True)
class QuantReport:
    """All layers of a model that hold parameters, quantized or kept, each with the reason.

    Attributes:
        disk_before, disk_after: Bytes of the tensors that a checkpoint holds (in the types the model had and has).
        resident_before, resident_after: Bytes of all storages in memory; inner tensors of tensor subclasses counted,
            shared ones once.
        bits_per_weight: Stored bits, scales included, per weight of the quantized layers, embeddings left out.
        coverage: Fraction of the model's parameters that are weights stored as integers.
        unmatched: Roles (first, last, conditioning) whose rule found no layer: none got more bits than the scheme for
            it.
    """

    scheme: str
    backend: str
    rows: tuple[LayerReport, ...]
    parameters: int
    disk_before: int
    disk_after: int
    resident_before: int
    resident_after: int
    bits_per_weight: float
    unmatched: tuple[str, ...] = ()

    @property
    def coverage(self) -> float:
        """Fraction of the model's parameters that are weights stored as integers."""
        return sum(row.weights for row in self.rows if row.quantized) / max(self.parameters, 1)

    @property
    def skipped(self) -> tuple[LayerReport, ...]:
        """Layers that have a low-bit form and were kept, and why."""
        return tuple(row for row in self.rows if row.kind in KINDS and not row.quantized)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-ready values."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "coverage": self.coverage}

    def summary(self) -> str:
        """One sentence with the totals."""
        return (
            f"{self.scheme}: {self.coverage:.1%} of {self.parameters:,} parameters in {self.bits_per_weight:.2f} bits "
            f"each (scales included); {_size(self.resident_before)} -> {_size(self.resident_after)} in memory, "
            f"{_size(self.disk_before)} -> {_size(self.disk_after)} on disk; "
            f"{len(self.skipped)} layers kept in float.{self._advice()}"
        )

    def _advice(self) -> str:
        if not self.unmatched:
            return ""
        which = " and ".join(self.unmatched)
        return (
            f" No {which} layer was found by its name: pass example=(args, kwargs) of one call to find it by tracing."
        )

    def __repr__(self) -> str:
        """The totals, and a line for every treatment that layers got; `print` shows the layers themselves."""
        sizes = f"{_size(self.resident_before)} -> {_size(self.resident_after)} in memory"
        whole = f"{self.scheme}: {self.coverage:.1%} of {self.parameters:,} parameters, {self.bits_per_weight:.2f} bits"
        groups: dict[tuple[str, str, str], list[LayerReport]] = {}
        for row in self.rows:
            groups.setdefault((row.bits, row.kernel, row.reason), []).append(row)
        lines = []
        for (bits, kernel, reason), group in groups.items():
            before, after = (_size(sum(getattr(r, name) for r in group)) for name in ("bytes_before", "bytes_after"))
            lines.append([bits, str(len(group)), before, after, kernel, reason])
        table = text_table(["bits", "layers", "before", "after", "kernel", "reason"], lines)
        return f"QuantReport({whole}; {sizes})\n{table}"

    def _repr_html_(self) -> str:
        """The layers for notebooks, repeated blocks in one line."""
        return html_table(_COLUMNS, self._lines(full=False), self.summary())

    def __str__(self) -> str:
        """The table as text, so that `print(quantize(...))` shows it."""
        from rich.console import Console

        console = Console(width=160, highlight=False, color_system=None)
        with console.capture() as shown:
            console.print(self.table())
        return shown.get()

    def table(self, full: bool = False) -> Table:
        """A rich table; repeated blocks share one line (numbers in names become `*`) unless `full`."""
        from rich.table import Table

        table = Table(title=self.summary(), title_justify="left")
        for column in _COLUMNS:
            table.add_column(column, justify="right" if column in ("before", "after") else "left")
        for line in self._lines(full):
            table.add_row(*line)
        return table

    def _lines(self, full: bool) -> list[list[str]]:
        """Texts of the table's lines."""
        lines = []
        for name, group in _groups(self.rows, full):
            first = group[0]
            shapes = {"x".join(map(str, row.shape)) for row in group}
            count = f" ({len(group)}x)" if len(group) > 1 else ""
            shape = shapes.pop() if len(shapes) == 1 else "several"
            before, after = (
                _size(sum(sizes)) for sizes in zip(*((r.bytes_before, r.bytes_after) for r in group), strict=True)
            )
            lines.append([name + count, first.kind, shape, first.bits, first.kernel, before, after, first.reason])
        return lines


def bits_per_weight(layers: Iterable[Any]) -> float:
    """Stored bits, scales included, per weight of low-bit layers; embeddings left out, whose bits are not chosen."""
    products = [layer for layer in layers if layer.kind != "Embedding"]
    return 8 * sum(p.weight_bytes() for p in products) / max(1, sum(p.weight_shape.numel() for p in products))


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors: subclasses opened, storages that are shared counted once.

    A storage larger than its tensors (a view of something big) is counted whole, since it stays in memory whole.
    """
    sizes: dict[tuple[str, int], int] = {}
    queue = list(tensors)
    while queue:
        tensor = queue.pop()
        if hasattr(tensor, "__tensor_flatten__"):
            names, _ = tensor.__tensor_flatten__()
            queue.extend(getattr(tensor, name) for name in names)
        elif tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            sizes[(str(tensor.device), storage.data_ptr())] = storage.nbytes()
    return sum(sizes.values())


def resident_bytes(model: nn.Module) -> int:
    """Bytes that parameters and buffers of a model hold in memory, and the copies that its kernels keep."""
    kept = (getattr(getattr(module, "native", None), "nbytes", 0) for module in model.modules())
    return tensor_bytes([*model.parameters(), *model.buffers()]) + sum(kept)


def disk_bytes(model: nn.Module) -> int:
    """Bytes of tensors that a checkpoint of the model holds (its file adds a header of names and shapes)."""
    return tensor_bytes(model.state_dict().values())


def own_bytes(module: nn.Module) -> int:
    """Bytes of the tensors that belong to this module itself, children left out."""
    return tensor_bytes([*module.parameters(recurse=False), *module.buffers(recurse=False)])


def _groups(rows: Sequence[LayerReport], full: bool) -> list[tuple[str, list[LayerReport]]]:
    groups: dict[tuple[str, ...], list[LayerReport]] = {}
    for row in rows:
        name = row.name if full else re.sub(r"\d+(?=\.|$)", "*", row.name)
        groups.setdefault((name, row.kind, row.bits, row.kernel, row.reason), []).append(row)
    return [(key[0], group) for key, group in groups.items()]


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if count < 1000 and unit != "B" else f"{count} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.3g} GB"
