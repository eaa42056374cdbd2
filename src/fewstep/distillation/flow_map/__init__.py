"""Trajectory objectives as parts: a source of states, the times of a jump, a target, a metric, weights."""

from fewstep.distillation.flow_map.continuous import Eulerian, Lagrangian
from fewstep.distillation.flow_map.directions import (
    DataVelocity,
    MixedVelocity,
    SelfGuidedVelocity,
    StudentVelocity,
    TeacherVelocity,
)
from fewstep.distillation.flow_map.frame import BoundaryScaling, JumpCoefficients
from fewstep.distillation.flow_map.guidance import TeacherGuidance, sinusoid
from fewstep.distillation.flow_map.in_turn import SummedTerms, TrainingStages
from fewstep.distillation.flow_map.intervals import (
    DyadicJumps,
    EarlierGridPoint,
    FractionOfJump,
    Intervals,
    KarrasGrid,
    PreviousGridPoint,
    RandomMiddle,
    SecondDraw,
    SegmentEnd,
    ShrinkingStep,
    StoredPairs,
    UniformBelow,
    UniformGrid,
)
from fewstep.distillation.flow_map.jump import Jump, JumpStates, JumpTimes
from fewstep.distillation.flow_map.legs import OdeSteps, SameNoiseStep, StoredState, StudentJump
from fewstep.distillation.flow_map.metrics import ElementwiseHuber, FeatureDistance, PseudoHuber, SquaredError
from fewstep.distillation.flow_map.schedules import Halving, Ramp, Switch
from fewstep.distillation.flow_map.slopes import TimeDerivative
from fewstep.distillation.flow_map.sources import (
    EndPointPairs,
    NoisedDataStates,
    NoiseStates,
    StoredStates,
    StudentStates,
    TeacherStates,
    WindowedReflow,
)
from fewstep.distillation.flow_map.targets import InstantaneousVelocity, TargetValue, TwoLeg, semigroup
from fewstep.distillation.flow_map.term import FlowMapTerm
from fewstep.distillation.flow_map.velocity_distillation import VelocityDistillation
from fewstep.distillation.flow_map.weights import (
    AdaptiveWeight,
    InverseStepWeight,
    JumpLengthWeight,
    LearnedWeight,
    SnrWeight,
)

__all__ = [
    "AdaptiveWeight",
    "BoundaryScaling",
    "DataVelocity",
    "DyadicJumps",
    "EarlierGridPoint",
    "ElementwiseHuber",
    "EndPointPairs",
    "Eulerian",
    "FeatureDistance",
    "FlowMapTerm",
    "FractionOfJump",
    "Halving",
    "InstantaneousVelocity",
    "Intervals",
    "InverseStepWeight",
    "Jump",
    "JumpCoefficients",
    "JumpLengthWeight",
    "JumpStates",
    "JumpTimes",
    "KarrasGrid",
    "Lagrangian",
    "LearnedWeight",
    "MixedVelocity",
    "NoiseStates",
    "NoisedDataStates",
    "OdeSteps",
    "PreviousGridPoint",
    "PseudoHuber",
    "Ramp",
    "RandomMiddle",
    "SameNoiseStep",
    "SecondDraw",
    "SegmentEnd",
    "SelfGuidedVelocity",
    "ShrinkingStep",
    "SnrWeight",
    "SquaredError",
    "StoredPairs",
    "StoredState",
    "StoredStates",
    "StudentJump",
    "StudentStates",
    "StudentVelocity",
    "SummedTerms",
    "Switch",
    "TargetValue",
    "TeacherGuidance",
    "TeacherStates",
    "TeacherVelocity",
    "TimeDerivative",
    "TrainingStages",
    "TwoLeg",
    "UniformBelow",
    "UniformGrid",
    "VelocityDistillation",
    "WindowedReflow",
    "semigroup",
    "sinusoid",
]
