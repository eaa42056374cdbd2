"""A random video network of a few thousand weights, every layer of which matters."""

import torch

from fewstep.tasks.video.network import VideoConfig, VideoTransformer

CONFIG = VideoConfig(channels=1, side=4, patch=2, width=16, layers=2, heads=2, labels=(3, 2))


def network(seed=0, config=CONFIG):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = VideoTransformer(config)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return made.double().requires_grad_(False)


def frames(count, size=2, seed=1):
    return torch.randn(size, count, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PROMPT = torch.tensor([[0, 1], [2, 0]])
