"""fewstep: few network evaluations, few bits, and proof of what that cost.

import fewstep as fs

pipe = fs.load("emoji-student")                   # a shipped name, a diffusers folder, a hub id
low = fs.quantize(pipe, "w4a8")                   # a new pipeline
tuned = fs.tune(low, prompts=prompts)             # Q-Sched: its plan, adapted to the rounding
images = fs.generate(low, ["cat face"], plan=tuned)
fs.save(low, "small", plan=tuned)                 # a diffusers folder
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from fewstep.registration import register_when_needed

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fewstep.api.choice import auto
    from fewstep.api.editing import age, edit
    from fewstep.api.folding import fold
    from fewstep.api.generation import generate
    from fewstep.api.low_bit import quant_report, quantize
    from fewstep.api.measuring import diagnose
    from fewstep.api.models import Student, attach, load, save
    from fewstep.api.plans import plan_of, search, tune
    from fewstep.api.restoring import restore
    from fewstep.api.training import align, distill
    from fewstep.denoiser import Denoiser, Guided, fingerprint
    from fewstep.errors import FewstepError
    from fewstep.pipelines.protocol import Pipeline
    from fewstep.plan import Identity, Plan, Row, RunState
    from fewstep.prediction import Prediction

_PLACES = {
    "Denoiser": "denoiser",
    "FewstepError": "errors",
    "Guided": "denoiser",
    "Identity": "plan",
    "Pipeline": "pipelines.protocol",
    "Plan": "plan",
    "Prediction": "prediction",
    "Row": "plan",
    "RunState": "plan",
    "Student": "api.models",
    "age": "api.editing",
    "align": "api.training",
    "attach": "api.models",
    "auto": "api.choice",
    "diagnose": "api.measuring",
    "distill": "api.training",
    "edit": "api.editing",
    "fingerprint": "denoiser",
    "fold": "api.folding",
    "generate": "api.generation",
    "load": "api.models",
    "plan_of": "api.plans",
    "quant_report": "api.low_bit",
    "quantize": "api.low_bit",
    "restore": "api.restoring",
    "save": "api.models",
    "search": "api.plans",
    "tune": "api.plans",
}
"""Of every public name the module that it is imported from when it is first asked for."""

_PACKAGES = ("alignment", "distillation", "metrics", "process", "quant", "rewards", "schedules", "solvers", "testing")
"""Packages with more, which `fewstep.solvers` and the like import when they are first asked for."""

_COMPONENTS = {
    "FeatureAutoencoder": "latents.features",
    "FewstepQuantConfig": "pipelines.low_bit.models",
    "ModelMixin": "pipelines.two_times",
    "PixelAutoencoder": "latents.pixels",
    "PlanScheduler": "pipelines.scheduler",
    "Routed": "pipelines.routed",
    "SchedulerMixin": "pipelines.scheduler",
    "TwoTimes": "pipelines.two_times",
}
"""Components of saved pipelines, and the classes by which diffusers learns how to open them."""

_FORMER = {
    "PipelineSampler": ("pipelines", "PipelineSampler", "fewstep.generate"),
    "load_pipeline": ("pipelines", "load_pipeline", "fewstep.load"),
    "save_pipeline": ("pipelines", "save_pipeline", "fewstep.save"),
}
"""Names of the first version, which the next one drops: where they are, and what to call in their place."""

__all__ = [
    "Denoiser",
    "FewstepError",
    "Guided",
    "Identity",
    "Pipeline",
    "Plan",
    "Prediction",
    "Row",
    "RunState",
    "Student",
    "age",
    "align",
    "attach",
    "auto",
    "diagnose",
    "distill",
    "edit",
    "fingerprint",
    "fold",
    "generate",
    "load",
    "plan_of",
    "quant_report",
    "quantize",
    "restore",
    "save",
    "search",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Import parts when they are first asked for: `import fewstep` costs nothing."""
    if name in _PACKAGES:
        return importlib.import_module(f"fewstep.{name}")
    if name in _FORMER:
        place, inside, better = _FORMER[name]
        warnings.warn(f"fewstep.{name} will go: use {better}", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(f"fewstep.{place}"), inside)
    place = _PLACES.get(name) or _COMPONENTS.get(name) or ""
    if not place:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fewstep.{place}"), name)


def __dir__() -> list[str]:
    """The public names alone."""
    return sorted([*__all__, *_PACKAGES, "__version__"])


register_when_needed()
