"""Cradle2Cane in miniature: emoji people at four ages, by fixed starts, starts by need, and a pass for the identity.

    python benchmarks/ageing.py --folder runs/ageing
    python benchmarks/ageing.py --seeds 0 --updates 5 --count 6 --folder runs/quick --output runs/quick.json

Sources are the emoji of one person alone (baby, child, grown, old x skin tone x woman, man, person), targets their
other ages, of which the true pictures exist and are never trained on. Pass 1 is the shipped four-step student from a
noised source with the caption of the wanted age: at one strength for all, or by need (AdaNI).
Pass 2 is one more call at the
lowest of the four levels, told two embeddings in place of the caption: what stays (the source's features, reweighted
with those of pass 1 at three strengths) and the age (the picture's embedding moved by the texts). LoRA and the two
projections are trained by losses on the decoded picture; pass 1 is not. `emoji-clip` trains, `emoji-judge`, another
network, measures: it reads age, skin tone and sex of a result among all captions of people. Sources of edits that are
measured are those of skin tones that pass 2 never trained on.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from emoji_people import WORST, Edits, Reading, all_edits
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F

import fewstep as fs
from fewstep.clip import load_clip
from fewstep.data.instructions import YEARS
from fewstep.denoiser import Backbone
from fewstep.files import write_json
from fewstep.metrics.intervals import seed_interval
from fewstep.pipelines import PipelineSampler
from fewstep.pipelines.from_pictures import encode_pictures, run_from
from fewstep.plan import Plan
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.tasks.editing import first_row, reweighted_singular_values, rotated_embedding, strength_by_need
from fewstep.zoo import shipped

STRENGTHS, THRESHOLDS, BATCH, ROUNDS = (0.25, 0.5, 0.75), (10, 30), 16, 2
WEIGHTS = {"identity": 2.0, "age": 0.75, "aged": 0.75, "pixels": 0.1}
"""Of the losses: the published ones, less those of networks that are not here."""


class SecondPass(nn.Module):
    """The student at its last level, told two embeddings: who it is, and what age; LoRA and projections are trained."""

    def __init__(self, unet: nn.Module, plan: Plan, width: int, features: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(r=8, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
            self.unet = inject_adapter_in_model(config, copy.deepcopy(unet).requires_grad_(False))
            self.who, self.age = nn.Linear(features, width), nn.Linear(features, width)
        self.row = plan.starting_at(plan.steps - 1).rows[0]

    def forward(self, z: Tensor, noise: Tensor, who: Tensor, age: Tensor) -> Tensor:
        """Latents (B, C, h, w) after one call from those of pass 1."""
        row, scale = self.row, who.shape[1] ** 0.5  # unit vectors as wide as what text encoders give
        x = float(row.alpha) * z + float(row.sigma) * noise
        tokens = torch.stack([self.who(scale * F.normalize(who, dim=-1)), self.age(scale * age)], 1)
        said = Backbone(self.unet)(x, torch.tensor(float(row.network_time)), encoder_hidden_states=tokens)
        return float(row.state[0]) * x + float(row.output[0]) * said


class Ageing:
    """The shipped student with both networks that read."""

    def __init__(self) -> None:
        self.pipe = fs.load("emoji-student-guided")
        self.plan = fs.plan_of(self.pipe, 4)
        self.generate, self.seen = PipelineSampler(self.pipe), dict[Any, list[Tensor]]()
        self.training, self.measuring = (Reading(load_clip(str(shipped(n)))) for n in ("emoji-clip", "emoji-judge"))

    def decoded(self, z: Tensor) -> Tensor:
        """Pictures (B, 3, 64, 64) of latents, with gradients."""
        return (self.pipe.vae.decode(z / self.pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def first(self, edits: Edits, strength: float | None, seed: int) -> Tensor:
        """Latents of pass 1 at this strength, or by need."""
        z, out = encode_pictures(self.pipe, edits.sources), torch.zeros(len(edits.before), 4, 8, 8)
        apart = zip(edits.now.tolist(), edits.wanted.tolist(), strict=True)
        needs = [strength or strength_by_need(now, wanted, THRESHOLDS) for now, wanted in apart]
        for need in sorted(set(needs)):
            rows = [i for i, n in enumerate(needs) if n == need]
            row = first_row(self.plan, need)
            assert row is not None
            seeds, prompts = [1000 * seed + i for i in rows], [edits.after[i] for i in rows]
            out[rows] = run_from(self.generate, self.plan, z[rows], prompts, seeds, first=row, output="latent")
        return out

    @torch.no_grad()
    def told(self, edits: Edits, seed: int, reweighted: bool) -> tuple[Tensor, Tensor]:
        """The two embeddings of pass 2."""
        clip, key = self.training.clip, (len(edits.before), edits.before[0], seed)
        own = clip.image_features(edits.sources)
        if reweighted and key not in self.seen:
            self.seen[key] = [clip.image_features(self.decoded(self.first(edits, s, seed))) for s in STRENGTHS]
        who = reweighted_singular_values(torch.stack([own, *self.seen[key]], 2))[..., 0] if reweighted else own
        plain = [[c.partition(" with ")[0] for c in words] for words in (edits.before, edits.after)]
        now, wanted = (clip.text_features(words) for words in plain)
        return who, rotated_embedding(own, now, wanted)

    def trained(self, edits: Edits, seed: int, updates: int, reweighted: bool = True) -> SecondPass:
        """Pass 2 after so many updates on these edits; pass 1 is not trained."""
        rounds = [(self.first(edits, None, 50 + r), *self.told(edits, 50 + r, reweighted)) for r in range(ROUNDS)]
        z, who, age = (torch.cat(column) for column in zip(*rounds, strict=True))
        width = int(self.pipe.unet.config.cross_attention_dim)
        network = SecondPass(self.pipe.unet, self.plan, width, who.shape[1], seed)
        learned = [p for p in network.parameters() if p.requires_grad]
        optimizer, generator = torch.optim.AdamW(learned, 1e-3), torch.Generator().manual_seed(seed)
        wanted = torch.tensor([YEARS.index(int(y)) for y in edits.wanted]).repeat(ROUNDS)
        sources = edits.sources.repeat(ROUNDS, 1, 1, 1)
        for _ in range(updates):
            rows = torch.randint(len(z), (BATCH,), generator=generator)
            noise = torch.randn(z[rows].shape, generator=generator)
            out = self.decoded(network(z[rows], noise, who[rows], age[rows]))
            loss = self.loss(out, sources[rows], self.decoded(z[rows]).detach(), wanted[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
        return network.eval()

    def loss(self, out: Tensor, source: Tensor, aged: Tensor, wanted: Tensor) -> Tensor:
        """Who it is as in the source, the wanted age, near pass 1 in features, a little of the source's pixels."""
        reading, w = self.training, WEIGHTS
        same = F.kl_div(reading.who_of(out), reading.who_of(source), reduction="batchmean", log_target=True)
        age = F.nll_loss(reading.ages_of(out), wanted)
        near = (1 - F.cosine_similarity(reading.clip.image_features(out), reading.clip.image_features(aged))).mean()
        pixels = (out - source).square().mean()
        return w["identity"] * same + w["age"] * age + w["aged"] * near + w["pixels"] * pixels

    @torch.no_grad()
    def second(self, network: SecondPass, edits: Edits, z: Tensor, seed: int, reweighted: bool = True) -> Tensor:
        """Latents of pass 2."""
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(900 + seed))
        return network(z, noise, *self.told(edits, seed, reweighted))

    @torch.no_grad()
    def measures(self, z: Tensor, edits: Edits) -> dict[str, dict[str, float]]:
        """Of all edits, of those over a small gap and over a large one."""
        apart, pictures = (edits.now - edits.wanted).abs(), self.decoded(z)
        parts = {"all": apart >= 0, "small gaps": apart <= THRESHOLDS[1], "large gaps": apart > THRESHOLDS[1]}
        rows = {name: mask.nonzero().flatten().tolist() for name, mask in parts.items()}
        return {name: self.measuring.measures(pictures[r], edits.rows(r)) for name, r in rows.items()}


