"""Fold a sequence: read it once, then any plan for several samples, ranked by confidence."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.proteins import Structure, letters_of, load_backbones
from fewstep.errors import FewstepError
from fewstep.executor import sample
from fewstep.files import read_json, read_tensors
from fewstep.plan import Plan
from fewstep.tasks.proteins.files import clean_sequence
from fewstep.tasks.proteins.geometry import centred, superposed
from fewstep.tasks.proteins.library import fragment_belief
from fewstep.tasks.proteins.network import NetworkSize, StructureNetwork
from fewstep.tasks.proteins.sampling import bound, moved, structure_denoiser, structure_plan

MOST = 512
"""Residues that are folded at once: the pairs of more take gigabytes."""


@dataclass(frozen=True, eq=False)
class Folding:
    """Structures of one sequence, the most confident first.

    Attributes:
        structures: each superposed on the first.
        confidence: the LDDT (S,) that each is expected to have, in [0, 1].
        plan: that drew them.
        seconds: of the trunk (or of looking fragments up), of the sampler, and of the confidence.
    """

    structures: tuple[Structure, ...]
    confidence: Tensor
    plan: Plan
    seconds: dict[str, float]

    @property
    def coordinates(self) -> Tensor:
        """(S, L, 3) in angstrom."""
        return torch.stack([structure.coordinates for structure in self.structures])

    def __repr__(self) -> str:
        best, spent = float(self.confidence[0]), ", ".join(f"{k} {v:.2f} s" for k, v in self.seconds.items())
        return f"Folding({len(self.structures)} structures in {self.plan.steps} evaluations, best {best:.2f}; {spent})"


def load_structure_network(folder: str | Path) -> StructureNetwork:
    """A structure predictor from a folder with config.json and weights.safetensors.

    Raises:
        FewstepError: it holds none.
    """
    place = Path(folder)
    config = read_json(place / "config.json")
    try:
        network = StructureNetwork(NetworkSize(**config))
        weights = {name: value.float() for name, value in read_tensors(place / "weights.safetensors").items()}
        network.load_state_dict(weights)
    except (TypeError, RuntimeError) as error:
        hint = "It needs config.json and weights.safetensors of a StructureNetwork."
        raise FewstepError(f"{place} holds no structure network ({error})", hint=hint) from error
    return network.eval().requires_grad_(False)


@torch.no_grad()
def fold(
    sequence: str,
    plan: Plan | None = None,
    *,
    network: StructureNetwork | None = None,
    seeds: Sequence[int] = range(5),
    recycles: int = 2,
    embedding: Tensor | None = None,
    restraints: Tensor | None = None,
    turn: bool = True,
    most: int = MOST,
    name: str = "",
) -> Folding:
    """Structures of a sequence, one per seed: by the shipped fragments, or by a network.

    What depends on the sequence alone is read once, whatever the number of samples and steps.

    Args:
        sequence: one letter a residue.
        plan: of `structure_plan`, or any for clean coordinates and sigma in angstrom; the ODE in two steps if left out.
        network: of `load_structure_network`; fragments of the shipped training chains unless given.
        seeds: of the noise and the motions.
        recycles: passes through a network's trunk.
        embedding: (L, embedding) of alignment statistics or a language model, of a network alone.
        restraints: known distances (L, L) in angstrom, 0 where unknown.
        turn: centre and turn at every call, as networks are trained.
        most: residues at most.
        name: of the structures.

    Raises:
        FewstepError: a sequence that cannot be folded; conditions that do not fit it.
    """
    letters = clean_sequence(sequence, most)
    plan = plan if plan is not None else structure_plan()
    begun = time.perf_counter()
    denoise, judge = _read(network, letters, embedding, restraints, recycles)
    trunk = time.perf_counter()
    x = sample(plan, moved(denoise, seeds if turn else None), seeds=seeds, shape=(len(letters), 3))
    sampled = time.perf_counter()
    confidence = judge(x)
    order = confidence.argsort(descending=True, stable=True)
    x = centred(x[order])
    x = superposed(x, x[:1].expand_as(x))
    seconds = {"trunk": trunk - begun, "sampler": sampled - trunk, "confidence": time.perf_counter() - sampled}
    names = [f"{name or 'fold'}-{seeds[k]}" for k in order.tolist()]
    found = tuple(Structure(letters, each, own) for own, each in zip(names, x, strict=True))
    return Folding(found, confidence[order], plan, seconds)


def _read(
    network: StructureNetwork | None,
    letters: str,
    embedding: Tensor | None,
    restraints: Tensor | None,
    recycles: int,
) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The denoiser of a sequence, and what says how good its structures are."""
    length = len(letters)
    if restraints is not None and tuple(restraints.shape) != (length, length):
        raise FewstepError(f"restraints of this sequence must be {(length, length)}", value=tuple(restraints.shape))
    told = None if restraints is None else restraints.unsqueeze(0)
    if network is None:
        if embedding is not None:
            raise FewstepError("fragments take no embedding", hint="Give a network, or leave it out.")
        belief = fragment_belief([letters], load_backbones("train"), told)
        return belief, belief.expected_lddt
    wanted = (length, network.size.embedding)
    if embedding is not None and tuple(embedding.shape) != wanted:
        raise FewstepError(f"the embedding of this sequence must be {wanted}", value=tuple(embedding.shape))
    if recycles < 1:
        raise FewstepError("the trunk runs once at least", value=recycles, hint="Use recycles=1.")
    rows = None if embedding is None else embedding.unsqueeze(0)
    read = network.read(letters_of(letters).unsqueeze(0), rows, told, recycles)
    return bound(structure_denoiser(network), read=read), partial(network.sure, read=read)
