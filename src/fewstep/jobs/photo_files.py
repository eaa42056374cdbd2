"""Files of pictures, changed one after another: what failed is listed, and the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fewstep.errors import FewstepError
from fewstep.files import check_free
from fewstep.tasks.restoration.photos import FORMATS, Photo, read_photo, write_photo


def pictures_in(place: Path) -> list[Path]:
    """The picture files of a folder in the order of their names, or the one file.

    Raises:
        FewstepError: nothing there.
    """
    files = sorted(f for f in place.iterdir() if f.suffix.lower() in FORMATS) if place.is_dir() else [place]
    if not files or not all(f.is_file() for f in files):
        raise FewstepError("no picture there", value=str(place), hint=f"Give files with {', '.join(sorted(FORMATS))}.")
    return files


def change_files(
    files: Sequence[Path], out: Path, change: Callable[[Photo], Photo], *, overwrite: bool = False
) -> Mapping[str, str]:
    """Change files into the folder `out`, under their own names.

    Returns:
        Why, by the name of each file that failed; the others are written.
    """
    failed: dict[str, str] = {}
    for file in files:
        try:
            check_free(out / file.name, overwrite)
            write_photo(change(read_photo(file)), out / file.name, "ours" if overwrite else "nothing")
        except FewstepError as error:
            failed[file.name] = str(error)
    return failed
