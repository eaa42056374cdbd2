"""diffusers pipelines in and out: open, read and attach plans, generate, save."""

from fewstep.pipelines.generate import TextToImage, Trace, trace
from fewstep.pipelines.load import attach, backbone_of, identity_of, load_pipeline, plan_of, save_pipeline

__all__ = [
    "TextToImage",
    "Trace",
    "attach",
    "backbone_of",
    "identity_of",
    "load_pipeline",
    "plan_of",
    "save_pipeline",
    "trace",
]
