"""Environments of their own for scorers whose packages cannot stand beside a current stack."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from fewstep.errors import FewstepError
from fewstep.files import make_folders, read_json, write_json

RECORD = "environment.json"
KNOWN: dict[str, tuple[str, ...]] = {
    "imagereward": (
        "image-reward==1.5",
        "transformers<4.46",
        "diffusers<0.32",
        "torch<2.6",
        "numpy<2",
        "setuptools<81",
    ),
    "hpsv2": ("hpsv2==1.2.0", "torch<2.6", "numpy<2", "setuptools<81"),
}
"""Scorers by name, with what their packages need: pins of their authors' time that they do not all state."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REASON = re.compile(r"error|conflict|requires|depends|no matching|could not find", re.IGNORECASE)
SHOWN = 6
"""Lines of pip that an error shows."""


@dataclass(frozen=True)
class ScorerEnvironment:
    """A virtual environment that holds one scorer.

    Attributes:
        place: Its folder.
        scorer: `imagereward`, `hpsv2`, or `FILE.py:FUNCTION` of (paths, prompts) -> numbers.
        packages: What was installed, as pip reads it.
        digest: SHA-256 of the file, if the scorer is one.
    """

    place: str
    scorer: str
    packages: tuple[str, ...]
    digest: str | None = None

    @property
    def python(self) -> str:
        """Its interpreter."""
        inner = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
        return str(Path(self.place, *inner))


def home() -> Path:
    """Where environments lie: FEWSTEP_ENVIRONMENTS, or fewstep/environments in the user's cache."""
    given = os.environ.get("FEWSTEP_ENVIRONMENTS")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(cache) / "fewstep" / "environments"


def find_environment(name: str) -> ScorerEnvironment:
    """The environment of that name.

    Raises:
        FewstepError: an unfit name; there is no such environment, or the file of its scorer has changed.
    """
    place = _place(name)
    if not (place / RECORD).is_file():
        hint = f"Make it once: fewstep score IMAGES --with imagereward --in-env {name}."
        raise FewstepError("there is no such environment of a scorer", value=name, hint=hint)
    record: dict[str, Any] = read_json(place / RECORD)
    found = ScorerEnvironment(str(place), record["scorer"], tuple(record["packages"]), record["digest"])
    if found.digest != _digest(found.scorer):
        raise FewstepError(
            "the scorer's file is another one than when its environment was made", value=found.scorer,
            hint="Give the environment another name: numbers of two files are not comparable.",
        )  # fmt: skip
    return found


def make_environment(name: str, scorer: str, packages: Sequence[str] = ()) -> ScorerEnvironment:
    """The environment of that name, made now if there is none; the packages of a known scorer are known.

    Raises:
        FewstepError: an unknown scorer, another one in an environment of that name, or packages that cannot be
            installed (the message holds what pip says).
    """
    place = _place(name)
    scorer = _scorer(scorer)
    wanted = tuple(packages) or KNOWN.get(scorer, ())
    make_folders(place.parent)
    with FileLock(place.with_name(f".{name}.lock")):
        if (place / RECORD).is_file():
            found = find_environment(name)
            if (found.scorer, found.packages) != (scorer, wanted):
                value = f"{found.scorer} with {', '.join(found.packages) or 'no packages'}"
                raise FewstepError(f"the environment {name!r} holds another scorer", value=value, hint="Choose a name.")
            return found
        made = ScorerEnvironment(str(place), scorer, wanted, _digest(scorer))
        _build(made)
        write_json(place / RECORD, asdict(made))  # it is what makes the environment whole
        _begun(place).unlink()
    return made


def _build(made: ScorerEnvironment) -> None:
    place, begun = Path(made.place), _begun(Path(made.place))
    if begun.is_file():  # what a killed call left: an environment without this mark may be somebody's own
        shutil.rmtree(place, ignore_errors=True)
    elif place.exists():
        raise FewstepError("files of others lie where the environment would be", value=place, hint="Choose a name.")
    begun.touch()
    ours = importlib.util.find_spec("pip") is not None  # our pip serves another environment, which saves making one
    pip = ("--without-pip",) if ours or not made.packages else ()
    _run([sys.executable, "-m", "venv", *pip, made.place], made)
    if made.packages:
        command = [sys.executable, "-m", "pip", "--python", made.python] if ours else [made.python, "-m", "pip"]
        options = ("--disable-pip-version-check", "--no-input", "--quiet")
        _run([*command, "install", *options, *made.packages], made)


def _begun(place: Path) -> Path:
    """The mark beside an environment that says that we began to make it."""
    return place.with_name(f".{place.name}.begun")


def _run(command: list[str], made: ScorerEnvironment) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.returncode:
        return
    shutil.rmtree(made.place, ignore_errors=True)
    _begun(Path(made.place)).unlink(missing_ok=True)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    reasons = [line for line in lines if _REASON.search(line)] or lines
    raise FewstepError(
        f"the environment of {made.scorer} cannot be made:\n" + "\n".join(reasons[:SHOWN]),
        value=", ".join(made.packages),
        hint="Name other versions with --package, once for each.",
    )


def _scorer(text: str) -> str:
    """A known scorer, or a file and a function with the file's whole path."""
    if text in KNOWN:
        return text
    file, colon, function = text.rpartition(":")
    if not colon or not Path(file).is_file() or not function.isidentifier():
        hint = f"Give {', '.join(KNOWN)}, or FILE.py:FUNCTION."
        raise FewstepError("no scorer that an environment can hold", value=text, hint=hint)
    return f"{Path(file).resolve()}:{function}"


def _digest(scorer: str) -> str | None:
    file = Path(scorer.rpartition(":")[0])
    return hashlib.sha256(file.read_bytes()).hexdigest() if scorer not in KNOWN and file.is_file() else None


def _place(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise FewstepError("unfit name of an environment", value=name, hint="Use letters, digits, . _ and -.")
    return home() / name
