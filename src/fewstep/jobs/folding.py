"""Sequences and files of structures, folded by a plan, beside many steps; the page that shows what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.proteins import LETTERS, UNKNOWN, Structure
from fewstep.errors import FewstepError
from fewstep.files import user_path
from fewstep.report import Block, Code, Column, FactList, Figure, Note, Page, Table, TableRow, save_page
from fewstep.tasks.proteins.files import read_fasta, read_structure
from fewstep.tasks.proteins.folding import Folding
from fewstep.tasks.proteins.geometry import superposed
from fewstep.tasks.proteins.scores import bond_error, clashes, diversity, lddt, rmsd
from fewstep.tasks.proteins.viewer import traces_svg

STRUCTURES, SEQUENCES = (".pdb", ".ent", ".cif", ".mmcif"), (".fasta", ".fa", ".faa", ".txt")

LIMITS = (
    "C-alpha atoms alone, looked up among 80 chains or by a small network: it shows what samplers do, and predicts no "
    "structure that anyone should use."
)


@dataclass(frozen=True)
class Query:
    """What is folded: a sequence, the structure it was read from if there was one, and what was odd in the file."""

    name: str
    sequence: str
    truth: Structure | None = None
    notes: tuple[str, ...] = ()


def queries(source: str, chain: str = "") -> list[Query]:
    """What a user named: a file of structures or sequences, or the sequence itself.

    Raises:
        FewstepError: a file of another kind, or neither a file nor a sequence.
    """
    place = user_path(source) if len(source) < 1000 else None
    kind = "" if place is None else place.suffix.lower()
    if place is not None and kind in STRUCTURES:
        truth, notes = read_structure(place, chain)
        return [Query(place.stem, truth.sequence, truth, tuple(notes))]
    if place is not None and kind in SEQUENCES:
        return [Query(name, sequence) for name, sequence in read_fasta(place)]
    if place is not None and (place.exists() or "/" in source or kind):
        hint = f"Give {', '.join(STRUCTURES)} for structures and {', '.join(SEQUENCES)} for sequences."
        raise FewstepError("this file is neither a structure nor a sequence", value=source, hint=hint)
    if not any(letter in LETTERS + UNKNOWN for letter in source.upper()):
        raise FewstepError("this is neither a file nor a sequence", value=source, hint="Give letters of amino acids.")
    return [Query("sequence", source)]


def measures(folding: Folding, truth: Structure | None) -> dict[str, Any]:
    """Numbers of an ensemble: confidence, diversity, geometry, nearness to the truth, seconds."""
    x = folding.coordinates
    found: dict[str, Any] = {
        "confidence": float(folding.confidence[0]),
        "diversity": float(diversity(x)),
        "clashes": float(clashes(x).mean()),
        "bond error": float(bond_error(x).mean()),
        "lddt": None,
        "rmsd": None,
        **folding.seconds,
    }
    if truth is not None:
        found["lddt"], found["rmsd"] = (float(score(x[:1], truth.coordinates)) for score in (lddt, rmsd))
    return found


COLUMNS = {
    "confidence": Column("confidence", better=None, note="LDDT that the best is expected to have"),
    "lddt": Column("LDDT of the best", better="higher"),
    "rmsd": Column("RMSD of the best", "angstrom", "lower", 2),
    "diversity": Column("spread of the samples", "angstrom", digits=2),
    "clashes": Column("clashes a residue", better="lower"),
    "bond error": Column("bond error", "angstrom", "lower"),
    "trunk": Column("trunk", "s", digits=2),
    "sampler": Column("sampler", "s", "lower", 2),
}


def report(query: Query, foldings: Mapping[str, Folding], path: Path) -> Path:
    """A page with the structures of several plans, their numbers, what they cost, and how to use the plan elsewhere.

    Args:
        query: what was folded.
        foldings: by caption; the first is what was asked for.
        path: of the page.
    """
    numbers = {caption: measures(folding, query.truth) for caption, folding in foldings.items()}
    shown = {name: column for name, column in COLUMNS.items() if any(n[name] is not None for n in numbers.values())}
    rows = [
        TableRow(caption, [foldings[caption].plan.steps, *(n[name] for name in shown)])
        for caption, n in numbers.items()
    ]
    first, *_ = foldings
    blocks: list[Block] = [
        Table("What differs", [Column("evaluations", digits=0), *shown.values()], rows, corner="sampler"),
        Figure("The best of each", best_of_each(query, foldings), "Turns by itself; a dot is the first residue."),
        *(
            Figure(
                f"Samples: {caption}",
                traces_svg(list(folding.coordinates), [f"{c:.2f}" for c in folding.confidence.tolist()]),
                "Each with its confidence.",
            )
            for caption, folding in foldings.items()
        ),
        Note(_cost(foldings), "What it cost"),
    ]
    blocks += [Note(note, tone="warning") for note in query.notes]
    blocks.append(Note(LIMITS, tone="warning"))
    blocks.append(Code("The same plan in Boltz or Protenix", _elsewhere(foldings[first])))
    blocks.append(FactList("Sequence", {"residues": len(query.sequence), "letters": query.sequence}))
    return save_page(Page(f"Fold of {query.name}", _summary(numbers, foldings), blocks), path)


def best_of_each(query: Query, foldings: Mapping[str, Folding]) -> str:
    """The most confident structure of every plan over each other, and the truth."""
    traces: list[Tensor] = [folding.coordinates[0] for folding in foldings.values()]
    labels = list(foldings)
    if query.truth is not None:
        traces, labels = [query.truth.coordinates, *traces], ["the file", *labels]
    base = traces[0].unsqueeze(0)
    return traces_svg([superposed(x.unsqueeze(0), base)[0] for x in traces], labels)


def _cost(foldings: Mapping[str, Folding]) -> str:
    told = []
    for caption, folding in foldings.items():
        trunk, sampler = folding.seconds["trunk"], folding.seconds["sampler"]
        share = 100 * trunk / (trunk + sampler)
        told.append(f"{caption}: trunk {trunk:.2f} s, sampler {sampler:.2f} s, of which the trunk is {share:.0f} %.")
    end = (
        "The trunk (or the look-up of fragments) runs once for all samples: where it takes most of the time, fewer "
        "steps save nothing more."
    )
    return "\n\n".join([*told, end])


def _elsewhere(folding: Folding) -> str:
    origin = folding.plan.origin
    made = f'structure_plan("{origin.get("sampler", "protenix-mini")}", {folding.plan.steps})'
    return (
        "from fewstep.tasks.proteins import sampling_by, structure_plan\n\n"
        f"with sampling_by({made}, model.structure_module):  # Boltz; Protenix: protenix.model.protenix\n    model(...)"
    )


def _summary(numbers: Mapping[str, dict[str, Any]], foldings: Mapping[str, Folding]) -> str:
    told = [
        f"{foldings[caption].plan.steps} evaluations took {n['sampler']:.2f} s"
        + (f" (LDDT {n['lddt']:.2f})" if n["lddt"] is not None else "")
        for caption, n in numbers.items()
    ]
    return f"{', '.join(told)}; the trunk {next(iter(numbers.values()))['trunk']:.2f} s."


def seeds_from(first: int, count: int) -> Sequence[int]:
    """Seeds of so many samples."""
    return range(first, first + count)


def restraints_of(query: Query, share: float, seed: int) -> Tensor | None:
    """A share of the distances of the structure that was given.

    Raises:
        FewstepError: a sequence has none.
    """
    from fewstep.tasks.proteins.conditions import restraints_between

    if not share:
        return None
    if query.truth is None:
        raise FewstepError("only a structure has distances to restrain", value=query.name, hint="Give a PDB file.")
    return restraints_between(query.truth.coordinates, share, torch.Generator().manual_seed(seed))
