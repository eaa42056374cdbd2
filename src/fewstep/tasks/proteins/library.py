"""A predictor without training: fragments of known chains that fit a question, as conformers with thermal motion.

What a network learns is looked up here. The denoiser is that of a mixture whose members are superposed on the state, so
it has no direction, and what samplers do to it is what they do to a conditional distribution of real structures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.data.proteins import Structure, fragments, letters_of
from fewstep.errors import FewstepError
from fewstep.tasks.proteins.geometry import centred, superposed
from fewstep.tasks.proteins.scores import lddt

MEMBERS, THERMAL = 48, 0.5
"""Fragments that a belief holds at most, and their thermal deviation in angstrom."""
TOLERANCE, SIMILARITY = 2.0, 1.0
"""Error of a told distance in angstrom, and what an equal letter is worth in log likelihood."""


@dataclass(frozen=True, eq=False)
class FragmentBelief:
    """What a library holds possible: conformers of each of N questions, and their log weights.

    Attributes:
        traces: (N, K, L, 3), centred.
        weights: (N, K).
    """

    traces: Tensor
    weights: Tensor

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Clean coordinates (B, L, 3) of states (B, L, 3) at sigma; B is N, or any number for one question.

        With members a_k moved rigidly onto the state and thermal variance h, the posterior mean of the mixture

            Sum_k w_k (a_k + h / (h + sigma^2) (x - a_k)),  w_k ~ exp(weight_k - |x - a_k|^2 / 2 (h + sigma^2))
        """
        traces = self.traces.to(x).expand(len(x), -1, -1, -1)
        states = centred(x).unsqueeze(1).expand_as(traces)
        there = superposed(traces.flatten(0, 1), states.flatten(0, 1)).reshape(traces.shape)
        spread = THERMAL**2 + float(sigma) ** 2
        away = (states - there).square().sum((2, 3))
        share = (self.weights.to(x) - away / (2 * spread)).softmax(1)[..., None, None]
        return (share * (there + THERMAL**2 / spread * (states - there))).sum(1)

    def expected_lddt(self, x: Tensor) -> Tensor:
        """The LDDT (B,) that structures (B, L, 3) have on average if the belief is right."""
        share = self.weights.softmax(1).expand(len(x), -1)
        each = [lddt(x, self.traces[:, k].to(x)) for k in range(self.traces.shape[1])]
        return (share * torch.stack(each, 1)).sum(1)


def log_fit(sequences: Sequence[str], pool: Sequence[Structure], restraints: Tensor | None = None) -> Tensor:
    """Log likelihood (N, M) of questions under fragments: of the told distances, or of the letters where none are told.

    Args:
        sequences: N of one length.
        pool: M fragments of that length.
        restraints: (N, L, L) in angstrom, 0 where unknown.
    """
    if restraints is None:
        known = torch.stack([letters_of(part.sequence) for part in pool])
        return SIMILARITY * torch.stack([(known == letters_of(sequence)).sum(1).float() for sequence in sequences])
    traces = torch.stack([part.coordinates for part in pool])
    found = []
    for told in restraints:
        i, j = torch.triu(told).nonzero().unbind(1)
        apart = (traces[:, i] - traces[:, j]).norm(dim=-1)
        found.append(-(apart - told[i, j]).square().sum(1) / (2 * TOLERANCE**2))
    return torch.stack(found)


def fragment_belief(
    sequences: Sequence[str],
    chains: Sequence[Structure],
    restraints: Tensor | None = None,
    without: Sequence[str] = (),
    stride: int = 2,
) -> FragmentBelief:
    """The fragments of chains that fit each question best.

    Args:
        sequences: N of one length.
        chains: known structures.
        restraints: (N, L, L) known distances in angstrom, 0 where unknown; the letters count where none are given.
        without: for each question the name of a chain that is left out.
        stride: every so many residues a fragment begins.

    Raises:
        FewstepError: no chain has unbroken fragments of that length.
    """
    length = len(sequences[0])
    pool = fragments(chains, length, stride)
    if len(pool) < 2:
        hint = "Fold it in parts, or give the folder of a network (--model)."
        raise FewstepError("the known chains have no unbroken fragments of this length", value=length, hint=hint)
    fit = log_fit(sequences, pool, restraints)
    if without:
        own = torch.tensor([[part.name.rpartition(":")[0] == name for part in pool] for name in without])
        fit = fit.masked_fill(own, -torch.inf)
    weights, picks = fit.topk(min(MEMBERS, len(pool)), dim=1)
    return FragmentBelief(centred(torch.stack([part.coordinates for part in pool]))[picks], weights)
