"""What a number was measured with: versions, device, threads, commit, command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("fewstep", "torch", "diffusers", "transformers", "accelerate", "torchao", "optuna", "numpy")


def environment() -> dict[str, Any]:
    """Everything a reader needs to repeat a run, as plain JSON values."""
    return {
        "command": command_line(),
        "commit": commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        **{name: version(name) for name in PACKAGES},
    }


@cache
def version(package: str) -> str | None:
    """Installed version of a package, None if it is absent. Imports nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def command_line() -> str:
    """The command as it was typed: the program without its folder, `python -m fewstep` where it was started so."""
    program = Path(sys.argv[0] or "python")
    if program.name == "__main__.py":
        words = ["-m", program.parent.name]
    elif program.suffix == ".py":
        words = [program.name if program.is_absolute() else str(program)]
    else:
        return shlex.join([program.name, *sys.argv[1:]])
    many = os.environ.get("LOCAL_WORLD_SIZE", "1") if "TORCHELASTIC_RUN_ID" in os.environ else ""
    return shlex.join([*(["torchrun", "--nproc_per_node", many] if many else ["python"]), *words, *sys.argv[1:]])


@cache  # of the code that was imported, which later changes of the files are not; three programs run for it
def commit() -> str | None:
    """Git commit of the checkout this package is imported from (with `+` if files changed), None outside of one."""
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        tracked = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
        return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "") if tracked else None
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: str | None = None) -> str:
    """Name of the accelerator, or of the processor."""
    wanted = device or best_device()
    if wanted.startswith("cuda"):
        return str(torch.cuda.get_device_name(wanted))
    if wanted.startswith("mps"):
        return "Apple GPU (mps)"
    return f"CPU {processor()}"


def best_device() -> str:
    """The device that is used unless the user names one: cuda, mps or cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def processor() -> str:
    """Human-readable model name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
