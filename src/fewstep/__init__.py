"""fewstep: few network evaluations, few bits, and proof of what that cost."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fewstep.registration import register_when_needed

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fewstep.denoiser import Denoiser, Guided, fingerprint
    from fewstep.errors import FewstepError
    from fewstep.pipelines import PipelineSampler, attach, load_pipeline, plan_of, save_pipeline
    from fewstep.plan import Identity, Plan, Row
    from fewstep.prediction import Prediction
    from fewstep.quant import quantize

_PLACES = {
    "Denoiser": "denoiser",
    "Guided": "denoiser",
    "fingerprint": "denoiser",
    "FewstepError": "errors",
    "PipelineSampler": "pipelines",
    "attach": "pipelines",
    "load_pipeline": "pipelines",
    "plan_of": "pipelines",
    "save_pipeline": "pipelines",
    "Identity": "plan",
    "Plan": "plan",
    "Row": "plan",
    "Prediction": "prediction",
    "quantize": "quant",
    # components of saved pipelines, and the classes by which diffusers learns how to open them
    "FeatureAutoencoder": "latents.features",
    "FewstepQuantConfig": "pipelines.low_bit.models",
    "ModelMixin": "pipelines.two_times",
    "PixelAutoencoder": "latents.pixels",
    "PlanScheduler": "pipelines.scheduler",
    "Routed": "pipelines.routed",
    "SchedulerMixin": "pipelines.scheduler",
    "TwoTimes": "pipelines.two_times",
}

__all__ = [
    "Denoiser",
    "FewstepError",
    "Guided",
    "Identity",
    "PipelineSampler",
    "Plan",
    "Prediction",
    "Row",
    "attach",
    "fingerprint",
    "load_pipeline",
    "plan_of",
    "quantize",
    "save_pipeline",
]


def __getattr__(name: str) -> Any:
    """Import parts when they are first asked for: `import fewstep` costs nothing."""
    if name not in _PLACES:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fewstep.{_PLACES[name]}"), name)


register_when_needed()
