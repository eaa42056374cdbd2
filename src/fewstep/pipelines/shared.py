"""One frozen network that serves teacher, student and critic: each role is an adapter, switched on for its calls.

The base lies in memory once; what a role adds is its LoRA weights (arXiv 2106.09685) and their optimizer moments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fewstep.errors import FewstepError


class SharedBase:
    """A network of diffusers with one adapter per role.

    Args:
        base: the network; frozen from now on. `close` gives it back as it was.
        rank: of the adapters, on every linear layer; the scale is 1.
        convolutions: adapters on convolutions too, as LCM-LoRA has them (arXiv 2311.05556).

    Raises:
        FewstepError: the network has adapters already, or no linear layers.
    """

    def __init__(self, base: Any, rank: int, convolutions: bool = False) -> None:
        if getattr(base, "peft_config", None):
            raise FewstepError("the teacher has LoRA adapters already", hint="Fuse them first (pipe.fuse_lora()).")
        self.base, self.rank = base, rank
        kinds = (nn.Linear, nn.Conv2d) if convolutions else nn.Linear
        self._names = [name for name, module in base.named_modules() if isinstance(module, kinds)]
        if not self._names:
            raise FewstepError(f"{type(base).__name__} has no linear layers for LoRA", hint="Train all weights.")
        self._layers: list[Any] = []
        self._active: str | None = None
        base.requires_grad_(False)

    def role(self, name: str) -> SharedRole:
        """A new adapter, which begins as the base itself."""
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer

        config = LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=self._names, init_lora_weights=True)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # peft wonders at a second adapter, which is the point here
            torch.manual_seed(sum(map(ord, name)))  # the same start in every process and after every resumption
            if hasattr(self.base, "add_adapter"):  # notes the adapter, so that pipelines can store it
                self.base.add_adapter(config, name)
            else:
                inject_adapter_in_model(config, self.base, name)
        self._layers = [module for module in self.base.modules() if isinstance(module, BaseTunerLayer)]
        for key, parameter in self.base.named_parameters():
            if ".lora_" in key:  # peft froze the adapters of the other roles when it made this one
                parameter.requires_grad_(True)
                parameter.data = parameter.data.float()
        self._active = name
        return SharedRole(self, name)

    def frozen(self) -> SharedRole:
        """The base alone: the teacher."""
        return SharedRole(self, None)

    def use(self, name: str | None) -> None:
        """Switch this adapter on, all others off; None: the base alone."""
        if name == self._active:
            return
        for layer in self._layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        self._active = name

    def recompute_activations(self) -> None:
        """Gradient checkpointing that recomputes each block under the adapter it ran with."""

        def checkpointed(block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            name = self._active

            def run(*given: Any, **named: Any) -> Any:
                self.use(name)
                return block(*given, **named)

            return checkpoint(run, *args, use_reentrant=False, **kwargs)

        self.base.enable_gradient_checkpointing(gradient_checkpointing_func=checkpointed)

    def merged(self) -> Any:
        """The network with the active adapter added into its weights, and no adapters."""
        for layer in self._layers:
            layer.merge()
        self.close()
        return self.base

    def close(self) -> None:
        """Take all adapters off."""
        for name, layer in [(n, m) for n, m in self.base.named_modules() if m in set(self._layers)]:
            parent, _, child = name.rpartition(".")
            setattr(self.base.get_submodule(parent), child, layer.get_base_layer())
        if hasattr(self.base, "peft_config"):
            del self.base.peft_config
        self.base._hf_peft_config_loaded = False
        self._layers, self._active = [], None


class SharedRole(nn.Module):
    """The base under one adapter; its parameters and state are the adapter's alone."""

    shared: SharedBase
    """No module, so that the base is nobody's own."""

    def __init__(self, shared: SharedBase, name: str | None) -> None:
        super().__init__()
        self.shared, self.name = shared, name
        for key, parameter in shared.base.named_parameters():
            if name is not None and ".lora_" in key and f".{name}." in key:
                plain = key.replace(f".{name}.", ".").replace(".", "/")
                self.register_parameter(plain, parameter)

    @property
    def inner(self) -> Any:
        """The network inside, which is called the same way."""
        return self.shared.base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the base."""
        self.shared.use(self.name)
        return self.shared.base(*args, **kwargs)


__all__ = ["SharedBase", "SharedRole"]
