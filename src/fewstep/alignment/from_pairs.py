"""Published ways to tune a few-step student by given pairs of pictures, of which one is preferred."""

from __future__ import annotations

from fewstep.alignment.pairwise import dreambooth_loss, preference_loss
from fewstep.alignment.presets import ALIGNMENTS, SETTINGS
from fewstep.distillation.chain import Chain
from fewstep.distillation.method import Method, needing, preset
from fewstep.distillation.times import everywhere, fixed_times
from fewstep.process import Process


@preset("pso_offline", ALIGNMENTS, votes=True)
def pso_offline(process: Process, chain: Chain, *, beta: float = 50.0, gamma: float = 1.0) -> Method:
    """PSO offline: given pairs, noised alike to the student's own times (arXiv 2410.03190).

    Args:
        process: of the student.
        chain: how the student is run.
        beta: strength.
        gamma: weight of the rejected one.
    """
    loss = preference_loss(fixed_times(chain.times), beta, gamma)
    needs = needing(data=True, pairs=True, reference=True)
    return Method({"pairs": loss}, chain, needs=needs, settings=SETTINGS)


@preset("pso_dreambooth", ALIGNMENTS, votes=True)
def pso_dreambooth(
    process: Process, chain: Chain, *, beta: float | None = None, gamma: float | None = None, published: bool = False
) -> Method:
    """A concept or a style from a few pictures against the student's own draws (PSO, arXiv 2410.03190).

    Args:
        process: of the student.
        chain: how the student is run.
        beta: strength; 50, or 5 as published.
        gamma: weight of the student's own draws; 1, or 0.1 as published.
        published: the hinge of the paper's code, which with its settings is plain fine-tuning; else pairs against the
            reference, as offline.
    """
    needs, times = needing(data=True, pairs=True), fixed_times(chain.times)
    if published:
        loss = dreambooth_loss(times, 5.0 if beta is None else beta, 0.1 if gamma is None else gamma)
        return Method({"pairs": loss}, chain, needs=needs, settings=SETTINGS)
    loss = preference_loss(times, 50.0 if beta is None else beta, 1.0 if gamma is None else gamma)
    return Method({"pairs": loss}, chain, needs=needs | {"reference"}, settings=SETTINGS)


@preset("dpo", ALIGNMENTS, votes=True)
def dpo(process: Process, chain: Chain, *, beta: float = 2500.0) -> Method:
    """Diffusion-DPO: given pairs at all noise levels (arXiv 2311.12908); for few-step students prefer pso_offline.

    Args:
        process: of the student.
        chain: how the student is run.
        beta: strength; half of the paper's.
    """
    needs = needing(data=True, pairs=True, reference=True)
    return Method({"pairs": preference_loss(everywhere(process), beta)}, chain, needs=needs, settings=SETTINGS)
