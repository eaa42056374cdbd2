"""`fewstep.fold`: protein structures in few steps."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fewstep.jobs.folding import queries, seeds_from
from fewstep.plan import Plan
from fewstep.tasks.proteins.folding import Folding, load_structure_network
from fewstep.tasks.proteins.folding import fold as fold_sequence
from fewstep.tasks.proteins.sampling import structure_plan


def fold(
    source: str,
    steps: int = 2,
    *,
    sampler: str = "protenix-mini",
    plan: Plan | None = None,
    samples: int = 5,
    seed: int = 0,
    recycles: int = 2,
    embedding: Tensor | None = None,
    restraints: Tensor | None = None,
    model: str | Path = "",
) -> Folding:
    """Structures of a sequence by fragments of known chains, the most confident first; `fewstep fold`.

        folding = fs.fold("GSHMKDELKKAIEEAKKLGN", steps=2)
        folding.coordinates                                   # (5, 20, 3) in angstrom

    C-alpha atoms alone, and no structure that anyone should use: it shows what samplers do. No network ships; what one
    would learn is looked up among 80 chains. Plans run in Boltz and Protenix by `fewstep.tasks.proteins.sampling_by`.

    Args:
        source: a sequence, a FASTA file (its first sequence), or a PDB or mmCIF file.
        steps: of the sampler's schedule.
        sampler: one of `fewstep.tasks.proteins.SAMPLERS`.
        plan: any for clean coordinates and sigma in angstrom, instead of steps and sampler.
        samples: structures to draw.
        seed: of the first; the others count on.
        recycles: passes through the trunk.
        embedding: (L, 21) of alignment statistics (`fewstep.tasks.proteins.alignment_profile`).
        restraints: known distances (L, L) in angstrom, 0 where unknown.
        model: folder of a structure network, instead of the fragments.

    Raises:
        FewstepError: a sequence or file that cannot be folded, an unknown sampler.
    """
    query = queries(source)[0]
    network = load_structure_network(model) if model else None
    used = plan if plan is not None else structure_plan(sampler, steps)
    return fold_sequence(
        query.sequence, used, network=network, seeds=seeds_from(seed, samples), recycles=recycles,
        embedding=embedding, restraints=restraints, name=query.name,
    )  # fmt: skip
