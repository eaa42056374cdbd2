"""NP-Edit on emoji, with held-out truth: four-step editors against SDEdit by the shipped models.

    python benchmarks/editing_emoji.py --folder runs/editing-emoji
    python benchmarks/editing_emoji.py --updates 2 --count 8 --folder runs/quick --output runs/quick.json

Edits are instructions on skin tone and sex that lead from one picture to another. Trained is on sources and captions of
the training split; measured on edits whose result is a held-out picture, which no shipped network but `emoji-judge` has
seen. The editor is the shipped student with the source's latents as further channels, told the instruction; teacher
and critic are told the caption of the result. `emoji-clip` is the judge that trains: is the picture nearer to the
wanted caption than to the one before, and is it the source still. `emoji-judge` measures: share of results nearest to
the wanted caption among those of all skin tones and sexes, and the distance from the truth.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.alignment.judged import judge_reward
from fewstep.alignment.presets import alignment
from fewstep.clip import load_clip
from fewstep.data.emoji import load_emoji
from fewstep.data.instructions import TONES, edit_pairs, edited_caption
from fewstep.denoiser import Backbone, Denoiser
from fewstep.distillation.chain import evenly
from fewstep.distillation.core import Batch
from fewstep.distillation.engine import assemble
from fewstep.distillation.method import Method
from fewstep.distillation.rollout import noised_data_rollout
from fewstep.distillation.score.regularisers import data_regression
from fewstep.files import read_tensors, write_json, write_tensors
from fewstep.pipelines import PipelineSampler, process_of
from fewstep.pipelines.encoded import encode_conditions
from fewstep.pipelines.from_pictures import encode_pictures, run_from
from fewstep.runs import Run
from fewstep.runs.environment import environment
from fewstep.tasks.editing import Editor, first_row, without
from fewstep.train.distillation import defaults, stage_of
from fewstep.train.loop import accelerator_for, fit
from fewstep.train.stage import StageConfig
from fewstep.zoo import shipped

STRENGTHS, BATCH, THRESHOLD = (0.5, 0.75, 1.0), 16, 0.6
WORDS = "encoder_hidden_states"


class World:
    """Edits of emoji, the networks, and both judges."""

    def __init__(self, count: int) -> None:
        data = load_emoji("all")
        held = set(load_emoji("evaluation").captions) | set(load_emoji("calibration").captions)
        self.captions, self.known = data.captions, set(data.captions)
        asked = [p for p in edit_pairs(data.captions) if p[1].startswith(("make the skin", "make it a "))]
        self.own = [p for p in asked if data.captions[p[0]] not in held and data.captions[p[2]] not in held]
        order = torch.randperm(10**6, generator=torch.Generator().manual_seed(0))
        measured = [p for p in asked if data.captions[p[0]] not in held and data.captions[p[2]] in held]
        self.held = [measured[i] for i in order.tolist() if i < len(measured)][:count]
        self.pipe, self.teacher_pipe = fs.load("emoji-student"), fs.load("emoji-teacher")
        self.process, self.prediction = process_of(self.teacher_pipe)
        self.chain = evenly(self.process, 4)
        self.pictures = data.images.float() / 255
        self.latents = torch.cat([encode_pictures(self.pipe, part) for part in self.pictures.split(128)])
        texts = [*dict.fromkeys(self.captions), *dict.fromkeys(text for _, text, _ in asked)]
        encoded = encode_conditions(PipelineSampler(self.pipe, batch=256), self.process, texts)
        self.words, self.places = encoded.tensors[WORDS], {text: i for i, text in enumerate(texts)}
        self.training, self.measuring = (load_clip(str(shipped(n))) for n in ("emoji-clip", "emoji-judge"))
        self.read = self.training.text_features(texts)

    def told(self, pairs: list[tuple[int, str, int]]) -> dict[str, Tensor]:
        """Conditions of edits."""
        after, asked = ([self.places[t] for t in texts] for texts in
                        ([self.captions[p[2]] for p in pairs], [p[1] for p in pairs]))  # fmt: skip
        before = [self.places[self.captions[p[0]]] for p in pairs]
        sources = [p[0] for p in pairs]
        numbers = torch.tensor([sources, before, after]).T
        return {WORDS: self.words[after], "instruction": self.words[asked], "source": self.latents[sources],
                "numbers": numbers}  # fmt: skip

    def batches(self, clean: str) -> Callable[[torch.Generator], Batch]:
        def draw(generator: torch.Generator) -> Batch:
            pairs = [self.own[i] for i in torch.randint(len(self.own), (BATCH,), generator=generator).tolist()]
            target = {"source": self.latents[[p[0] for p in pairs]], "truth": self.latents[[p[2] for p in pairs]]}
            return Batch(BATCH, tuple(self.latents.shape[1:]), target.get(clean), self.told(pairs))

        return draw

    def decoded(self, z: Tensor) -> Tensor:
        """Pictures of latents, with gradients."""
        return (self.pipe.vae.decode(z / self.pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    def judge(self, z: Tensor, batch: Batch) -> Tensor:
        """Logits (B, 2, 2): the wanted caption against the one before, the source's features against a threshold."""
        numbers, clip = (batch.condition or {})["numbers"], self.training
        seen, scale = clip.image_features(self.decoded(z)), clip.model.logit_scale.exp()
        source = clip.image_features(self.pictures[numbers[:, 0]])
        before, after = ((seen * self.read[numbers[:, k]]).sum(1) for k in (1, 2))
        alike = (seen * source).sum(1)
        return scale * torch.stack([torch.stack([before, after], 1), torch.stack([0 * alike + THRESHOLD, alike], 1)], 1)

    @torch.no_grad()
    def measures(self, found: Tensor) -> dict[str, float]:
        """Of pictures for the held-out edits."""
        clip, right, kept = self.measuring, [], []
        features = clip.image_features(found)
        for seen, (source, _, target) in zip(features, self.held, strict=True):
            around = self.around(self.captions[target])
            best = around[int((clip.text_features(around) @ seen).argmax())]
            right.append(best == self.captions[target])
            kept.append(float(seen @ clip.image_features(self.pictures[[source]])[0]))
        truth = self.pictures[[p[2] for p in self.held]]
        alike = (features * clip.image_features(truth)).sum(1)
        return {"right": sum(right) / len(right), "like the source": sum(kept) / len(kept),
                "like the truth": float(alike.mean()),
                "truth": float((found - truth).square().mean().sqrt())}  # fmt: skip

    def around(self, caption: str) -> list[str]:
        """The caption and all that another skin tone or sex makes of it."""
        asked = [f"make the skin tone {t}" for t in TONES] + [f"make it a {who}" for who in ("woman", "man", "person")]
        first = [caption, *(c for t in asked if (c := edited_caption(caption, t, self.known)))]
        second = [c for one in first for t in asked if (c := edited_caption(one, t, self.known))]
        return list(dict.fromkeys([*first, *second]))


