"""Everything that a method is put together from, in one place: what presets import."""

from __future__ import annotations

from fewstep.distillation.adversary import discriminator_loss, generator_loss
from fewstep.distillation.chain import Chain, ancestral_steps, eta_steps, evenly, flow_sde_steps, one_step_time
from fewstep.distillation.core import Rollout, Term
from fewstep.distillation.discriminator import FeatureSource, NetworkFeatures, discriminator_heads, samples
from fewstep.distillation.distances import (
    Metric,
    feature_distance,
    huber_gradient,
    power_gradient,
    pseudo_huber,
    squared,
    squared_error,
)
from fewstep.distillation.drifting import drifting_loss
from fewstep.distillation.flow_map.continuous import eulerian_residual, eulerian_target, lagrangian_target
from fewstep.distillation.flow_map.directions import (
    VelocitySource,
    data_velocity,
    mixed_velocity,
    self_guided_velocity,
    student_velocity,
    teacher_velocity,
)
from fewstep.distillation.flow_map.frame import JumpCoefficients, lcm_boundary
from fewstep.distillation.flow_map.guidance import TeacherGuidance, sinusoid
from fewstep.distillation.flow_map.in_turn import summed_terms, training_stages
from fewstep.distillation.flow_map.intervals import (
    dyadic_jumps,
    fraction_of_jump,
    grid_jump_times,
    jump_times,
    karras_grid,
    previous_grid_point,
    random_middle,
    second_draw,
    shrinking_step,
    stored_pairs,
    uniform_below,
    uniform_grid,
)
from fewstep.distillation.flow_map.jump import Jump, JumpStates, JumpTimes
from fewstep.distillation.flow_map.key_states import key_state_discriminator_loss, key_state_generator_loss
from fewstep.distillation.flow_map.legs import ode_steps, same_noise_step, stored_state, student_jump
from fewstep.distillation.flow_map.schedules import halving, ramp, switch
from fewstep.distillation.flow_map.slopes import TimeDerivative
from fewstep.distillation.flow_map.sources import (
    end_point_pairs,
    noised_data,
    pure_noise,
    stored_states,
    student_states,
    teacher_states,
    windowed_reflow,
)
from fewstep.distillation.flow_map.targets import TargetValue, instantaneous_velocity, semigroup, two_leg
from fewstep.distillation.flow_map.term import flow_map_term
from fewstep.distillation.flow_map.velocity_distillation import velocity_distillation
from fewstep.distillation.flow_map.weights import (
    adaptive_weight,
    inverse_step,
    jump_length_weight,
    learned_uncertainty,
    snr_weight,
)
from fewstep.distillation.method import Method, needing, preset
from fewstep.distillation.moments import Kernel, flat, gaussian_kernel, maximum_mean_discrepancy, polynomial_kernel
from fewstep.distillation.part import part
from fewstep.distillation.roles import Adversary, Critic, OptimizerSettings, TargetNetwork, UpdateRule
from fewstep.distillation.rollout import (
    backward_simulation,
    condition_rollout,
    noised_data_rollout,
    one_step,
    two_calls,
)
from fewstep.distillation.score.branch import scheduled, score_distillation
from fewstep.distillation.score.critic import denoising_loss
from fewstep.distillation.score.directions import (
    distribution_matching,
    guidance_difference,
    score_identity,
    score_sampling,
    weighted_sum,
)
from fewstep.distillation.score.regularisers import (
    data_regression,
    mean_variance_penalty,
    paired_regression,
    reward_term,
)
from fewstep.distillation.score.relay import later_call
from fewstep.distillation.score.view import direct, onward
from fewstep.distillation.score.weights import (
    Weight,
    density_ratio_weight,
    error_normalizer,
    reward_weight,
    scale_weight,
)
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
from fewstep.distillation.two_way import two_way_regression
