"""Training of the small structure predictor: crops of chains, several noised and turned copies of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.proteins import Structure, letters_of
from fewstep.files import write_tensors
from fewstep.tasks.proteins.conditions import restraints_between
from fewstep.tasks.proteins.geometry import centred, rotations
from fewstep.tasks.proteins.losses import diffusion_loss
from fewstep.tasks.proteins.network import StructureNetwork, distance_bins
from fewstep.tasks.proteins.sampling import SIGMA_DATA, bound, structure_denoiser
from fewstep.tasks.proteins.scores import distances, lddt
from fewstep.train.stage import Stage, StageBatch


@dataclass(frozen=True)
class StructureTraining:
    """How batches of the small predictor are made.

    Attributes:
        lengths: of the crops; a batch has one of them.
        structures: crops in a batch.
        copies: noised and turned copies of each (48 in AlphaFold 3).
        with_embedding: share of the crops that are given their embedding, where there is one.
        with_restraints: share of the crops that are given restraints.
        share: least and largest share of the pairs that are restrained.
        recycles: largest number of passes through the trunk.
        distogram: weight of the loss of the trunk's own distances (0.03 in AlphaFold 3, with more to learn from).
    """

    lengths: tuple[int, ...] = (24, 32)
    structures: int = 6
    copies: int = 5
    with_embedding: float = 0.6
    with_restraints: float = 0.75
    share: tuple[float, float] = (0.01, 0.2)
    recycles: int = 2
    distogram: float = 0.3


def structure_stage(
    network: StructureNetwork,
    chains: Sequence[Structure],
    how: StructureTraining,
    embeddings: Mapping[str, Tensor] | None = None,
) -> Stage:
    """The training as a stage of `fewstep.train.loop.fit`; it saves `weights.safetensors`.

    Args:
        network: what is trained, in place.
        chains: to cut crops from.
        how: the batches.
        embeddings: (L, embedding) of some chains by name.
    """
    places = {n: _places(chains, n) for n in how.lengths}
    known = embeddings or {}
    width = network.size.embedding
    denoiser = structure_denoiser(network)

    def batch(generator: torch.Generator) -> StageBatch:
        length = how.lengths[int(torch.randint(len(how.lengths), (), generator=generator))]
        picks = torch.randint(len(places[length]), (how.structures,), generator=generator).tolist()
        letters, clean, embedding, restraints = [], [], [], []
        for chain, start in (places[length][k] for k in picks):
            part = chain.part(start, length)
            letters.append(letters_of(part.sequence))
            clean.append(centred(part.coordinates))
            given, told, share = torch.rand(3, generator=generator).tolist()
            rows = known.get(chain.name) if given < how.with_embedding else None
            embedding.append(torch.zeros(length, width) if rows is None else rows[start : start + length])
            least, most = how.share
            amount = least * (most / least) ** share if told < how.with_restraints else 0.0
            restraints.append(restraints_between(part.coordinates, amount, generator))
        stacked = {"letters": letters, "clean": clean, "embedding": embedding, "restraints": restraints}
        return {name: torch.stack(rows) for name, rows in stacked.items()}

    def loss(batch: StageBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        recycles = 1 + int(torch.randint(how.recycles, (), generator=generator))
        read = network.read(batch["letters"], batch["embedding"], batch["restraints"], recycles)
        clean = batch["clean"].repeat_interleave(how.copies, 0)
        normal = torch.randn(len(clean), 8, generator=generator)
        clean = clean @ rotations(normal[:, :4]) + normal[:, None, 4:7]
        sigma = SIGMA_DATA * torch.exp(-1.2 + 1.5 * normal[:, 7])
        noised = clean + sigma[:, None, None] * torch.randn(clean.shape, generator=generator)
        found = bound(denoiser, read=read.repeated(how.copies))(noised, sigma)
        diffusion = diffusion_loss(found, clean, sigma, SIGMA_DATA).mean()
        wanted = distance_bins(distances(batch["clean"]), network.size.restraint_bins)
        distogram = torch.nn.functional.nll_loss(read.distogram.flatten(0, 2), wanted.flatten())
        some = slice(None, None, how.copies)
        sure = network.sure(found[some], read)
        confidence = (sure - lddt(found[some].detach(), clean[some]).float()).square().mean()
        total = 4 * diffusion + how.distogram * distogram + confidence
        return total, {"diffusion": diffusion.item(), "distogram": distogram.item(), "confidence": confidence.item()}

    def save(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "weights.safetensors", network.state_dict())

    return Stage({"network": network}, batch, loss, save)


def _places(chains: Sequence[Structure], length: int) -> list[tuple[Structure, int]]:
    """Every unbroken crop as its chain and its first residue."""
    return [(chain, start) for chain in chains for start in chain.unbroken_starts(length)]
