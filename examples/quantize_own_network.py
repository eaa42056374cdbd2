"""Put a few-step network of your own into low bits: its calls show what 8-bit inputs would break; then tune its steps.

    python examples/quantize_own_network.py FOLDER

The network is a perceptron, trained here in seconds as a flow to scikit-learn's 8x8 digits. One feature is then made
300 times larger and its weights so much smaller: the same function, with an outlier as trained networks often have.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import fewstep as fs
from fewstep.process import RectifiedFlow
from fewstep.quant.calls import recording
from fewstep.report.images import image_grid, save_image
from fewstep.schedules.tuning import Family, Problem, searcher

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "own-low-bit")


class Velocity(nn.Module):
    """The velocity of digits (B, 64) at network times (B,), from 0 at the data to 1000 at the noise."""

    def __init__(self, width: int = 256):
        super().__init__()
        layers = (nn.Linear(64 + 8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 64))
        self.layers = nn.Sequential(*layers)

    def forward(self, x, time):
        angles = (time.expand(len(x)) / 1000)[:, None] * torch.tensor([0.5, 1.0, 2.0, 4.0]) * torch.pi
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], 1))


torch.manual_seed(0)
data, network = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1, Velocity()
optimizer = torch.optim.Adam(network.parameters(), 2e-3)
for _ in range(600):
    clean, t, noise = data[torch.randint(len(data), (128,))], torch.rand(128, 1), torch.randn(128, 64)
    loss = (network((1 - t) * clean + t * noise, 1000 * t[:, 0]) - (noise - clean)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    network.layers[0].weight[7] *= 300
    network.layers[0].bias[7] *= 300
    network.layers[2].weight[:, 7] /= 300


def drawn(network, plan, seeds):
    flow = fs.Denoiser(network, RectifiedFlow(), fs.Prediction("velocity"))
    return fs.generate(flow, plan=plan, shape=(64,), seeds=seeds, batch=len(seeds))


plan = fs.plan_of(fs.Denoiser(network, RectifiedFlow(), fs.Prediction("velocity")), 4, solver="ddim")
fit, held_out = range(64), range(1000, 1200)
with recording(network) as calls:  # one of each step
    truth = drawn(network, plan, fit)

blind = fs.quantize(network, "w8a8")
low, few = (fs.quantize(network, scheme, example=calls) for scheme in ("w8a8", "w3a8"))
print(fs.quant_report(low))  # a layer a row, with the reason

# Q-Sched: two scalars per step, so that the low-bit network ends where full precision does.
problem = Problem.of(plan, Family("free"), lambda tried: -(drawn(few, tried, fit) - truth).square().mean(1).sqrt())
searcher("coarse-to-fine")(problem, 60)
tuned = problem.family.apply(plan, torch.tensor(problem.outcome().theta, dtype=torch.float64))

aim = drawn(network, plan, held_out)
found = {"8 bits, blind": drawn(blind, plan, held_out), "8 bits, looked at": drawn(low, plan, held_out)}
found |= {"3 bits": drawn(few, plan, held_out), "3 bits, tuned": drawn(few, tuned, held_out)}
for name, samples in found.items():
    print(f"{name}: {float((samples - aim).square().mean().sqrt()):.4f} from full precision")
rows = torch.cat([samples[:10] for samples in (aim, *found.values())]).reshape(-1, 1, 8, 8) / 2 + 0.5
save_image(image_grid(rows.expand(-1, 3, -1, -1), columns=10, zoom=4), folder / "digits.png")