def as_student(module: nn.Module) -> Callable[..., Tensor]:
    """The editor told the instruction and the source."""
    network = Backbone(module)

    def asked(x: Tensor, t: Tensor, **given: Tensor) -> Tensor:
        return network(x, t, source=given["source"], **{WORDS: given["instruction"]})

    return asked


def editor(run: Run, world: World, name: str, made: Method, start: nn.Module, rate: float, updates: int, clean: str,
           reward: Any = None) -> nn.Module:  # fmt: skip
    """The editor of an arm, as a unit of the run."""
    others = ("source", "instruction", "numbers")

    def train() -> dict[str, Tensor]:
        network = Backbone(world.teacher_pipe.unet)
        engine = assemble(
            made, Denoiser(without(network, others), world.process, world.prediction), world.teacher_pipe.unet,
            lambda m: as_student(m) if isinstance(m, Editor) else without(Backbone(m), others), world.batches(clean),
            tuple(world.latents.shape[1:]), student=copy.deepcopy(start).requires_grad_(True), reward=reward,
        )  # fmt: skip
        given = {**defaults(made.settings), "learning_rate": rate, "ema": 0.9, "clip_norm": 1.0}
        config = StageConfig(steps=updates, batch=BATCH, seed=0, device="cpu", **given)
        fit(stage_of(engine, config, lambda folder: None), config, None, accelerator_for(config), quiet=True)
        return {k: v.contiguous() for k, v in engine.modules["student"].state_dict().items()}

    network = copy.deepcopy(start)
    network.load_state_dict(run.unit(f"editor-{name}", train, save=lambda s, p: write_tensors(p, s, over="all"),
                                     load=read_tensors))  # fmt: skip
    return network.eval().requires_grad_(False)


