"""Files that are either whole or absent: every artifact is written beside its place and moved into it."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import FewstepError
from fewstep.ownership import SOFTWARE, Over, check_over, sign

if TYPE_CHECKING:
    import torch

_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")  # how libraries written in Rust tell theirs


@contextmanager
def atomic(path: str | Path, over: Over = "ours") -> Iterator[Path]:
    """Yield a temporary sibling (to be written as a file or a folder) that takes the place of `path` on success.

    Links are followed. A folder gets a marker that lists what was written (`fewstep.ownership`).

    Args:
        over: what may be replaced.

    Raises:
        FewstepError: something is there that may not be replaced, the place is not writable or the disk is full;
            nothing half-written stays.
    """
    named = user_path(path)
    target = Path(os.path.realpath(named))
    made: list[Path] = []
    temporary: Path | None = None
    try:
        check_over(target, over)
        made = make_folders(target.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        draft = temporary / target.name
        yield draft
        if draft.is_dir():
            sign(draft)
        _flush(draft)
        check_over(target, over)
        _move(draft, target, temporary / "old")
    except Exception as error:
        remove_empty(made, besides=temporary)
        reason = system_error(error)
        if reason is None:
            raise
        raise FewstepError(
            f"cannot write {named}: {reason}",
            hint="Free some space or choose a folder you may write to; nothing was left half-written.",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def check_free(path: str | Path, overwrite: bool = False) -> None:
    """Refuse a place before the work whose result is to lie there (see `fewstep.ownership.check_over`)."""
    check_over(Path(os.path.realpath(user_path(path))), "ours" if overwrite else "nothing")


def user_path(path: str | Path) -> Path:
    """The path that a user means: `~` is the home folder.

    Raises:
        FewstepError: no file system takes it.
    """
    try:
        text = os.fsdecode(os.fsencode(path))
    except UnicodeEncodeError:
        text = "\0"
    if "\0" in text:
        raise FewstepError("no file can have this name", value=str(path), hint="Choose another one.")
    try:
        return Path(text).expanduser()
    except RuntimeError:  # a user whom this machine does not know
        return Path(text)


def system_error(error: BaseException) -> str | None:
    """What the operating system refused, whichever library tells it; None where it is no such error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = _SYSTEM_ERROR.search(str(error))
    return os.strerror(int(number[1])) if number and not isinstance(error, FewstepError) else None


def make_folders(path: Path) -> list[Path]:
    """Make a folder and those above it; returns the new ones, outermost first."""
    made = [folder for folder in (*reversed(path.parents), path) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return made


def remove_empty(folders: list[Path], besides: Path | None = None) -> None:
    """Take back folders that hold nothing, innermost first."""
    if besides is not None:
        shutil.rmtree(besides, ignore_errors=True)
    for folder in reversed(folders):
        try:
            folder.rmdir()
        except OSError:
            return


def read_text(path: str | Path, *, most: int | None = None) -> str:
    """Read a text file in UTF-8, with or without the mark (BOM) that some editors put first, or in UTF-16 with one.

    Args:
        most: size of the file in bytes at most; no more of it is read.

    Raises:
        FewstepError: the file is absent, too large, or no text.
    """
    try:
        with user_path(path).open("rb") as file:
            data = file.read() if most is None else file.read(most + 1)
        if most is not None and len(data) > most:
            raise FewstepError(f"{path} is larger than {most >> 20} MiB", hint="Check that it is the right file.")
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise FewstepError(f"cannot read {path}: {error.strerror}", hint="Check the path.") from error
    except UnicodeDecodeError as error:
        raise FewstepError(f"{path} is not text in UTF-8 ({error})", hint="Save it as UTF-8.") from error


def write_text(path: str | Path, text: str, over: Over = "ours") -> None:
    """Write text atomically; a lone surrogate, which UTF-8 cannot hold, becomes its escape."""
    with atomic(path, over) as draft:
        draft.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any, over: Over = "ours", *, most: int | None = None) -> None:
    """Write JSON atomically, readable by a person; floats keep every digit.

    Raises:
        FewstepError: it would be larger than `most` bytes.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if most is not None and len(text.encode("utf-8", "backslashreplace")) > most:
        raise FewstepError(f"{path} would be larger than {most >> 20} MiB, which is not read back", value=len(text))
    write_text(path, text, over)


def read_json(path: str | Path, *, most: int | None = None, unique: bool = False) -> Any:
    """Read JSON.

    Args:
        most: size of the file in bytes at most; no more of it is read.
        unique: refuse mappings that name a key twice.

    Raises:
        FewstepError: the file is absent, too large, not text, or not JSON.
    """
    text = read_text(path, most=most)
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except (ValueError, RecursionError) as error:
        raise FewstepError(
            f"{path} is not JSON ({error})", hint="The file is truncated or of another kind: write it again."
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {name!r} stands twice")
    return found


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    over: Over = "ours",
) -> None:
    """Write a safetensors file atomically; its header names fewstep."""
    from safetensors.torch import save_file

    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path, over) as draft:
        save_file(whole, draft, metadata={SOFTWARE: "1", **(metadata or {})})


def read_tensors(path: str | Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        FewstepError: the file is absent, truncated or not safetensors.
    """
    from safetensors.torch import load_file

    try:
        return load_file(user_path(path), device=device)
    except Exception as error:
        raise FewstepError(
            f"cannot read {path}: {error}", hint="Check the path; a truncated file must be written again."
        ) from error


def write_folder(path: str | Path, fill: Callable[[Path], None], over: Over = "ours") -> None:
    """Make a folder whole or not at all: `fill` writes into a draft that then takes its place."""
    with atomic(path, over) as draft:
        draft.mkdir()
        fill(draft)


def _move(draft: Path, target: Path, old: Path) -> None:
    """Put the draft in its place. A folder cannot be renamed over a full one, which steps aside and is brought back if
    that fails."""
    if target.is_dir() and not draft.is_dir() and any(target.iterdir()):
        raise FewstepError(f"{target} is a folder; a file cannot replace it", hint="Choose another name.")
    aside = target.is_dir()
    if aside:
        os.replace(target, old)
    try:
        os.replace(draft, target)
    except OSError:
        if aside:
            os.replace(old, target)
        raise


def _flush(path: Path) -> None:
    """Force file contents to the disk, so that a power cut cannot leave an empty file behind the new name."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
