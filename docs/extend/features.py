"""A metric: a feature network in which distributions are compared; here local edges, with no weights."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fewstep.metrics import FEATURES, FeatureNet, evaluate, load_features
from fewstep.registry import no_argument


@FEATURES.register("edges")
def edges(argument: str) -> FeatureNet:
    """Mean absolute differences along both axes on a 4x4 grid: (B, 3, H, W) in [0, 1] -> (B, 96)."""
    no_argument("edges", argument)

    def network(images: Tensor) -> Tensor:
        across, down = images.diff(dim=3).abs(), images.diff(dim=2).abs()
        return torch.cat([F.adaptive_avg_pool2d(part, 4).flatten(1) for part in (across, down)], 1)

    return FeatureNet("edges", network)


prompts = [f"picture {k}" for k in range(32)]
generator = torch.Generator().manual_seed(0)
real, sharp, rough = (torch.rand(32, 3, 16, 16, generator=generator) for _ in range(3))
systems = {"sharp": sharp[None], "blurred": F.avg_pool2d(rough, 3, stride=1, padding=1)[None]}  # one seed each
for name, row in evaluate(systems, real, prompts, [load_features("edges")])["systems"].items():
    print(name, {metric: round(entry["mean"], 3) for metric, entry in row.items()})
