"""Fold a sequence: the trunk once, then any plan for several samples, ranked by confidence."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.proteins import Structure, letters_of
from fewstep.errors import FewstepError
from fewstep.executor import sample
from fewstep.files import read_json, read_tensors
from fewstep.plan import Plan
from fewstep.tasks.proteins.files import clean_sequence
from fewstep.tasks.proteins.geometry import centred, superposed
from fewstep.tasks.proteins.network import Conditioning, NetworkSize, StructureNetwork
from fewstep.tasks.proteins.sampling import bound, moved, structure_denoiser, structure_plan
from fewstep.zoo import shipped

MODEL = "protein-trace"
MOST = 512
"""Residues that are folded at once: the pairs of more take gigabytes."""


@dataclass(frozen=True, eq=False)
class Folding:
    """Structures of one sequence, the most confident first.

    Attributes:
        structures: each superposed on the first.
        confidence: the LDDT (S,) that each is expected to have, in [0, 1].
        plan: that drew them.
        seconds: of the trunk, of the sampler, and of the confidence.
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


def load_structure_network(folder: str | Path = "") -> StructureNetwork:
    """A small structure predictor: the one that ships with the package, or that of a folder.

    Raises:
        FewstepError: a folder that holds none.
    """
    place = Path(folder) if folder else shipped(MODEL)
    config = read_json(place / "config.json")
    try:
        network = StructureNetwork(NetworkSize(**config))
        weights = {name: value.float() for name, value in read_tensors(place / "weights.safetensors").items()}
        network.load_state_dict(weights)
    except (TypeError, RuntimeError, json.JSONDecodeError) as error:
        hint = "It needs config.json and weights.safetensors of a StructureNetwork."
        raise FewstepError(f"{place} holds no structure network ({error})", hint=hint) from error
    return network.eval().requires_grad_(False)


@torch.no_grad()
def fold(
    network: StructureNetwork,
    sequence: str,
    plan: Plan | None = None,
    *,
    seeds: Sequence[int] = range(5),
    recycles: int = 2,
    embedding: Tensor | None = None,
    restraints: Tensor | None = None,
    turn: bool = True,
    most: int = MOST,
    name: str = "",
) -> Folding:
    """Structures of a sequence, one per seed.

    The trunk runs once, whatever the number of samples and steps; the denoiser's pair biases are kept.

    Args:
        network: see `load_structure_network`.
        sequence: one letter a residue.
        plan: of `structure_plan`, or any for `CLEAN` and sigma in angstrom; the ODE in two steps unless given.
        seeds: of the noise and the motions.
        recycles: passes through the trunk's blocks.
        embedding: (L, embedding) of alignment statistics or a language model; left out unless given.
        restraints: known distances (L, L) in angstrom, 0 where unknown; left out unless given.
        turn: centre and turn at every call, as the network was trained.
        most: residues at most.
        name: of the structures.

    Raises:
        FewstepError: a sequence that cannot be folded; conditions that do not fit it.
    """
    letters = clean_sequence(sequence, most)
    plan = plan if plan is not None else structure_plan()
    begun = time.perf_counter()
    read = _read(network, letters, embedding, restraints, recycles)
    trunk = time.perf_counter()
    denoise = bound(structure_denoiser(network), read=read)
    x = sample(plan, moved(denoise, seeds if turn else None), seeds=seeds, shape=(len(letters), 3))
    sampled = time.perf_counter()
    confidence = network.sure(x, read)
    order = confidence.argsort(descending=True, stable=True)
    x = centred(x[order])
    x = superposed(x, x[:1].expand_as(x))
    seconds = {"trunk": trunk - begun, "sampler": sampled - trunk, "confidence": time.perf_counter() - sampled}
    names = [f"{name or 'fold'}-{seeds[k]}" for k in order.tolist()]
    found = tuple(Structure(letters, each, own) for own, each in zip(names, x, strict=True))
    return Folding(found, confidence[order], plan, seconds)


def _read(
    network: StructureNetwork, letters: str, embedding: Tensor | None, restraints: Tensor | None, recycles: int
) -> Conditioning:
    length = len(letters)
    wanted = {"embedding": (length, network.size.embedding), "restraints": (length, length)}
    for what, given in (("embedding", embedding), ("restraints", restraints)):
        if given is not None and tuple(given.shape) != wanted[what]:
            raise FewstepError(f"{what} of this sequence must be {wanted[what]}", value=tuple(given.shape))
    if recycles < 1:
        raise FewstepError("the trunk runs once at least", value=recycles, hint="Use recycles=1.")
    first, second = (None if given is None else given.unsqueeze(0) for given in (embedding, restraints))
    return network.read(letters_of(letters).unsqueeze(0), first, second, recycles)
