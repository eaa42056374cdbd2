"""Everything that a method is put together from, in one place: what presets import."""

from __future__ import annotations

from fewstep.distillation.adversary import DiscriminatorLoss, GeneratorLoss
from fewstep.distillation.chain import Chain, evenly, one_step_time
from fewstep.distillation.core import Rollout, Term
from fewstep.distillation.discriminator import FeatureSource, Heads, NetworkFeatures, samples
from fewstep.distillation.distances import (
    FeatureDistance,
    HuberGradient,
    Metric,
    PowerGradient,
    PseudoHuber,
    SquaredError,
    squared,
)
from fewstep.distillation.flow_map.continuous import Eulerian, Lagrangian
from fewstep.distillation.flow_map.directions import (
    MixedVelocity,
    SelfGuidedVelocity,
    VelocitySource,
    data_velocity,
    student_velocity,
    teacher_velocity,
)
from fewstep.distillation.flow_map.frame import JumpCoefficients, lcm_boundary
from fewstep.distillation.flow_map.guidance import TeacherGuidance, sinusoid
from fewstep.distillation.flow_map.in_turn import SummedTerms, TrainingStages
from fewstep.distillation.flow_map.intervals import (
    DyadicJumps,
    FractionOfJump,
    Intervals,
    KarrasGrid,
    PreviousGridPoint,
    RandomMiddle,
    SecondDraw,
    ShrinkingStep,
    StoredPairs,
    UniformBelow,
    UniformGrid,
)
from fewstep.distillation.flow_map.jump import Jump, JumpStates, JumpTimes
from fewstep.distillation.flow_map.key_states import KeyStateDiscriminatorLoss, KeyStateGeneratorLoss
from fewstep.distillation.flow_map.legs import OdeSteps, StudentJump, same_noise_step, stored_state
from fewstep.distillation.flow_map.schedules import Halving, Ramp, Switch
from fewstep.distillation.flow_map.slopes import TimeDerivative
from fewstep.distillation.flow_map.sources import (
    EndPointPairs,
    StudentStates,
    TeacherStates,
    WindowedReflow,
    noised_data,
    pure_noise,
    stored_states,
)
from fewstep.distillation.flow_map.targets import InstantaneousVelocity, TargetValue, TwoLeg, semigroup
from fewstep.distillation.flow_map.term import FlowMapTerm
from fewstep.distillation.flow_map.velocity_distillation import VelocityDistillation
from fewstep.distillation.flow_map.weights import (
    AdaptiveWeight,
    JumpLengthWeight,
    SnrWeight,
    inverse_step,
    learned_uncertainty,
)
from fewstep.distillation.method import (
    Adversary,
    Critic,
    Method,
    OptimizerSettings,
    TargetNetwork,
    UpdateRule,
    needing,
    preset,
)
from fewstep.distillation.moments import GaussianKernel, Kernel, MaximumMeanDiscrepancy, PolynomialKernel, flat
from fewstep.distillation.rollout import BackwardSimulation, NoisedData, one_step
from fewstep.distillation.score.branch import ScoreDistillation, scheduled
from fewstep.distillation.score.critic import DenoisingLoss
from fewstep.distillation.score.directions import DistributionMatching, GuidanceDifference, ScoreIdentity, WeightedSum
from fewstep.distillation.score.regularisers import MeanVariancePenalty, PairedRegression, RewardTerm
from fewstep.distillation.score.relay import LaterCall
from fewstep.distillation.score.view import direct, onward
from fewstep.distillation.score.weights import DensityRatioWeight, ErrorNormalizer, RewardWeight, ScaleWeight, Weight
from fewstep.distillation.times import (
    TimeDistribution,
    below_last_call,
    everywhere,
    karras_times,
    last_interval,
    log_normal_times,
    logit_normal_times,
    straight,
    time_at,
    uniform_times,
)
