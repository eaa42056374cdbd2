"""Quantize a few-step pipeline to 2-bit weights, then tune its sampler to the rounding (Q-Sched, arXiv 2509.01624).

    python examples/quantize_and_tune.py FOLDER

A demonstration, not evidence: scheme, rewards and family were chosen among about ten by the judge that is printed here,
and most of the others did not help on held-out prompts. `fewstep tune` searches longer, and measures with intervals.
"""

import sys
from pathlib import Path

import torch

import fewstep as fs
from fewstep.data.prompts import load_prompts
from fewstep.report.images import image_grid, save_image
from fewstep.rewards import load_reward
from fewstep.zoo import placed

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "quantized")
pipe = fs.load("emoji-student")  # four steps, no guidance

low = fs.quantize(pipe, "w2a8", progress=False)  # a new pipeline; `pipe` is as it was
print(fs.quant_report(low).summary())

# Two scalars per step. Rewards may be names, or functions of your own (images, prompts) -> (B,).
prompts = load_prompts("emoji:calibration", 10)
rewards = ["clip:emoji-clip"]
tuned = fs.tune(low, prompts=prompts, blocks=[1], rewards=rewards, family="ramp-to-one", budget=9, progress=False)
for k, row in enumerate(tuned.rows):
    print(f"step {k}: state times {float(row.sample_scale):.3f}, output times {float(row.output_scale):.3f}")

# Looked at with prompts, noise and a judge that the search has not seen.
held_out, judge = load_prompts("emoji:evaluation")[::20], load_reward(placed("clip:emoji-judge"))
drawn = {
    "full precision": fs.generate(pipe, held_out, seeds=[101]),
    "2 bits": fs.generate(low, held_out, seeds=[101]),
    "2 bits, tuned": fs.generate(low, held_out, seeds=[101], plan=tuned),
}
for name, images in drawn.items():
    away = float((images - drawn["full precision"]).square().mean().sqrt())
    print(f"{name}: the judge says {float(judge.score(images, held_out).mean()):.3f}; {away:.3f} from full precision")

save_image(image_grid(torch.cat(list(drawn.values())), columns=13), folder / "emoji.png")
fs.save(low, folder / "pipeline", plan=tuned)  # a diffusers folder; the command is `fewstep tune`
