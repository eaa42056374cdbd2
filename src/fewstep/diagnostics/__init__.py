"""What a network and a plan do, measured without training: Jacobians, score errors, dimension, where errors arise."""

from fewstep.diagnostics.conservativity import Conservativity, conservativity
from fewstep.diagnostics.dimension import FlowDimension, flow_dimension, plateau, trace_dimension
from fewstep.diagnostics.evidence import EvidenceBound, evidence_bound
from fewstep.diagnostics.field import noise_field, noisy
from fewstep.diagnostics.flow import flow
from fewstep.diagnostics.neighbours import likelihood_dimension, local_spectrum, spectrum_dimension
from fewstep.diagnostics.truncation import Truncation, equalised_grid, truncation
from fewstep.diagnostics.weak_error import WeakError, naive_error, weak_error

__all__ = [
    "Conservativity",
    "EvidenceBound",
    "FlowDimension",
    "Truncation",
    "WeakError",
    "conservativity",
    "equalised_grid",
    "evidence_bound",
    "flow",
    "flow_dimension",
    "likelihood_dimension",
    "local_spectrum",
    "naive_error",
    "noise_field",
    "noisy",
    "plateau",
    "spectrum_dimension",
    "trace_dimension",
    "truncation",
    "weak_error",
]
