"""Structures and sequences in files: PDB and FASTA by hand, mmCIF through gemmi (extra `proteins`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.proteins import LETTERS, UNKNOWN, Structure
from fewstep.errors import FewstepError
from fewstep.files import read_text, user_path, write_text
from fewstep.ownership import Over

CODES = {
    "ALA": "A", "ARG": "R", "ASN": "N", "ASP": "D", "CYS": "C", "GLN": "Q", "GLU": "E", "GLY": "G", "HIS": "H",
    "ILE": "I", "LEU": "L", "LYS": "K", "MET": "M", "PHE": "F", "PRO": "P", "SER": "S", "THR": "T", "TRP": "W",
    "TYR": "Y", "VAL": "V",
}  # fmt: skip
MODIFIED = {
    "MSE": "M", "SEP": "S", "TPO": "T", "PTR": "Y", "HYP": "P", "CSO": "C", "CME": "C", "MLY": "K", "M3L": "K",
    "PCA": "E", "HSD": "H", "HSE": "H", "HSP": "H", "HID": "H", "HIE": "H", "HIP": "H", "CYX": "C", "CYM": "C",
    "ASH": "D", "GLH": "E",
}  # fmt: skip
"""Residues that stand for one of the twenty, and other names of these."""
LARGEST = 64 << 20
"""Size of a file of structures or sequences that is read, in bytes."""
APART = (2.6, 4.4)
"""Distances of neighbours that a peptide bond joins, in angstrom (2.9 where it is cis)."""


@dataclass(frozen=True)
class _Atom:
    """A C-alpha atom as the file has it."""

    residue: str
    number: int
    place: tuple[float, float, float]
    occupancy: float


@dataclass
class _Chain:
    """What is read of one chain: atoms by residue, residues that were seen, and what is to be said of them."""

    atoms: dict[tuple[int, str], list[_Atom]] = field(default_factory=dict)
    seen: dict[tuple[int, str], str] = field(default_factory=dict)


def read_structure(path: str | Path, chain: str = "", model: int = 1) -> tuple[Structure, list[str]]:
    """The C-alpha trace of a chain in a PDB or mmCIF file, and what a reader should know about it.

    Of several positions of an atom the one of the highest occupancy is read. Residues without a C-alpha atom are left
    out and named; modified ones stand for the amino acid they come from, others are X. Nothing is guessed in gaps.

    Args:
        path: .pdb or .ent; .cif needs gemmi.
        chain: its letter; the first chain with protein unless given.
        model: which of several, counted from 1.

    Raises:
        FewstepError: no such file, chain or model; no protein in it; coordinates that are no numbers.
    """
    place = user_path(path)
    text = _from_mmcif(place) if place.suffix.lower() in (".cif", ".mmcif") else read_text(place, most=LARGEST)
    models = _models(text, str(path))
    if not 1 <= model <= len(models):
        raise FewstepError(f"{path} has {len(models)} model(s)", value=model, hint="Count from 1.")
    notes = [f"{len(models)} models: the one of number {model} was read."] if len(models) > 1 else []
    chains = {name: found for name, found in models[model - 1].items() if found.atoms}
    if not chains:
        hint = "It must hold ATOM records with C-alpha atoms (CA) of amino acids."
        raise FewstepError(f"{path} has no protein chain", hint=hint)
    if chain and chain not in chains:
        raise FewstepError(f"{path} has no such protein chain", value=chain, hint=f"It has {', '.join(chains)}.")
    name = chain or next(iter(chains))
    if len(chains) > 1 and not chain:
        notes.append(f"chains {', '.join(chains)}: {name} was read.")
    return _structure(chains[name], f"{place.stem}_{name.strip() or 'A'}", notes)


def _structure(found: _Chain, name: str, notes: list[str]) -> tuple[Structure, list[str]]:
    letters, places, numbers = [], [], []
    others: list[str] = []
    for key, residue in found.seen.items():
        if key not in found.atoms:
            others.append(f"{residue} {key[0]}{key[1]}")
            continue
        best = max(found.atoms[key], key=lambda atom: atom.occupancy)
        letters.append(CODES.get(best.residue) or MODIFIED.get(best.residue, UNKNOWN))
        places.append(best.place)
        numbers.append(best.number)
    if others:
        notes.append(f"without a C-alpha atom, left out: {_listed(others)}.")
    altered = [f"{a[0].residue} {a[0].number}" for a in found.atoms.values() if len(a) > 1]
    if altered:
        notes.append(f"several positions, the most occupied was read: {_listed(altered)}.")
    changed = [f"{a[0].residue} {a[0].number}" for a in found.atoms.values() if a[0].residue not in CODES]
    if changed:
        notes.append(f"not of the twenty amino acids: {_listed(changed)}.")
    x = torch.tensor(places, dtype=torch.float32)
    gaps = _gaps(x, numbers)
    if gaps:
        notes.append(f"residues are missing between {_listed(gaps)}.")
    return Structure("".join(letters), x, name, tuple(numbers)), notes


def _gaps(x: Tensor, numbers: Sequence[int]) -> list[str]:
    step = x.diff(dim=0).norm(dim=-1).tolist()
    pairs = zip(numbers, numbers[1:], step, strict=False)
    return [f"{a} and {b}" for a, b, length in pairs if b - a > 1 or not APART[0] < length < APART[1]]


def _listed(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _models(text: str, path: str) -> list[dict[str, _Chain]]:
    """Chains of each model by name, in the order of the file."""
    modified = {line[12:15].strip() for line in text.splitlines() if line.startswith("MODRES")} | set(MODIFIED)
    models: list[dict[str, _Chain]] = [{}]
    ended: set[str] = set()
    for count, line in enumerate(text.splitlines(), 1):
        kind = line[:6].strip()
        if kind == "MODEL" and any(models[-1].values()):
            models.append({})
            ended = set()
        elif kind == "TER":
            ended.add(line[21:22] or " ")
        elif kind == "ATOM" or (kind == "HETATM" and line[17:20].strip() in modified):
            _take(line, count, path, models[-1], ended)
    return models


def _take(line: str, count: int, path: str, chains: dict[str, _Chain], ended: set[str]) -> None:
    """Note one atom; those behind the end of a chain are ligands and water of its name."""
    residue, chain = line[17:20].strip(), line[21:22] or " "
    if len(line) < 54:
        raise FewstepError(f"line {count} of {path} ends before its coordinates", value=line, hint="Write it again.")
    try:
        number = int(line[22:26])
        place = (float(line[30:38]), float(line[38:46]), float(line[46:54]))
    except ValueError as error:
        hint = "PDB files have fixed columns; files of more than 99,999 atoms must be mmCIF."
        raise FewstepError(f"line {count} of {path} has no coordinates", value=line.rstrip(), hint=hint) from error
    if chain in ended or residue in ("HOH", "WAT") or (len(residue) < 3 and line.startswith("ATOM")):
        return  # nucleotides have names of one or two letters
    key = (number, line[26:27].strip())
    found = chains.setdefault(chain, _Chain())
    found.seen.setdefault(key, residue)
    if line[12:16].strip() == "CA" and line[76:78].strip() in ("", "C"):
        share = line[54:60].strip()
        atom = _Atom(residue, number, place, float(share) if share else 1.0)
        found.atoms.setdefault(key, []).append(atom)


def _from_mmcif(place: Path) -> str:
    """The file in PDB format."""
    try:
        import gemmi
    except ImportError as error:
        hint = "pip install 'fewstep[proteins]', or save it as PDB."
        raise FewstepError("mmCIF files need the package gemmi", value=str(place), hint=hint) from error
    try:
        found = gemmi.read_structure(str(place))
    except (OSError, ValueError, RuntimeError) as error:
        raise FewstepError(f"cannot read {place}: {error}", hint="Check that it is a structure.") from error
    found.setup_entities()
    found.shorten_chain_names()
    return str(found.make_pdb_string())


def write_pdb(
    path: str | Path, structures: Sequence[Structure], confidence: Tensor | None = None, over: Over = "nothing"
) -> None:
    """Write C-alpha traces as the models of a PDB file, the best first if they come so.

    Args:
        path: of the file, which must not be there.
        structures: of the same chain.
        confidence: (S,) or (S, L) in [0, 1]; times 100 they are the B factors, as predictors do.
        over: what may be replaced (`fewstep.files.write_text`).

    Raises:
        FewstepError: a structure of more than 9,999 residues, or coordinates that the columns do not hold.
    """
    names = {letter: code for code, letter in CODES.items()}
    lines = ["REMARK   1 C-ALPHA TRACES WRITTEN BY FEWSTEP"]
    for k, structure in enumerate(structures):
        if len(structure) > 9999 or not bool((structure.coordinates.abs() < 999).all()):
            hint = "Centre it (`centred`); the columns hold 9,999 residues within 999 angstrom."
            raise FewstepError("this structure does not fit into a PDB file", value=structure.name, hint=hint)
        sure = torch.zeros(len(structure)) if confidence is None else confidence[k].expand(len(structure))
        numbers = structure.numbers or range(1, len(structure) + 1)
        lines.append(f"MODEL     {k + 1:>4}")
        for i, (letter, number, x) in enumerate(
            zip(structure.sequence, numbers, structure.coordinates.tolist(), strict=True), 1
        ):
            place = "".join(f"{value:8.3f}" for value in x)
            code = names.get(letter, "UNK")
            share = f"  1.00{100 * float(sure[i - 1]):6.2f}"
            lines.append(f"ATOM  {i:>5}  CA  {code} A{number:>4}    {place}{share}           C")
        lines += [f"TER   {len(structure) + 1:>5}      {code} A{number:>4}", "ENDMDL"]
    write_text(path, "\n".join([*lines, "END", ""]), over)


def read_fasta(path: str | Path) -> list[tuple[str, str]]:
    """Names and sequences of a FASTA file.

    Raises:
        FewstepError: no such file, or nothing in it.
    """
    found: list[tuple[str, str]] = []
    for line in read_text(path, most=LARGEST).splitlines():
        if line.startswith(">"):
            found.append((line[1:].strip().split(" ")[0] or f"sequence-{len(found) + 1}", ""))
        elif line.strip() and not line.startswith(";"):
            name, sequence = found.pop() if found else (Path(path).stem, "")
            found.append((name, sequence + line.strip()))
    if not any(sequence for _, sequence in found):
        raise FewstepError(f"{path} holds no sequence", hint="A FASTA file has a line >NAME and then the letters.")
    return found


def clean_sequence(sequence: str, most: int) -> str:
    """A sequence in capital letters.

    Raises:
        FewstepError: nothing there, letters that are no amino acids, or more residues than `most`.
    """
    letters = "".join(sequence.split()).upper().removesuffix("*")
    strange = sorted({letter for letter in letters if letter not in LETTERS + UNKNOWN})
    if strange:
        at = next(i for i, letter in enumerate(letters, 1) if letter in strange)
        hint = f"Write X for a residue that is not one of {LETTERS}."
        hint = "Take the gaps out of an aligned sequence." if strange == ["-"] else hint
        raise FewstepError(f"residue {at} is no amino acid", value="".join(strange), hint=hint)
    if len(letters) < 4:
        raise FewstepError("a chain has at least four residues", value=sequence, hint="Give a sequence or a file.")
    if len(letters) > most:
        hint = "Fold it in parts, or raise `most` where there is memory: it grows with the square of the length."
        raise FewstepError(f"at most {most} residues are folded at once", value=len(letters), hint=hint)
    return letters
