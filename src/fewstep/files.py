"""Files that are either whole or absent: every artifact is written beside its place and moved into it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fewstep.errors import FewstepError


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling (to be written as a file or a folder) that replaces `path` on success.

    Raises:
        FewstepError: the place is not writable or the disk is full; nothing half-written stays.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        draft = temporary / target.name
        yield draft
        _flush(draft)
        if draft.is_dir() and target.is_dir():  # a folder cannot be renamed over a full folder
            os.replace(target, temporary / "old")
        os.replace(draft, target)
    except OSError as error:
        raise FewstepError(
            f"cannot write {target}: {error.strerror or error}",
            mend="Free some space or choose a folder you may write to; nothing was left half-written.",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write text atomically."""
    with atomic(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, readable by a person; floats keep every digit."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        FewstepError: the file is absent, not text, or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FewstepError(f"cannot read {path}: {error.strerror}", mend="Check the path.") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FewstepError(
            f"{path} is not JSON ({error})", mend="The file is truncated or of another kind: write it again."
        ) from error


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as draft:
        save_file(whole, draft, metadata=dict(metadata or {}))


def read_tensors(path: str | Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        FewstepError: the file is absent, truncated or not safetensors.
    """
    try:
        return load_file(path, device=device)
    except Exception as error:
        raise FewstepError(
            f"cannot read {path}: {error}", mend="Check the path; a truncated file must be written again."
        ) from error


def write_folder(path: str | Path, fill: Callable[[Path], None]) -> None:
    """Make a folder whole or not at all: `fill` writes into a draft that then takes its place."""
    with atomic(path) as draft:
        draft.mkdir()
        fill(draft)


def _flush(path: Path) -> None:
    """Force file contents to the disk, so that a power cut cannot leave an empty file behind the new name."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
