"""Masked discrete diffusion: process, denoiser, plans of reveals and their executor; knows torch alone."""

from fewstep.discrete.bound import negative_evidence_bound
from fewstep.discrete.denoiser import TokenDenoiser, TokenNetwork
from fewstep.discrete.enumeration import TokenLaws, enumerated_law
from fewstep.discrete.plan import Order, Reveal, RevealPlan, reveal_plan
from fewstep.discrete.process import MaskedDiffusion
from fewstep.discrete.sampling import sample_tokens
from fewstep.discrete.tilting import tilted_tokens
from fewstep.discrete.transition import TokenTransition, reveal_probability, token_transition

__all__ = [
    "MaskedDiffusion",
    "Order",
    "Reveal",
    "RevealPlan",
    "TokenDenoiser",
    "TokenLaws",
    "TokenNetwork",
    "TokenTransition",
    "enumerated_law",
    "negative_evidence_bound",
    "reveal_plan",
    "reveal_probability",
    "sample_tokens",
    "tilted_tokens",
    "token_transition",
]
