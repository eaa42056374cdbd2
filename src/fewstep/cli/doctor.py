"""`fewstep doctor`: what is installed, what this machine can do, and what to mend."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli.shell import RUN, console, examples, suggest

CHECKOUT, QUEUE = Path(__file__).parents[3], Path("benchmarks/gpu.yaml")
"""Where the package lies in a checkout, and in it what needs an accelerator."""
TESTED = {"torch": "2.6", "diffusers": "0.42", "transformers": "4.50", "accelerate": "1.0", "torchao": "0.15"}
"""Oldest versions that fewstep supports."""
FLAGS = {
    "avx2": "fast float32",
    "avx512f": "wider float32",
    "avx512_vnni": "int8 products",
    "avx512_bf16": "bfloat16 products",
    "amx_int8": "int8 matrix unit",
    "amx_bf16": "bfloat16 matrix unit",
    "asimddp": "int8 products",
    "bf16": "bfloat16 products",
}


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("doctor", rich_help_panel=RUN, epilog=examples("fewstep doctor", "fewstep doctor --json"))(run)


def run(as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False) -> None:
    """Show versions, device, kernels and disk, and what should be mended before a long run."""
    found = examine()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    out = console()
    for title in (key for key in found if key != "warnings"):
        table = Table("", "", box=box.SIMPLE, title=title, title_justify="left", title_style="bold", show_header=False)
        for name, value in found[title].items():
            table.add_row(name, escape("missing" if value is None else str(value)))
        out.print(table)
    for warning in found["warnings"]:
        out.print(f"[yellow]![/yellow] {escape(warning)}")
    if not found["warnings"]:
        out.print("[bold green]Nothing to mend.[/bold green]")
    suggest("fewstep demo")


def examine() -> dict[str, Any]:
    """Versions, machine, kernels, and warnings that each say how to mend it; reads only."""
    import torch

    from fewstep.runs.environment import PACKAGES, best_device, device_name, version

    device = best_device()
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    machine = {
        "device": device_name(device),
        "kind": device,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "processor flags": ", ".join(f"{flag} ({FLAGS[flag]})" for flag in processor_flags()) or "none known",
        "bfloat16 in hardware": "yes" if _bfloat16(device) else "no: stay with float32",
        "free disk": f"{free:.1f} GB",
    }
    found = warnings(versions, machine, free)
    measured = {"make gpu": accelerator(CHECKOUT)} if (CHECKOUT / QUEUE).exists() else {}
    return {"versions": versions, "machine": machine, "kernels": kernels(device), **measured, "warnings": found}


def kernels(device: str) -> dict[str, str]:
    """Which implementation multiplies quantized layers on this device."""
    from fewstep.quant import Scheme
    from fewstep.quant.kernels import describe, kernel_reason

    found, on_cuda = {}, device.startswith("cuda")
    for name in ("w8a8", "w4a8row", "w4a8", "w4a16"):
        for kind in ("Linear", "Conv2d"):
            scheme, linear = Scheme.parse(name), kind == "Linear"
            reason = kernel_reason("auto", scheme, linear=linear, on_cuda=on_cuda)
            kernel = describe(scheme, "auto", linear=linear, on_cuda=on_cuda)
            found[f"{name} {kind}"] = f"{kernel}: {reason}" if reason else kernel
    return found


def accelerator(checkout: Path) -> dict[str, str]:
    """How far each piece of the queue that needs an accelerator has been measured, and on what."""
    import yaml

    from fewstep.files import read_json, read_text

    found = {}
    for piece in yaml.safe_load(read_text(checkout / QUEUE)):
        place = checkout / "results" / f"gpu-{piece['name']}.json"
        told = "not measured yet"
        if place.exists():
            result = read_json(place)
            rows = [row for row in result["rows"].values() if not isinstance(row.get("why"), str)]
            total, devices = len(result["rows"]) + len(result["open"]), sorted({row["device"] for row in rows})
            told = f"{len(rows)} of {total} parts, {' and '.join(devices)}" if rows else f"none of {total} parts"
        found[piece["name"]] = f"{told}: {piece['measures']}"
    return found


def processor_flags() -> list[str]:
    """The processor's instruction sets that matter here."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    lines = (line for line in text.splitlines() if line.lower().startswith(("flags", "features")))
    present = set(next(lines, "").partition(":")[2].split())
    return [flag for flag in FLAGS if flag in present]


def warnings(versions: Mapping[str, str | None], machine: Mapping[str, Any], free: float) -> list[str]:
    """What should be mended, each with how."""
    found = []
    for name, oldest in TESTED.items():
        have = versions.get(name)
        if have is None:
            found.append(f"{name} is missing: pip install '{name}>={oldest}'.")
        elif _numbers(have) < _numbers(oldest):
            found.append(f"{name} {have} is older than {oldest}: pip install -U '{name}>={oldest}'.")
    if machine["kind"] == "cpu":
        found.append(_processor_only())
        if machine["threads"] > (machine["cores"] or 1):
            found.append(f"More threads than cores: set OMP_NUM_THREADS={machine['cores']}.")
    if free < 2:
        found.append(f"Only {free:.1f} GB of disk are free here: give runs another place with --out.")
    if not os.access(Path.cwd(), os.W_OK):
        found.append("This folder is not writable: give runs another place with --out.")
    return found


def _processor_only() -> str:
    from fewstep.quant import native

    if native.available():
        return "No GPU: w8a8 and schemes with one scale per row run in int8 here; the others save memory, not time."
    return "No GPU, and no exact int8 product: quantization saves memory here, not time."


def _bfloat16(device: str) -> bool:
    if device.startswith("cuda"):
        import torch

        return bool(torch.cuda.is_bf16_supported())
    return any(flag in ("avx512_bf16", "amx_bf16", "bf16") for flag in processor_flags())


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)
