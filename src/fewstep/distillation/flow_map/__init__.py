"""Trajectory objectives as parts: a source of states, the times of a jump, a target, a metric, weights."""

from fewstep.distillation.flow_map.continuous import Eulerian, Lagrangian
from fewstep.distillation.flow_map.directions import Data, Mixed, Own, SelfGuided, Teacher
from fewstep.distillation.flow_map.frame import Boundary, Frame
from fewstep.distillation.flow_map.guidance import Guidance, sinusoid
from fewstep.distillation.flow_map.in_turn import InTurn, Together
from fewstep.distillation.flow_map.intervals import (
    Back,
    Below,
    Curved,
    Dyadic,
    Earlier,
    Edge,
    Even,
    Inside,
    Intervals,
    Other,
    Part,
    Shrinking,
    StoredPairs,
)
from fewstep.distillation.flow_map.jump import Jump, Sight, Times
from fewstep.distillation.flow_map.legs import SameNoise, Solver, Stored, Student
from fewstep.distillation.flow_map.metrics import ElementHuber, Features, PseudoHuber, Squared
from fewstep.distillation.flow_map.schedules import Halving, Ramp, Until
from fewstep.distillation.flow_map.slopes import Slope
from fewstep.distillation.flow_map.sources import (
    EndPointPairs,
    NoisedData,
    PureNoise,
    StoredPath,
    StudentRollout,
    TeacherRollout,
    Windows,
)
from fewstep.distillation.flow_map.targets import Instant, Regression, TwoLeg, semigroup
from fewstep.distillation.flow_map.term import FlowMapTerm
from fewstep.distillation.flow_map.velocity_distillation import VelocityDistillation
from fewstep.distillation.flow_map.weights import Adaptive, InverseStep, Learned, Length, Snr

__all__ = [
    "Adaptive",
    "Back",
    "Below",
    "Boundary",
    "Curved",
    "Data",
    "Dyadic",
    "Earlier",
    "Edge",
    "ElementHuber",
    "EndPointPairs",
    "Eulerian",
    "Even",
    "Features",
    "FlowMapTerm",
    "Frame",
    "Guidance",
    "Halving",
    "InTurn",
    "Inside",
    "Instant",
    "Intervals",
    "InverseStep",
    "Jump",
    "Lagrangian",
    "Learned",
    "Length",
    "Mixed",
    "NoisedData",
    "Other",
    "Own",
    "Part",
    "PseudoHuber",
    "PureNoise",
    "Ramp",
    "Regression",
    "SameNoise",
    "SelfGuided",
    "Shrinking",
    "Sight",
    "Slope",
    "Snr",
    "Solver",
    "Squared",
    "Stored",
    "StoredPairs",
    "StoredPath",
    "Student",
    "StudentRollout",
    "Teacher",
    "TeacherRollout",
    "Times",
    "Together",
    "TwoLeg",
    "Until",
    "VelocityDistillation",
    "Windows",
    "semigroup",
    "sinusoid",
]
