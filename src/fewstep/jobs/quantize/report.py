"""The tables of a quantization run, on the terminal and on a page."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.files import read_tensors, write_text
from fewstep.jobs.quantize.recipe import QuantizeRecipe
from fewstep.quant.modules import KINDS
from fewstep.report import (
    Block,
    Code,
    Column,
    FactList,
    Highlights,
    ImageGrid,
    Note,
    Page,
    Table,
    TableRow,
    save_page,
)
from fewstep.runs import Run

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Results = Mapping[str, Any]


def rows_of(results: Results) -> list[dict[str, Any]]:
    """Every layer of every part: name, shape, bits, kernel, sensitivity, reason, bytes."""
    found = []
    for part, values in results["parts"].items():
        table = values.get("sensitivity", {})
        for row in values["rows"]:
            measured = table.get(row["name"], {}).get(row["bits"])
            unit = "SSIM" if values.get("groups", {}).get(row["name"]) == "content" else "dB"
            shown = "" if measured is None else f"{measured:.4g} {unit}"
            reason = values.get("reasons", {}).get(row["name"]) or row["reason"] or "the scheme"
            found.append({**row, "part": part, "sensitivity": shown, "reason": reason})
    return found


def block_table(results: Results) -> RichTable:
    """What each block of each part got, a line each; `layers.csv` and the page have every layer."""
    from rich.table import Table as RichTable

    table = RichTable(title="Every block (each layer: artifacts/layers.csv, report.html)", title_justify="left")
    for column in ("block", "layers", "bits", "kept in float", "before", "after", "most sensitive"):
        table.add_column(column, overflow="fold")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(results):
        groups.setdefault(f"{row['part']}.{block_of(row['name'])}", []).append(row)
    for name, rows in groups.items():
        layers = [row for row in rows if row["kind"] in KINDS]
        bits = Counter(row["bits"] for row in layers if row["quantized"])
        kept = [row["name"].rpartition(".")[2] for row in layers if not row["quantized"]]
        table.add_row(
            name, str(len(layers)), ", ".join(f"{k} {v}x" for k, v in bits.most_common()) or "float",
            f"{len(kept)} ({', '.join(sorted(set(kept))[:2])})" if kept else "",
            *(size(sum(row[key] for row in rows)) for key in ("bytes_before", "bytes_after")),
            ", ".join(_worst(layers)),
        )  # fmt: skip
    return table


def _worst(layers: list[dict[str, Any]]) -> Iterator[str]:
    """The most sensitive layer by each of the two metrics, named within its block."""
    for unit in ("SSIM", "dB"):
        measured = [row for row in layers if row["sensitivity"].endswith(unit)]
        if measured:
            row = min(measured, key=lambda row: float(row["sensitivity"].split()[0]))
            yield f"{row['name'].removeprefix(block_of(row['name'])).lstrip('.')} {row['sensitivity']}"


def block_of(name: str) -> str:
    """The block of a layer: its name up to the first number, or its first word (`down_blocks.0`, `conv_in`)."""
    found = re.match(r"[^.\d]+(?:\.[^.\d]+)*?\.\d+(?=\.)", name)
    return found[0] if found else name.partition(".")[0]


def write_layers(results: Results, path: Path) -> None:
    """Every layer as a line of a CSV file."""
    keys = ("part", "name", "kind", "shape", "weights", "bits", "kernel", "sensitivity", "bytes_before", "bytes_after",
            "reason")  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows_of(results):
        writer.writerow({**row, "shape": "x".join(map(str, row["shape"]))})
    write_text(path, text.getvalue(), over="all")


def part_table(results: Results) -> Any:
    """Bytes and fidelity of each part."""
    from fewstep.report import to_rich

    return to_rich(_parts(results))


def write_report(run: Run, recipe: QuantizeRecipe, results: Results) -> Path:
    """Write `report.html` into the run directory and return its path."""
    measured = results["measured"]
    blocks: list[Block] = [_highlights(results), Note("Speed", measured["verdict"]), _parts(results)]
    shown = _pictures(run)
    if shown is not None:
        blocks.insert(2, shown)
    if results["allocation"]:
        blocks.append(_sweep(results["allocation"]))
    blocks += _learned(results)
    blocks += [
        _layers(results),
        FactList("Environment", {k: str(v) for k, v in results["environment"].items()}),
        Code("Use it", _use(run)),
        Code("Command", results["environment"]["command"]),
    ]
    aim = recipe.scheme or recipe.budget or f"{recipe.effective_bits:g} bits per weight"
    title = f"{recipe.model}: {aim}"
    return save_page(Page(title, _sentence(results), blocks, label="Quantization"), run.path / "report.html")


def _pictures(run: Run) -> Block | None:
    """The first held-out items before and after; nothing for what is not an image."""
    file = run.artifact("pictures.safetensors")
    stacks = read_tensors(file) if file.exists() else {}
    if not stacks:
        return None
    names = sorted(stacks)  # 0 before, 1 after, ...
    images = [[stacks[name][i].float() / 255 for name in names] for i in range(len(stacks[names[0]]))]
    rows = [f"item {i + 1}" for i in range(len(images))]
    text = "The first of the held-out items, not chosen by eye."
    return ImageGrid("Before and after, equal seeds", images, rows, [name[2:] for name in names], text=text)


def _sentence(results: Results) -> str:
    before, after = (sum(part[key] for part in results["parts"].values()) for key in ("disk_before", "disk_after"))
    pictures = results["measured"]["pictures"]["all"]
    return (
        f"{size(before)} become {size(after)} on disk ({', '.join(results['parts'])}). On "
        f"{results['measured']['items']} held-out items the pictures are at {pictures['psnr']:.1f} dB PSNR and "
        f"{pictures['ssim']:.3f} SSIM from full precision with the same seeds."
    )


def _highlights(results: Results) -> Block:
    before, after = (sum(part[key] for part in results["parts"].values()) for key in ("disk_before", "disk_after"))
    items = [
        (f"{before / max(after, 1):.2f}x", "smaller on disk", f"{size(before)} to {size(after)}"),
        (f"{results['measured']['pictures']['all']['psnr']:.1f} dB", "PSNR to full precision", "held-out"),
    ]
    times = results["measured"]["milliseconds"]
    if times:
        change = times["before"] / times["after"]
        items.append((f"{change:.2f}x", "speed", f"{times['before']:.0f} to {times['after']:.0f} ms per image"))
    return Highlights("At a glance", items)


def _parts(results: Results) -> Table:
    columns = [
        Column("before", "MB"), Column("after", "MB"), Column("in memory", "MB"), Column("bits per weight", digits=2),
        Column("PSNR alone", "dB", digits=1), Column("SSIM alone"), Column("first tokens apart", digits=0),
    ]  # fmt: skip
    rows = []
    pictures = results["measured"]["pictures"]
    for name, part in results["parts"].items():
        seen = pictures.get(name) or pictures["all"]
        apart = len(part.get("first_token", ()))
        sizes = [part[key] / 1e6 for key in ("disk_before", "disk_after", "resident_after")]
        rows.append(TableRow(name, [*sizes, part["bits_per_weight"], seen["psnr"], seen["ssim"], apart]))
    for name in ("all", "all + Q-Sched"):
        if name in pictures and (len(results["parts"]) > 1 or "Q-Sched" in name):
            rows.append(TableRow(name, [None] * 4 + [pictures[name]["psnr"], pictures[name]["ssim"], None]))
    growth = ", ".join(f"{k} {size(v)}" for k, v in results["measured"]["peak_growth"].items() if v is not None)
    text = f"Memory beyond the weights while one image is drawn: {growth or 'not measured here'}."
    return Table("Each part", columns, rows, text=text, corner="part")


def _sweep(allocation: Results) -> Table:
    columns = [
        Column("bytes", digits=0), Column("sum of damages", digits=5), Column("image error", better="lower", digits=6),
        Column("solution"),
    ]  # fmt: skip
    rows = [
        TableRow(t["name"], [t["bytes"], t["damage"], t["error"], "optimal" if t["proven"] else "time limit"])
        for t in allocation["tried"]
    ]
    text = (
        "Each ratio of the two groups' average bits gives one solution of the integer programme; the image error (mean "
        f"square to full precision over the calibration items) chose '{allocation['chosen']}'. The layers' budget was "
        f"{allocation['budget']:,} bytes."
    )
    return Table("The sweep", columns, rows, text=text, corner="allocation")


def _learned(results: Results) -> list[Block]:
    """What came after rounding: blocks reconstructed, bits per row, corrections of the plan."""
    blocks: list[Block] = []
    for part in results["parts"].values():
        if part.get("reconstruction"):
            columns = [Column("before", better="lower", digits=6), Column("after", digits=6), Column("kept")]
            rows = [
                TableRow(e["name"], [e["before"], e["after"], "yes" if e["kept"] else "no"])
                for e in part["reconstruction"]
            ]
            blocks.append(Table("Blocks reconstructed", columns, rows, text="Mean squared error of their outputs."))
        if part.get("per_step"):
            blocks.append(_rows(part["per_step"]))
    if results["corrections"]:
        found = results["corrections"]
        columns = [Column("error of the latents", better="lower", digits=6), Column("")]
        rows = [
            TableRow(name, [t.get("error"), t.get("reason", "kept" if name == found["kept"] else "")])
            for name, t in found["tried"].items()
        ]
        text = "Mean square to full precision over the calibration items; the least one is the plan of the result."
        blocks.append(Table("Corrections of the plan", columns, rows, text=text, corner="correction"))
    return blocks


def _rows(found: Mapping[str, Any]) -> Block:
    if "damage" not in found:
        return Note("Bits per row", found["reason"])
    columns = [Column(f"{rung} alone", better="lower", digits=6) for rung in found["damage"]] + [Column("chosen")]
    values = zip(*found["damage"].values(), found["choice"], strict=True)
    rows = [TableRow(str(k), list(row)) for k, row in enumerate(values)]
    text = (
        "Mean square of the latents to full precision when only this row runs the rung. Result: "
        + found["reason"]
        + "."
    )
    if "error" in found:
        text += (
            f" Together {found['error']:.3g} against {found['error_one']:.3g}; {size(found['bytes'])} on disk against "
            f"{size(found['bytes_one'])}, since layers of several widths are kept once per width."
        )
        if "more" in found:
            ratio = found["rungs"]["more"] / found["rungs"]["scheme"]
            text += (
                f" More bits in every row would give {found['more']['error']:.3g} with {size(found['more']['bytes'])} "
                f"and {ratio:.2f}x the bit operations."
            )
    return Table("Bits per row", columns, rows, text=text, corner="row")


def _layers(results: Results) -> Table:
    columns = [Column(name) for name in ("shape", "bits", "kernel", "sensitivity")]
    columns += [Column("before", "B", digits=0), Column("after", "B", digits=0), Column("reason")]
    rows = [
        TableRow(
            f"{r['part']}.{r['name']}",
            ["x".join(map(str, r["shape"])), r["bits"], r["kernel"], r["sensitivity"], r["bytes_before"],
             r["bytes_after"], r["reason"]],
        )
        for r in rows_of(results)
    ]  # fmt: skip
    return Table("Every layer, none skipped silently", columns, rows, corner="layer")


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.2f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def _use(run: Run) -> str:
    return (
        "import fewstep\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{run.path / "artifacts" / "pipeline"}")'
    )
