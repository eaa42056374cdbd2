"""diffusers' schedulers of tokens as plans of reveals: the one place that knows their interface."""

from __future__ import annotations

import math
from typing import Any

from fewstep.discrete import MaskedDiffusion, RevealPlan, reveal_plan
from fewstep.errors import FewstepError

UNIFORM = ("DiscreteDDIMScheduler", "EntropyBoundScheduler")


def reveal_plan_of(
    scheduler: Any, process: MaskedDiffusion, steps: int, length: int, temperature: float = 1.0
) -> RevealPlan:
    """The plan that reveals as many tokens in each step, by confidence, as a scheduler of diffusers.

    `AmusedScheduler` is that without its noise on the choice (its argument `temperature`); `BlockRefinementScheduler`
    for one block of `length` tokens, without editing, and where no token passes its threshold.

    Args:
        scheduler: of diffusers.
        process: of the tokens.
        steps: calls of the network.
        length: tokens that are masked at the start.
        temperature: of the tokens' law.

    Raises:
        FewstepError: another scheduler; one that corrupts uniformly, which has no mask; a threshold below 1 or editing,
            which no plan of reveals has; more steps than tokens.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name in UNIFORM:
        hint = "Its tokens are replaced at random, not masked: run it in its own pipeline."
        raise FewstepError("this scheduler is none of masks", value=name, hint=hint)
    if not 1 <= steps <= length:
        raise FewstepError("so many steps cannot each reveal a token", value=steps, hint=f"At most {length}.")
    if name == "AmusedScheduler":
        shape = (lambda r: math.cos(r * math.pi / 2)) if config.masking_schedule == "cosine" else (lambda r: 1 - r)
        left = [max(1, min(math.floor(length * shape((k + 1) / steps)), length - k - 1)) for k in range(steps - 1)]
    elif name == "BlockRefinementScheduler":
        if config.threshold < 1 or (config.editing_threshold or 0) > 0:
            hint = "Set threshold=1 and editing_threshold=None, or use the order entropy-bound."
            raise FewstepError(
                "a plan of reveals has no threshold and edits nothing", value=config.threshold, hint=hint
            )
        base, more = divmod(length, steps)
        left = [length - base * (k + 1) - min(k + 1, more) for k in range(steps - 1)]
    else:
        hint = "Known: AmusedScheduler, BlockRefinementScheduler."
        raise FewstepError("not a scheduler of masked tokens", value=name, hint=hint)
    # half a token more than is left, so that rounding takes none away
    times = (1.0, *(_time(process, (count + 0.5) / length) for count in left))
    return reveal_plan(process, steps, order="confidence", temperature=temperature, times=times)


def _time(process: MaskedDiffusion, share: float) -> float:
    """When this share of the tokens that are masked at t = 1 is masked."""
    return share if process.schedule == "log-linear" else math.acos(1 - share) * 2 / math.pi
