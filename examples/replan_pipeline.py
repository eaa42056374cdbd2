"""Re-plan a pipeline: the same network in six calls by other samplers, without training.

    python examples/replan_pipeline.py FOLDER

A sampler is data: every one below is a table of numbers, run by the same loop. What is best for a network can therefore
be searched for, saved with it, and is then followed by plain diffusers too.
"""

import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

import fewstep as fs
from fewstep.report.images import image_grid, save_image

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "replanned")
pipe = fs.load("mnist-dit")  # or any diffusers folder or hub id
labels = list(range(10))

plans = {
    "its own scheduler": fs.plan_of(pipe, 6),
    "DPM-Solver++ 2M": fs.plan_of(pipe, 6, solver="dpm_solver_pp_2m"),
    "searched (GITS)": fs.search(pipe, 6, method="gits", progress=False),
}
print(plans["searched (GITS)"])

# The network's own result in 100 calls is what all of them approximate, noise for noise.
exact = fs.generate(pipe, labels, plan=fs.plan_of(pipe, 100, solver="unipc"))
drawn = {name: fs.generate(pipe, labels, plan=plan) for name, plan in plans.items()}
for name, images in drawn.items():
    print(f"{name}: {float((images - exact).square().mean().sqrt()):.4f} from 100 calls")

save_image(image_grid(torch.cat([*drawn.values(), exact]), columns=10, zoom=3), folder / "digits.png")
fs.save(pipe, folder / "pipeline", plan=plans["searched (GITS)"])  # pipe itself is as it was

again = DiffusionPipeline.from_pretrained(folder / "pipeline")
print(f"opened by diffusers: {type(again).__name__} with a plan of {again.scheduler.plan.steps} steps")