@torch.no_grad()
def edited(world: World, network: nn.Module) -> Tensor:
    """Pictures of the held-out edits by an editor in four calls."""
    student, generator, found = Denoiser(as_student(network), world.process, world.prediction), torch.Generator(), []
    generator.manual_seed(7)
    for first in range(0, len(world.held), 32):
        pairs = world.held[first : first + 32]
        noise = torch.randn(len(pairs), *world.latents.shape[1:], generator=generator)
        found.append(world.decoded(world.chain.sample(student, noise, world.told(pairs), generator)))
    return torch.cat(found)


def sdedit(world: World, model: str, steps: int, guidance: float, strength: float) -> Tensor:
    """Pictures of the held-out edits without training."""
    pipe = fs.load(model)
    plan = fs.plan_of(pipe, steps, guidance_scale=guidance)
    first = first_row(plan, strength)
    assert first is not None
    z, prompts = world.latents[[p[0] for p in world.held]], [world.captions[p[2]] for p in world.held]
    return run_from(PipelineSampler(pipe, guidance), plan, z, prompts, range(len(prompts)), first=first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=150, help="of every editor, and of the warm-up")
    parser.add_argument("--count", type=int, default=200, help="of held-out edits")
    parser.add_argument("--arms", nargs="+", default=["full", "supervised pairs"])
    parser.add_argument("--folder", type=Path, default=Path("runs/editing-emoji"))
    parser.add_argument("--output", type=Path, default=Path("results/editing-emoji.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    about = {"updates": given.updates, "count": given.count, "batch": BATCH, "strengths": list(STRENGTHS), "seeds": [0]}
    with Run(given.folder, about, quiet=True) as run:
        world, arms = World(given.count), dict[str, Any]()
        arms["the source itself"] = world.measures(world.pictures[[p[0] for p in world.held]])
        arms["the truth"] = world.measures(world.pictures[[p[2] for p in world.held]])
        for model, steps, guidance in (("emoji-student-guided", 4, 1.0), ("emoji-teacher", 50, 3.0)):
            for s in STRENGTHS:
                made = lambda m=model, n=steps, g=guidance, s=s: world.measures(sdedit(world, m, n, g, s))  # noqa: E731
                arms[f"SDEdit, {steps} steps, strength {s:g}"] = run.unit(f"sdedit-{steps}-{s:g}", made)
        same = Method({"same": data_regression()}, world.chain, noised_data_rollout(world.chain))
        start = editor(run, world, "warm", same, Editor(world.pipe.unet), 3e-4, given.updates, "source")
        arms["identity warm-up alone"] = world.measures(edited(world, start))
        both = judge_reward(world.judge, (True, True))
        makers = {
            "full": (alignment("np_edit", world.process, world.chain, judging=0.03, ratio=2), "", both),
            "matching alone": (alignment("np_edit", world.process, world.chain, judging=0.0, ratio=2), "", None),
            "judge alone": (alignment("np_edit", world.process, world.chain, judging=0.03, matching=0.0), "", both),
            "supervised pairs": (same, "truth", None),
        }
        for name in given.arms:
            made, clean, reward = makers[name]
            rate = 3e-4 if clean else 1e-4
            network = editor(run, world, name.replace(" ", "-"), made, start, rate, given.updates, clean, reward)
            arms[name] = world.measures(edited(world, network))
    document = {"settings": {**about, "trained on": len(world.own)}, "arms": arms,
                "seconds": time.perf_counter() - begin, "environment": environment()}  # fmt: skip
    write_json(given.output, document, over="all")


if __name__ == "__main__":
    main()
