"""Whose a file or folder is: what fewstep did not write is never replaced.

A folder written by fewstep holds `fewstep.json`, which lists every file that was written into it with its bytes; with
any other file inside, or one whose length has changed, it is the user's too, and stays. A single file is recognised by
a mark inside: a key of its JSON or of its header, the software named in a picture, the generator of a page, a remark
of a structure.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from fewstep.errors import FewstepError

Over = Literal["nothing", "ours", "all"]
"""What may be replaced: nothing, what fewstep wrote, or all (the place is the caller's, as inside a run folder)."""
MARKER = "fewstep.json"
SOFTWARE = "fewstep"
"""The software that pictures and pages name."""
LARGEST = 1 << 26
"""Bytes of JSON beyond which a file is nobody's that fewstep wrote."""
EDGE = 1 << 14
"""Bytes at both ends of a file that are searched for a mark."""
_DUST = (".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers leave


def check_over(path: Path, over: Over) -> None:
    """Refuse to replace what stands at `path`; absent and empty files and folders hold nothing to lose.

    Raises:
        FewstepError: something is there that is not ours, or that is ours while `over` is "nothing".
    """
    if over == "all" or not os.path.lexists(path):
        return
    try:
        empty, strange = _empty(path), strangers(path)
    except OSError as error:
        raise FewstepError(f"cannot look into {path}: {error.strerror}", hint="Choose another name.") from error
    if empty:
        return
    if strange:
        raise FewstepError(
            f"{path} is not replaced: fewstep did not write it",
            value=strange[:5] if path.is_dir() else None,
            hint="Choose another name.",
        )
    if over == "nothing":
        raise FewstepError(
            f"{path} exists already", hint="Choose another name, or add --overwrite (overwrite=True) to replace it."
        )


def strangers(path: Path) -> list[str]:
    """What is there that fewstep did not write: files of a folder, or the file itself."""
    if not path.is_dir():
        return [] if path.is_file() and (_marked(path) or _listed(path)) else [path.name]
    return [name for name in _files(path) if Path(name).name not in _DUST and not _listed(path / name)]


def sign(folder: Path) -> None:
    """List what was written into a folder, in its marker."""
    files = {name: (folder / name).stat().st_size for name in _files(folder) if name != MARKER}
    write_marker(folder, {"files": files})


def write_marker(folder: Path, fields: Mapping[str, Any]) -> None:
    """Put a marker into a folder that fewstep made."""
    text = json.dumps({SOFTWARE: _version(), **fields}, indent=1) + "\n"
    (folder / MARKER).write_text(text, encoding="utf-8")


def read_marker(folder: Path) -> dict[str, Any]:
    """The marker of a folder; empty where there is none."""
    found = _json(folder / MARKER)
    return found if SOFTWARE in found else {}


def _listed(file: Path) -> bool:
    """Whether the marker of a folder around it lists this file as it is, or it is such a marker."""
    if file.is_symlink() or not file.is_file():
        return False
    if file.name == MARKER:
        return bool(read_marker(file.parent))
    listed = ((folder, read_marker(folder).get("files")) for folder in file.parents if (folder / MARKER).is_file())
    size = file.stat().st_size
    return any(isinstance(f, dict) and f.get(file.relative_to(p).as_posix(), -1) in (size, None) for p, f in listed)


def _marked(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(EDGE)
        stream.seek(max(0, file.stat().st_size - EDGE))
        edges = head + stream.read(EDGE)
    if head.lstrip().startswith(b"{"):
        found = _json(file)
        origin = found.get("environment")
        return any(str(key).startswith(SOFTWARE) for key in {**found, **(origin if isinstance(origin, dict) else {})})
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"GGUF")):
        return SOFTWARE.encode() in edges
    if head.startswith(b"REMARK"):  # a structure in PDB format
        return b"WRITTEN BY FEWSTEP" in head
    if b"<html" in head.lower():
        return f'content="{SOFTWARE}"'.encode() in head or b"Made by fewstep" in edges
    return head[8:9] == b"{" and any(str(key).startswith(SOFTWARE) for key in _header(file))


def _header(file: Path) -> dict[str, Any]:
    """The metadata of a safetensors file."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        found = _parsed(stream.read(length)) if length <= LARGEST else {}
    about = found.get("__metadata__")
    return about if isinstance(about, dict) else {}


def _json(file: Path) -> dict[str, Any]:
    try:
        return _parsed(file.read_bytes()) if file.stat().st_size <= LARGEST else {}
    except OSError:
        return {}


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _files(folder: Path) -> list[str]:
    """Files and links below a folder, by their path inside it; empty folders count for nothing."""

    def refused(error: OSError) -> None:
        raise error

    found = []
    for place, folders, files in os.walk(folder, onerror=refused):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        found += [Path(place, name).relative_to(folder).as_posix() for name in (*files, *links)]
    return sorted(found)


def _empty(path: Path) -> bool:
    return not _files(path) if path.is_dir() else path.is_file() and path.stat().st_size == 0


@cache
def _version() -> str:
    try:
        return metadata.version(SOFTWARE)
    except metadata.PackageNotFoundError:
        return "unknown"
