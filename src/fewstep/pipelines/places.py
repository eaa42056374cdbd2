"""What a pipeline can be opened from: whether it is safe, and which of its files are meant. Nothing is opened here."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from fewstep.errors import FewstepError
from fewstep.files import read_json, user_path
from fewstep.registry import Registry
from fewstep.zoo import BASES, SHIPPED, shipped

INSIDE = Path("artifacts") / "pipeline"
"""Where a run directory keeps its pipeline."""

_INDEX = "model_index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PLAIN = re.compile(r"[^.]+\.safetensors")
_VARIANT = re.compile(r"[^.]+\.(?P<name>[^.]+?)(-\d+-of-\d+)?\.safetensors")


def place_of(model: str | Path) -> Path:
    """The folder that is meant: of a shipped model (or its base), of the pipeline inside a run, or the path itself.

    Raises:
        FewstepError: a single file, or a path that no system has.
    """
    if str(model) in SHIPPED:
        return shipped(BASES.get(str(model), str(model)))
    place = user_path(model)
    try:
        if place.is_file():
            raise _single_file(place)
        inside = place / INSIDE
        return inside if not (place / _INDEX).is_file() and (inside / _INDEX).is_file() else place
    except (OSError, UnicodeError, ValueError) as error:
        if isinstance(error, FewstepError):
            raise
        raise FewstepError("this is no path", value=str(model), hint="Give a folder or a hub id.") from error


def options_for(place: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Options of `from_pretrained` for a folder: safetensors only, and the variant where there is nothing else.

    Raises:
        FewstepError: weights are stored as pickles only (docs/decisions/0003-no-pickle.md), or are asked for.
    """
    if not options.get("use_safetensors", True):
        raise _pickled("use_safetensors=False")
    options = {**options, "use_safetensors": True}
    if not (place / _INDEX).is_file():
        return options
    variants: list[set[str]] = []
    for part in _parts(place):
        names = [file.name for file in part.iterdir()]
        pickled = [name for name in names if Path(name).suffix in _PICKLES]
        if pickled and not any(name.endswith(".safetensors") for name in names):
            raise _pickled(f"{part.name}/{pickled[0]}")
        found = {match["name"] for name in names if (match := _VARIANT.fullmatch(name))}
        if found and not any(map(_PLAIN.fullmatch, names)):
            variants.append(found)
    if variants and options.get("variant") is None:
        common = sorted(set.intersection(*variants), key=lambda name: (name != "fp16", name))
        if common:
            warnings.warn(f"{place} holds its weights as variant {common[0]!r} only: opened as that", stacklevel=3)
            options["variant"] = common[0]
    return options


PIPELINES: Registry[Any] = Registry("pipeline class", "fewstep.pipelines")
"""Classes of other packages that folders name in `model_index.json`; those of diffusers need no entry."""


def class_of(place: Path) -> Any:
    """The class that opens a folder: that of another package which the folder names, else `DiffusionPipeline`.

    Raises:
        PluginError: the package that brings the class is broken.
    """
    import diffusers

    index = read_json(place / _INDEX) if (place / _INDEX).is_file() else None
    name = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(name, str) or hasattr(diffusers, name):
        return diffusers.DiffusionPipeline
    return PIPELINES.get(name, diffusers.DiffusionPipeline)


def _parts(place: Path) -> list[Path]:
    index = read_json(place / _INDEX)
    names = [name for name, value in index.items() if isinstance(value, list)] if isinstance(index, dict) else []
    return [place / name for name in names if (place / name).is_dir()]


def _pickled(what: str) -> FewstepError:
    return FewstepError(
        "fewstep opens safetensors only: opening a pickle runs the code in it",
        value=what,
        hint="Convert it where you trust it: DiffusionPipeline.from_pretrained(folder).save_pretrained(other), with "
        "diffusers alone.",
    )


def _single_file(place: Path) -> FewstepError:
    if place.suffix in _PICKLES:
        return _pickled(str(place))
    return FewstepError(
        "a single file holds no pipeline with its parts",
        value=str(place),
        hint="Make a folder of it with diffusers, by the class of the pipeline: "
        f"StableDiffusionXLPipeline.from_single_file({str(place)!r}).save_pretrained('folder').",
    )
