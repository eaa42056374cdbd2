"""Features of named modules inside a network, seen while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from fewstep.denoiser import Condition, Denoiser
from fewstep.distillation.step_condition import StepConditioned
from fewstep.errors import FewstepError, Stop, nearest


@contextlib.contextmanager
def watch(model: Denoiser, names: Sequence[str], early: bool = False) -> Iterator[dict[str, Tensor]]:
    """A dict that the outputs (B, ...) of these modules go into while the network runs, in the order of `names`.

    Args:
        model: whose network is watched.
        names: of modules.
        early: leave the network once all are there (a running call then ends this context).

    Raises:
        FewstepError: the network is no module, or has no module of such a name.
    """
    if not names:
        yield {}
        return
    network = module_of(model)
    inside = dict(network.named_modules())
    for name in names:
        if name not in inside:
            hint = nearest(name, [known for known in inside if known])
            raise FewstepError(f"{type(network).__name__} has no module {name!r}", value=name, hint=hint)
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            seen[name] = _tensor(output)
            if early and len(seen) == len(names):
                raise Stop

        return hook

    handles = [inside[name].register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    except Stop:  # all features are there; the rest of the network need not run
        pass
    finally:
        for handle in handles:
            handle.remove()


def features(
    model: Denoiser, names: Sequence[str], x: Tensor, t: Tensor, condition: Condition | None, early: bool = True
) -> dict[str, Tensor]:
    """Outputs of named modules for states (B, ...) at times (B,)."""
    with watch(model, names, early) as seen:
        model.raw(x, t, condition)
    return {name: seen[name] for name in names}


def module_of(model: Denoiser) -> nn.Module:
    """The module behind a model.

    Raises:
        FewstepError: its network is a plain function.
    """
    inner = model.network if isinstance(model.network, nn.Module) else getattr(model.network, "model", None)
    inner = inner.inner if isinstance(inner, StepConditioned) else inner
    if not isinstance(inner, nn.Module):
        raise FewstepError("only modules have features to look at", value=type(model.network).__name__)
    return inner


def _tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)):
        return _tensor(output[0])
    return _tensor(next(iter(vars(output).values())))
