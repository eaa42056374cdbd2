"""MMD-DDM: a deterministic sampler fine-tuned by a two-sample statistic of features."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from claims.claim import REAL, Arm, Claim, Question
from fewstep.distillation.chain import Chain, evenly
from fewstep.distillation.method import method
from fewstep.process import Process
from fewstep.testing.digits import PIXELS, DigitJudge
from fewstep.testing.kernel_digits import load_digits


@lru_cache(maxsize=1)
def classifier() -> DigitJudge:
    """Whose features are matched: of the judge's kind but another network, trained on other pixels and other draws."""
    data = load_digits()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():  # the first caller looks at real data without one
        torch.manual_seed(1)
        network = DigitJudge()
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.1)
        for _ in range(500):
            rows = torch.randint(len(data.train), (128,))
            x = data.train[rows] + 0.5 * torch.randn(128, PIXELS)
            loss = F.cross_entropy(network(x), data.train_labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def features(x: Tensor) -> Tensor:
    """Features (B, 32) of unit variance over digits."""
    network, scale = classifier(), _scale()
    return (network.body(x) - scale[0]) / scale[1]


@lru_cache(maxsize=1)
def _scale() -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        seen = classifier().body(load_digits().train)
    return seen.mean(0), seen.std(0).clamp(min=1e-3)


def untrained(process: Process) -> Mapping[str, Chain]:
    """The teacher's own deterministic sampler in more and more steps."""
    return {f"{count} steps": evenly(process, count, fresh=0.0) for count in (5, 10, 20)}


CLAIM = Claim(
    paper="Fast Inference in Denoising Diffusion Models via MMD Finetuning (arXiv 2301.07969)",
    says="A few hundred updates against the discrepancy of features make five steps as good as ten untuned.",
    asks="Five deterministic steps against the teacher's 5, 10 and 20. The tuning sees features of a classifier "
    "that is not the judge; beside it tuning on the pixels themselves.",
    rates=(1e-4, 3e-4),
    premises={
        "five steps fall short": Question(
            "teacher", "teacher", draw="20 steps", than_draw="5 steps", beyond=0.05, metric="frechet"
        ),
        "ten steps fall short": Question(REAL, "teacher", than_draw="10 steps", beyond=0.02),
    },
    arms={
        "teacher": Arm(lambda process, updates: method("mmd_ddm", process), untrained, share=0.0),
        "tuned, features": Arm(lambda process, updates: method("mmd_ddm", process, features=features)),
        "tuned, pixels, radial": Arm(lambda process, updates: method("mmd_ddm", process, kernel="radial")),
        "tuned, pixels, linear": Arm(lambda process, updates: method("mmd_ddm", process, kernel="linear")),
    },
    questions=(
        Question("tuned, features", "teacher", than_draw="5 steps", premise="five steps fall short"),
        Question("tuned, features", "teacher", than_draw="10 steps", premise="ten steps fall short"),
        Question("tuned, features", "teacher", than_draw="20 steps"),
        Question("tuned, features", "teacher", "recall", than_draw="10 steps", higher=True),
        Question("tuned, features", "tuned, pixels, radial"),
        Question("tuned, pixels, radial", "tuned, pixels, linear"),
    ),
)
