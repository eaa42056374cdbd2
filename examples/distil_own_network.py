"""Distil a torch network of your own: any module (x, time) -> output, with its process and what its output means.

    python examples/distil_own_network.py FOLDER

The teacher is a perceptron, trained here in seconds as a flow from noise to scikit-learn's 8x8 digits.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import fewstep as fs
from fewstep.metrics.distances import energy_distance
from fewstep.process import RectifiedFlow
from fewstep.report.images import image_grid, save_image

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "distilled")


class Velocity(nn.Module):
    """The velocity of digits (B, 64) at network times (B,), from 0 at the data to 1000 at the noise."""

    def __init__(self, width: int = 256):
        super().__init__()
        layers = (nn.Linear(64 + 8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 64))
        self.layers = nn.Sequential(*layers)

    def forward(self, x, time):
        angles = (time.expand(len(x)) / 1000)[:, None] * torch.tensor([0.5, 1.0, 2.0, 4.0]) * torch.pi
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], 1))


torch.manual_seed(0)
digits = torch.tensor(load_digits().data, dtype=torch.float32)[torch.randperm(1797)] / 8 - 1
data, held_out = digits[:1200], digits[1200:]

teacher, process = Velocity(), RectifiedFlow()
optimizer = torch.optim.Adam(teacher.parameters(), 2e-3)
for _ in range(1200):
    clean, t = data[torch.randint(len(data), (128,))], torch.rand(128, 1)
    noise = torch.randn_like(clean)
    loss = (teacher((1 - t) * clean + t * noise, 1000 * t[:, 0]) - (noise - clean)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

trained = {"train_steps": 400, "batch": 128, "learning_rate": 5e-4, "settings": {"ema": 0.99}, "progress": False}
student = fs.distill(teacher, "pcm", steps=2, data=data, process=process, prediction="velocity", **trained)

flow, asked = fs.Denoiser(teacher, process, fs.Prediction("velocity")), {"seeds": range(300), "batch": 300}
plans = {f"teacher, {steps} calls": fs.plan_of(flow, steps, solver="ddim") for steps in (2, 40)}
drawn = {name: fs.generate(flow, plan=plan, shape=(64,), **asked) for name, plan in plans.items()}
drawn |= {"student, 2 calls": fs.generate(student, **asked), "real digits": data[:300]}
for name, samples in drawn.items():
    print(f"{name}: {float(energy_distance(samples, held_out)):.3f} from held-out digits")
rows = torch.cat([samples[:10] for samples in drawn.values()]).reshape(-1, 1, 8, 8) / 2 + 0.5
save_image(image_grid(rows.expand(-1, 3, -1, -1), columns=10, zoom=4), folder / "digits.png")
fs.save(student, folder / "student")  # opened again by fs.load(folder / "student", network=Velocity())
