"""C-alpha traces of 97 protein chains, which ship with the package, and structures as values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import FewstepError, nearest
from fewstep.files import read_tensors, write_tensors

SHIPPED = Path(__file__).parent / "backbones" / "traces.safetensors"
SPLITS = ("train", "test")
LETTERS = "ARNDCQEGHILKMFPSTWYV"
"""The twenty amino acids in the usual order; the index of any other is 20."""
UNKNOWN = "X"
STEP = 0.01
"""Angstrom that the shipped traces are rounded to."""


@dataclass(frozen=True, eq=False)
class Structure:
    """A chain: its residues and where their C-alpha atoms are.

    Attributes:
        sequence: one letter a residue, X for what is none of the twenty.
        coordinates: (L, 3) in angstrom.
        name: for people.
        numbers: of the residues in their file (L,): where they jump, residues are missing.

    Raises:
        FewstepError: not one C-alpha atom for each residue.
    """

    sequence: str
    coordinates: Tensor
    name: str = ""
    numbers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.coordinates.shape != (len(self.sequence), 3):
            raise FewstepError(
                f"{len(self.sequence)} residues need coordinates ({len(self.sequence)}, 3)",
                value=tuple(self.coordinates.shape),
            )

    def __len__(self) -> int:
        return len(self.sequence)

    def part(self, start: int, length: int) -> Structure:
        """Residues start to start + length."""
        chosen = slice(start, start + length)
        name = f"{self.name}:{start}-{start + length - 1}"
        return Structure(self.sequence[chosen], self.coordinates[chosen], name, self.numbers[chosen])

    def unbroken(self, start: int, length: int) -> bool:
        """Whether neighbours in this part are as far apart as C-alpha atoms are that a peptide bond joins."""
        return start + length <= len(self) and start in self.unbroken_starts(length)

    def unbroken_starts(self, length: int) -> list[int]:
        """First residues of all unbroken parts of a length."""
        steps = self.coordinates.diff(dim=0).norm(dim=-1)
        breaks = torch.cat([torch.zeros(1), ((steps <= 2.6) | (steps >= 4.4)).float().cumsum(0)])
        whole = breaks[length - 1 :] == breaks[: max(0, len(self) - length + 1)]
        return whole.nonzero().flatten().tolist()


def load_backbones(split: str = "train") -> list[Structure]:
    """The shipped chains of a split; those of the test share no family with those of the training.

    Raises:
        FewstepError: unknown split.
    """
    if split not in SPLITS:
        raise FewstepError("unknown split of the backbones", value=split, hint=nearest(split, SPLITS))
    store = read_tensors(SHIPPED)
    letters = bytes(store["letters"].tolist()).decode()
    names = bytes(store["names"].tolist()).decode().split("\n")
    ends = store["ends"].tolist()
    found = []
    for k, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if bool(store["test"][k]) == (split == "test"):
            traces = store["traces"][start:end].float() * STEP
            found.append(Structure(letters[start:end], traces, names[k], tuple(range(end - start))))
    return found


def fragments(chains: Sequence[Structure], length: int, stride: int = 0) -> list[Structure]:
    """Unbroken parts of a length, one every `stride` residues (side by side unless given)."""
    step = stride or length
    return [
        chain.part(start, length) for chain in chains for start in chain.unbroken_starts(length) if start % step == 0
    ]


def letters_of(sequence: str) -> Tensor:
    """Indices (L,) of amino acids in `LETTERS`; 20 for any other."""
    return torch.tensor([LETTERS.find(letter) % (len(LETTERS) + 1) for letter in sequence.upper()])


def build(npz: str | Path, test: Sequence[str]) -> int:
    """Write the shipped traces from backbones (N, CA, C, O) of an npz; returns the number of chains.

    Args:
        npz: with `coords` (R, 4, 3), `offsets`, `sequences`, `pdb_file` and `chain`.
        test: names of the chains that are kept for the test.
    """
    with np.load(Path(npz), allow_pickle=False) as arrays:
        coords, offsets = arrays["coords"][:, 1], arrays["offsets"]
        places = zip(arrays["pdb_file"], arrays["chain"], strict=True)
        names = [f"{Path(str(file)).stem}_{chain}" for file, chain in places]
        sequences = [str(sequence) for sequence in arrays["sequences"]]
    middle = [coords[a:b] - coords[a:b].mean(0) for a, b in itertools.pairwise(offsets)]
    tensors = {
        "traces": torch.from_numpy(np.concatenate(middle) / STEP).round().to(torch.int16),
        "letters": torch.tensor(list("".join(sequences).encode()), dtype=torch.uint8),
        "names": torch.tensor(list("\n".join(names).encode()), dtype=torch.uint8),
        "ends": torch.from_numpy(offsets[1:].astype(np.int32)),
        "test": torch.tensor([name in set(test) for name in names]),
    }
    write_tensors(SHIPPED, tensors)
    return len(names)
