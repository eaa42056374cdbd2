"""Measure what needs an accelerator, most important first; goes on where it was stopped.

    python benchmarks/gpu.py                              # or `make gpu`: all of benchmarks/gpu.yaml
    python benchmarks/gpu.py layers generation --again    # these anew
    python benchmarks/gpu.py --device cpu --size toy      # the same functions on small networks

Each part takes a few minutes at most (trainings take longer and go on from their checkpoints) and is written to
results/gpu-PIECE.json when it is done, so that a killed run loses one part. What could not be measured says why, and is
tried again on another device, or with another torch. Competing calls take turns; medians and quartiles over the rounds.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerator import LOST, Part, Setting, unmeasured

from fewstep.errors import FewstepError
from fewstep.files import read_json, write_json
from fewstep.runs import Run, environment
from fewstep.runs.environment import device_name, version

QUEUE = Path(__file__).with_suffix(".yaml")
ALONE = ("torch", "torchao", "triton", "optimum-quanto")
"""Packages that decide about a time or about whether there is one."""


def queue() -> list[str]:
    """The pieces in their order."""
    return [piece["name"] for piece in yaml.safe_load(QUEUE.read_text(encoding="utf-8"))]


def driver() -> str | None:
    """Version of NVIDIA's driver; None where there is none."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def machine(device: str) -> dict[str, Any]:
    """What a row was measured on."""
    return {
        "device": device_name(device), "driver": driver(), "cuda": torch.version.cuda,
        **{name: version(name) for name in ALONE},
    }  # fmt: skip


def measure(piece: str, setting: Setting, results: Path, again: bool) -> Iterator[str]:
    """Run the parts of a piece that have no result, write each down, and say what it was."""
    place, here = results / f"gpu-{piece}.json", machine(setting.device)
    kept: dict[str, Any] = read_json(place)["rows"] if place.exists() and not again else {}
    parts: Mapping[str, Part] = importlib.import_module(f"accelerator.{piece}").parts(setting)
    rows = {name: row for name, row in kept.items() if done(row, here)}
    for name in [name for name in parts if name not in rows]:
        begun = time.perf_counter()
        row = attempted(parts[name])
        known = environment()
        rows[name] = {**row, **here, "commit": known["commit"], "seconds": round(time.perf_counter() - begun, 1)}
        ordered = {part: rows[part] for part in parts if part in rows} | rows
        left = [part for part in parts if part not in rows]
        known["device"] = here["device"]
        write_json(place, {"rows": ordered, "open": left, "toy": setting.toy, "environment": {**known, **here}})
        yield f"{piece}/{name}: {rows[name]['seconds']:.0f} s{told(row)}"
        if failed(row) and LOST in row["why"]:
            raise FewstepError("the device answers this process no more", value=name, hint="Run it again: it goes on.")


def attempted(part: Part) -> dict[str, Any]:
    """A row; why, where there is none, whatever was raised: the next part begins all the same."""
    try:
        return part()
    except Exception as error:
        return {"why": unmeasured(error)}


def failed(row: Mapping[str, Any]) -> bool:
    """Whether a row holds no number at all."""
    return isinstance(row.get("why"), str)


def done(row: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether a row stays: it was measured, or would fail here again."""
    return not failed(row) or all(row.get(name) == value for name, value in here.items())


def told(row: Mapping[str, Any]) -> str:
    """What a line says of a row beside its time."""
    return f", not measured ({row['why']})" if failed(row) else ""


def quiet() -> None:
    """Leave the terminal to one line for each part."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=f"of {', '.join(queue())}; all unless given")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu at toy sizes")
    parser.add_argument("--size", choices=("true", "toy"), default="true")
    parser.add_argument("--rounds", type=int, default=30, help="of each measurement of time")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as an npz of JPEG bytes")
    parser.add_argument("--again", action="store_true", help="measure parts that have results too")
    parser.add_argument("--results", type=Path, help="results, or runs/gpu-toy/results at toy sizes")
    parser.add_argument("--folder", type=Path, help="of trainings: runs/gpu, or runs/gpu-toy")
    given = parser.parse_args(words)
    for name in given.pieces:
        if name not in queue():
            parser.error(f"no piece {name!r}; there are {', '.join(queue())}")
    if given.size == "true" and given.device == "cpu":
        parser.error("true sizes need a GPU; --size toy runs on a CPU")
    toy = given.size == "toy"
    given.folder = given.folder or Path("runs/gpu-toy" if toy else "runs/gpu")
    given.results = given.results or (given.folder / "results" if toy else Path("results"))
    return given


def main(words: Sequence[str] | None = None) -> None:
    given = parsed(words)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("There is no GPU here that PyTorch can use, so nothing was measured (--device cpu --size toy tries it).")
        return
    setting = Setting(given.device, given.size == "toy", given.folder, given.rounds, given.cifar)
    with Run(given.folder, {"size": given.size}, quiet=True):  # one at a time
        for piece in given.pieces or queue():
            for line in measure(piece, setting, given.results, given.again):
                print(line, flush=True)


if __name__ == "__main__":
    quiet()
    main()
