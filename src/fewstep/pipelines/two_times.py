"""A diffusers network that is also told where its jump ends, for students that are flow maps.

Every `TimestepEmbedding` inside gets a twin for t - s, whose last layer is zero at the start, so that the student
begins as the teacher (arXiv 2505.13447 adds t - s; NVlabs/FastGen begins at zero). Pipelines tell a network one time
only: the ends of the jumps of the finished student are kept in its configuration.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from fewstep.errors import FewstepError
from fewstep.registration import component
from fewstep.transition import jump_end


@component
class TwoTimes(ModelMixin, ConfigMixin):
    """A network of diffusers with a second time.

    base, settings: class name and configuration of the network inside.
    jumps: pairs of network times (called at, jumps to), for pipelines that tell one time.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self, base: str = "", settings: dict[str, Any] | None = None, jumps: Sequence[Sequence[float]] = ()
    ) -> None:
        super().__init__()
        import diffusers

        kind = getattr(diffusers, base, None)
        if kind is None:
            raise FewstepError("unknown network of diffusers", value=base)
        self.inner = kind.from_config(settings or {})
        self.spans = nn.ModuleList()
        self._told: list[Tensor] = []  # t - s of the call that is running
        for module in list(self.inner.modules()):
            if isinstance(module, TimestepEmbedding):
                self._join(module)
        if not len(self.spans):
            raise FewstepError(f"{base} has no time embedding that a second time could join")
        names = inspect.signature(self.inner.forward).parameters
        self._time = next(n for n in ("timestep", "timesteps", "t") if n in names)

    @property
    def config(self) -> Any:
        """The own configuration, and that of the network inside, where pipelines read sizes and channels."""
        inner = getattr(self, "inner", None)
        known = {} if inner is None else {k: v for k, v in inner.config.items() if not k.startswith("_")}
        return FrozenDict({**known, **self._internal_dict})

    @classmethod
    def of(cls, network: Any) -> TwoTimes:
        """A student that begins as a copy of this network."""
        settings = {k: v for k, v in network.config.items() if not k.startswith("_")}
        made = cls(type(network).__name__, settings)
        made.inner.load_state_dict(network.state_dict())
        for span, module in zip(made.spans, made._embeddings(), strict=True):
            fresh = copy.deepcopy(module)
            fresh._forward_hooks.clear()
            span.load_state_dict(fresh.state_dict())
            nn.init.zeros_(span.linear_2.weight)
            nn.init.zeros_(span.linear_2.bias)
        return made.to(next(network.parameters())).train(network.training)

    def forward(self, *args: Any, target_time: Tensor | None = None, **kwargs: Any) -> Any:
        """As the network inside; `target_time` (B,) is the network time that the jump ends at, from `jumps` unless
        given."""
        bound = inspect.signature(self.inner.forward).bind(*args, **kwargs).arguments
        time = torch.as_tensor(bound[self._time])
        end = self._end(time) if target_time is None else target_time
        self._told.append((time.to(end.device) - end).reshape(-1).float())
        try:
            return self.inner(*args, **kwargs)
        finally:
            self._told.pop()

    def finish(self, jumps: Sequence[Sequence[float]]) -> TwoTimes:
        """Note where the jumps of the finished student end."""
        self.register_to_config(jumps=[[float(a), float(b)] for a, b in jumps])
        return self

    def _embeddings(self) -> list[TimestepEmbedding]:
        return [m for m in self.inner.modules() if isinstance(m, TimestepEmbedding)]

    def _join(self, module: TimestepEmbedding) -> None:
        span = copy.deepcopy(module)
        self.spans.append(span)
        width = span.linear_1.in_features

        def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            told = get_timestep_embedding(self._told[-1], width, flip_sin_to_cos=True, downscale_freq_shift=0)
            extra = span(told.to(output))
            return output + (extra if len(extra) == len(output) else extra[:1])

        module.register_forward_hook(add)

    def _end(self, time: Tensor) -> Tensor:
        if not self.config.jumps:
            raise FewstepError("this student's jumps are not known yet", hint="Give target_time, or call finish().")
        return jump_end(self.config.jumps, time)


__all__ = ["ModelMixin", "TwoTimes"]  # diffusers looks up ModelMixin here to learn how to load
