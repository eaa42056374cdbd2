"""diffusers pipelines in and out: open, read and attach plans, generate, save.

The names are imported when they are asked for: `pipelines/low_bit` is imported while diffusers itself still is.
"""

from typing import TYPE_CHECKING

from fewstep.lazy import attributes

if TYPE_CHECKING:
    from fewstep.pipelines.calls import backbone_of, backbones_of
    from fewstep.pipelines.generate import PipelineSampler
    from fewstep.pipelines.identity import identity_of
    from fewstep.pipelines.load import attach, exchanged, fuse_adapters, load_pipeline, plan_of, save_pipeline
    from fewstep.pipelines.process import process_of
    from fewstep.pipelines.protocol import Pipeline
    from fewstep.pipelines.routed import Routed
    from fewstep.pipelines.traces import Trace, trace
    from fewstep.pipelines.two_times import TwoTimes
else:
    __getattr__ = attributes(
        __name__,
        {
            "Pipeline": "protocol",
            "PipelineSampler": "generate",
            "Routed": "routed",
            "Trace": "traces",
            "TwoTimes": "two_times",
            "attach": "load",
            "backbone_of": "calls",
            "backbones_of": "calls",
            "exchanged": "load",
            "fuse_adapters": "load",
            "identity_of": "identity",
            "load_pipeline": "load",
            "plan_of": "load",
            "process_of": "process",
            "save_pipeline": "load",
            "trace": "traces",
        },
    )

__all__ = [
    "Pipeline",
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
