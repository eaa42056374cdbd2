"""diffusers pipelines in and out: open, read and attach plans, generate, save."""

from fewstep.pipelines.calls import backbone_of, backbones_of
from fewstep.pipelines.generate import PipelineSampler, Trace, trace
from fewstep.pipelines.identity import identity_of
from fewstep.pipelines.load import attach, exchanged, fuse_adapters, load_pipeline, plan_of, save_pipeline
from fewstep.pipelines.process import process_of
from fewstep.pipelines.routed import Routed
from fewstep.pipelines.two_times import TwoTimes

__all__ = [
    "PipelineSampler",
    "Routed",
    "Trace",
    "TwoTimes",
    "attach",
    "backbone_of",
    "backbones_of",
    "exchanged",
    "fuse_adapters",
    "identity_of",
    "load_pipeline",
    "plan_of",
    "process_of",
    "save_pipeline",
    "trace",
]
