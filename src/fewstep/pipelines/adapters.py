"""LoRA adapters of a pipeline's backbone beside its plan: which are active, and how they are stored and found again.

A few-step adapter (Turbo, LCM, Hyper, PCM) and its plan belong together: the plan notes the adapters that were active
when it was attached, and each call checks that they still are. Others may come and go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from fewstep.errors import FewstepError, IdentityError
from fewstep.files import read_json, write_json
from fewstep.pipelines.calls import backbone_of
from fewstep.pipelines.protocol import Pipeline
from fewstep.weights import base_name, fingerprint_of, same_weights

Adapters = dict[str, dict[str, Any]]
"""Name -> fingerprint of the adapter's tensors, and the weight at which it runs."""

_NAME = r"\w[\w .+-]{0,99}"
"""Names that are a folder of their own, wherever the list lies."""

_FOLDER, _LIST, _WEIGHTS = "adapters", "adapters.json", "pytorch_lora_weights.safetensors"


def adapters_of(pipe: Pipeline, active: bool = True) -> Adapters:
    """The adapters of the backbone, those that are switched on unless `active` is False."""
    model = backbone_of(pipe)
    names = list(getattr(model, "peft_config", None) or {})
    if not names:
        return {}
    layers = _layers(model)
    on = {name for layer in layers if not layer.disable_adapters for name in layer.active_adapters}
    return {
        name: {"fingerprint": fingerprint_of(_tensors(model, name)), "weight": _weight(layers, name)}
        for name in names
        if name in on or not active
    }


def check_adapters(pipe: Pipeline, wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to run a plan without the adapters it belongs to; their names do not matter, their tensors do.

    Raises:
        IdentityError: an adapter is missing, or runs at another weight.
    """
    if not wanted:
        return
    found = [(a["fingerprint"], a["weight"]) for a in adapters_of(pipe).values()]
    for name, adapter in wanted.items():
        weight = next((w for print_, w in found if same_weights(print_, adapter["fingerprint"])), None)
        if weight is None:
            raise IdentityError(
                f"this plan belongs to the adapter {name!r}, which is not loaded",
                value=sorted(adapters_of(pipe, active=False)),
                hint="Open the folder with `fewstep.load_pipeline`, load the adapter, or attach the base model's plan.",
            )
        if abs(weight - adapter["weight"]) > 1e-3:
            raise IdentityError(
                f"this plan belongs to the adapter {name!r} at weight {adapter['weight']:g}",
                value=weight,
                hint=f"Call pipe.set_adapters([{name!r}], [{adapter['weight']:g}]), or attach the plan again.",
            )


@contextmanager
def base_only(pipe: Pipeline) -> Iterator[None]:
    """Inside, the backbone's `state_dict` is that of the base model: no adapters, and the names it had before them.

    Raises:
        FewstepError: another part of the pipeline has adapters.
    """
    for name, part in pipe.components.items():
        if getattr(part, "_hf_peft_config_loaded", False) and part is not backbone_of(pipe):
            raise FewstepError(f"the adapters of {name} cannot be stored", hint="Call pipe.fuse_lora() before saving.")
    model = backbone_of(pipe)
    if not getattr(model, "peft_config", None):
        yield
        return
    original = model.state_dict

    def clean(*args: Any, **kwargs: Any) -> dict[str, Any]:
        found = {base_name(n): t for n, t in original(*args, **kwargs).items()}
        return {name: tensor for name, tensor in found.items() if name is not None}

    vars(model)["state_dict"] = clean
    try:
        yield
    finally:
        del vars(model)["state_dict"]


def save_adapters(pipe: Pipeline, folder: Path) -> None:
    """Write every adapter of the backbone below `folder`: a safetensors file each, and a list with their weights."""
    model, active = backbone_of(pipe), adapters_of(pipe)
    entries = []
    for name, adapter in adapters_of(pipe, active=False).items():
        if not re.fullmatch(_NAME, name):
            raise FewstepError("this adapter's name cannot be that of a folder", value=name, hint="Load it as another.")
        model.save_lora_adapter(folder / _FOLDER / name, adapter_name=name, weight_name=_WEIGHTS)  # type: ignore[operator]
        entries.append({"name": name, "weight": adapter["weight"], "active": name in active})
    if entries:
        write_json(folder / _FOLDER / _LIST, entries)


def load_adapters(pipe: Pipeline, folder: Path) -> None:
    """Load what `save_adapters` wrote, if anything; the hub is never asked.

    Raises:
        FewstepError: the list is damaged, names files elsewhere or none, or the backbone does not take adapters (a
            low-bit one).
    """
    if not (folder / _FOLDER / _LIST).exists():
        return
    model: Any = backbone_of(pipe)
    entries = _entries(folder / _FOLDER)
    try:
        for entry in entries:
            place = folder / _FOLDER / entry.name
            model.load_lora_adapter(
                place, prefix=None, adapter_name=entry.name, weight_name=_WEIGHTS, local_files_only=True
            )
        on = [entry for entry in entries if entry.active]
        if on:
            model.set_adapters([entry.name for entry in on], [entry.weight for entry in on])
        elif entries:
            model.disable_lora()
    except Exception as error:  # diffusers and peft raise many kinds
        raise FewstepError(
            f"cannot load the adapters in {folder / _FOLDER}: {error}",
            hint="Low-bit backbones take no adapters: fuse them (pipe.fuse_lora) before quantizing.",
        ) from error


class _Entry(BaseModel):
    """One adapter of the list: a folder beside it, the weight at which it runs, and whether it is switched on."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    name: Annotated[str, Field(pattern=f"^{_NAME}$", max_length=100)]
    weight: float
    active: bool


def _entries(folder: Path) -> list[_Entry]:
    hint = "Save the pipeline again with `fewstep.save_pipeline`."
    try:
        entries = TypeAdapter(list[_Entry]).validate_python(read_json(folder / _LIST))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise FewstepError(f"{folder / _LIST} is damaged at {place!r}: {first['msg']}", hint=hint) from None
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise FewstepError(f"{folder / _LIST} names an adapter twice", value=names, hint=hint)
    for name in names:
        if not (folder / name / _WEIGHTS).is_file():
            raise FewstepError(f"the adapter {name!r} is not in {folder}", hint=hint)
    return entries


def _layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors of one adapter, without its name in theirs."""
    own = re.compile(rf"(\.lora_\w+)\.{re.escape(name)}(?=\.|$)")
    return {own.sub(r"\1", n): t for n, t in model.state_dict().items() if own.search(n)}


def _weight(layers: list[Any], name: str) -> float:
    """The factor at which an adapter runs: its scaling over the one it was trained with."""
    for layer in layers:
        if name in getattr(layer, "scaling", {}):
            before = float(layer.scaling[name])
            layer.set_scale(name, 1.0)
            whole = float(layer.scaling[name])
            layer.scaling[name] = before
            return before / whole if whole else 0.0
    return 1.0