def of_seed(ageing: Ageing, own: Edits, held: Edits, seed: int, updates: int) -> dict[str, Any]:
    """Every arm."""
    arms = {f"pass 1 at {s:g}": ageing.first(held, s, seed) for s in STRENGTHS}
    arms["pass 1 by need"] = ageing.first(held, None, seed)
    network = ageing.trained(own, seed, updates)
    for name in ("by need", "at 0.5", "at 0.75"):
        arms[f"pass 1 {name}, pass 2"] = ageing.second(network, held, arms[f"pass 1 {name}"], seed)
    plain = ageing.trained(own, seed, updates, reweighted=False)
    arms["pass 1 by need, pass 2 without reweighting"] = ageing.second(plain, held, arms["pass 1 by need"], seed, False)
    row = ageing.plan.steps - 1
    seeds = [5000 + 1000 * seed + i for i in range(len(held.before))]
    z = arms["pass 1 by need"]
    again = run_from(ageing.generate, ageing.plan, z, held.after, seeds, first=row, output="latent")
    arms["pass 1 by need, the caption again"] = again
    return {name: ageing.measures(z, held) for name, z in arms.items()}


def summary(rows: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Mean and interval over seeds of each number of each part."""

    def one(values: list[float]) -> dict[str, Any]:
        alone = {"mean": values[0], "low": values[0], "high": values[0]}
        found = alone if len(values) < 2 else seed_interval(torch.tensor(values, dtype=torch.float64)).as_dict()
        return {**found, "values": values}

    return {part: {k: one([row[part][k] for row in rows]) for k in rows[0][part]} for part in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=150, help="of pass 2")
    parser.add_argument("--count", type=int, default=0, help="of edits, for a quick look; all unless given")
    parser.add_argument("--folder", type=Path, default=Path("runs/ageing"))
    parser.add_argument("--output", type=Path, default=Path("results/ageing.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    about = {"seeds": given.seeds, "updates": given.updates, "count": given.count, "thresholds": list(THRESHOLDS),
             "batch": BATCH, "weights": WEIGHTS, "worst": WORST}  # fmt: skip
    with Run(given.folder, about, quiet=True) as run:
        ageing, (own, held) = Ageing(), (all_edits(False), all_edits(True))
        if given.count:
            own, held = (edits.rows(range(given.count)) for edits in (own, held))
        seeds = [run.unit(f"seed-{s}", lambda s=s: of_seed(ageing, own, held, s, given.updates)) for s in given.seeds]
        ends = {"the source itself": encode_pictures(ageing.pipe, held.sources),
                "the truth": encode_pictures(ageing.pipe, held.truths)}  # fmt: skip
        arms = {name: summary([ageing.measures(z, held)]) for name, z in ends.items()}
        arms |= {name: summary([found[name] for found in seeds]) for name in seeds[0]}
    document = {"settings": {**about, "trained on": len(own.before), "measured on": len(held.before)}, "arms": arms,
                "seconds": time.perf_counter() - begin, "environment": environment()}  # fmt: skip
    write_json(given.output, document, over="all")


if __name__ == "__main__":
    main()
