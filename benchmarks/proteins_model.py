"""Train the small structure predictor: a folder for `fewstep fold --model` and `benchmarks/proteins.py --model`.

    python benchmarks/proteins_model.py --alignments pfam.tsv.gz --folder runs/protein-trace
    python benchmarks/proteins_model.py --folder runs/protein-trace --steps 20        # on the shipped traces alone

The chains of the test share no family (no alignment, less than a fifth of the shorter one's four-letter words) with
those of the training. Statistics of alignments are made for chains that a row of an alignment spells out.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from fewstep.data.proteins import Structure, load_backbones
from fewstep.files import read_tensors, write_json, write_tensors
from fewstep.runs.environment import environment
from fewstep.tasks.proteins.conditions import alignment_profile
from fewstep.tasks.proteins.network import NetworkSize, StructureNetwork
from fewstep.tasks.proteins.training import StructureTraining, structure_stage
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import StageConfig


def profiles(alignments: Path, chains: list[Structure]) -> dict[str, Tensor]:
    """(L, 21) of each chain that a row of some alignment spells out, by its name; zeros outside of the alignment."""
    families = defaultdict[str, list[str]](list)
    with gzip.open(alignments, "rt") as file:
        for line in file:
            family, row = line.rstrip("\n").split("\t")[:2]
            families[family].append(row)
    found: dict[str, Tensor] = {}
    for rows in families.values():
        spelled = {row.replace("-", "").replace(".", "").upper(): row for row in rows}
        for chain in chains:
            hit = next((bare for bare in spelled if len(bare) > 20 and bare in chain.sequence), None)
            if hit is not None and chain.name not in found:
                table = torch.zeros(len(chain), 21)
                start = chain.sequence.index(hit)
                others = [row for row in rows if row != spelled[hit]]
                table[start : start + len(hit)] = alignment_profile([spelled[hit], *others])
                found[chain.name] = table
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alignments", type=Path, default=None, help="lines: family, tab, aligned row")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    train = load_backbones("train")
    told: dict[str, Tensor] = {}
    if given.alignments is not None:
        kept = given.folder / "profiles.safetensors"
        if not kept.exists():
            write_tensors(kept, profiles(given.alignments, [*train, *load_backbones("test")]))
        told = read_tensors(kept)
    size = NetworkSize(blocks=given.blocks)
    network, how = StructureNetwork(size), StructureTraining()
    config = StageConfig(
        steps=given.steps, batch=how.structures, learning_rate=given.rate, weight_decay=0.0, warmup=50, ema=0.995,
        seed=given.seed, device="cpu", checkpoint_minutes=2,
    )  # fmt: skip
    begun = time.process_time()
    progress = fit(structure_stage(network, train, how, told), config, given.folder, accelerator_for(config))
    record = {
        "steps": progress.step,
        "seconds": progress.seconds,
        "processor_seconds": time.process_time() - begun,
        "losses": progress.history[-1],
        "parameters": sum(p.numel() for p in network.parameters()),
        "chains": len(train),
        "embeddings": sum(chain.name in told for chain in train),
        "settings": {"data": "protein", "split": "train", **{name: str(value) for name, value in vars(given).items()}},
        "training": vars(how),
        "environment": environment(),
    }
    write_tensors(given.folder / "weights.safetensors", {k: v.half() for k, v in network.state_dict().items()})
    write_json(given.folder / "config.json", vars(size))
    write_json(given.folder / "training.json", record)


if __name__ == "__main__":
    main()
