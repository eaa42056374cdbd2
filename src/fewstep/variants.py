"""Variants of one network, made for single calls: blocks left out, FreeU, scaled skip connections.

A plan's row names what it runs (`Row.network`): `main`, or `kind:numbers`, several joined by `+`:

    skip:3,7                    prunable blocks 3 and 7 become the identity (AutoDiffusion, arXiv 2309.10438)
    freeu:1.1,1.1,0.9,0.2       b1, b2, s1, s2 of FreeU (arXiv 2309.11497)
    skip-scale:0.9,1,1          factors of the UNet's skip connections, in the order of use (USF, arXiv 2312.07243)

All variants share the weights. A model is changed only while a call runs, and is itself again afterwards, whatever
happens in between.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fewstep.errors import FewstepError, nearest
from fewstep.plan import Plan

MAIN = "main"
Network = Callable[[Tensor, Tensor], Tensor]
Changed = AbstractContextManager[None]
Maker = Callable[[nn.Module, tuple[float, ...]], Changed]

KINDS: dict[str, Maker] = {}
"""(model, numbers) -> a context in which the model is the variant; it checks the numbers before it is entered."""


def kind(name: str) -> Callable[[Maker], Maker]:
    """Decorator that registers a kind of variant."""

    def join(make: Maker) -> Maker:
        KINDS[name] = make
        return make

    return join


def applied(model: nn.Module, name: str) -> Changed:
    """A context in which `model` is the variant `name`; checked when made, the model changes when it is entered.

    Raises:
        FewstepError: the variant is unknown, or does not fit the model.
    """
    stack = [KINDS[what](model, numbers) for what, numbers in _parsed(name)]
    return _all(stack)


@contextmanager
def _all(contexts: Sequence[Changed]) -> Iterator[None]:
    with ExitStack() as entered:
        for context in contexts:
            entered.enter_context(context)
        yield


def variants(
    plan: Plan, network: Network, model: nn.Module, others: Mapping[str, Network] | None = None
) -> dict[str, Network]:
    """The networks of a plan's rows, by name, for `sample`.

    Args:
        plan: what is run.
        network: the main network, (scaled state (B, ...), time) -> raw output (B, ...).
        model: the module inside it whose variants are meant.
        others: networks of their own, by the name that rows use.

    Raises:
        FewstepError: a variant is unknown, or does not fit the model.
    """
    found: dict[str, Network] = {MAIN: network, **(others or {})}
    for name in dict.fromkeys(row.network for row in plan.rows):
        if name not in found:
            applied(model, name)  # refuses what does not fit, before anything runs
            found[name] = partial(_within, network, model, name)
    return found


def _within(network: Network, model: nn.Module, name: str, x: Tensor, time: Tensor) -> Tensor:
    with applied(model, name):
        return network(x, time)


class Follower:
    """Makes every call of a model run the variant that `current()` names at that moment, until `close`."""

    def __init__(self, model: nn.Module, current: Callable[[], str]) -> None:
        self._current, self._entered = current, ExitStack()
        self._hooks: tuple[RemovableHandle, ...] = (
            model.register_forward_pre_hook(self._enter),
            model.register_forward_hook(self._leave, always_call=True),
        )

    def close(self) -> None:
        """Leave the model as it was."""
        self._entered.close()
        for hook in self._hooks:
            hook.remove()

    def _enter(self, model: nn.Module, _: Any) -> None:
        self._entered.close()  # an interrupted call may have left it open
        name = self._current()
        if name != MAIN:
            self._entered.enter_context(applied(model, name))

    def _leave(self, *_: Any) -> None:
        self._entered.close()

    def __deepcopy__(self, memo: Any) -> Follower:
        """A copied model keeps hooks that do nothing: it belongs to no pipeline yet."""
        copied = object.__new__(Follower)
        copied._current, copied._entered, copied._hooks = lambda: MAIN, ExitStack(), ()
        return copied


def relative_cost(plan: Plan, model: nn.Module) -> float:
    """Cost of a plan in full network evaluations: a row counts the share of prunable blocks that it executes.

    This is the budget of AutoDiffusion (N_max = rows x blocks) divided by the number of blocks; every block counts the
    same. Rows with a network of another name count 1.
    """
    blocks = len(prunable(model))
    total = 0.0
    for row in plan.rows:
        skipped: set[float] = set()
        if row.network.partition(":")[0] in KINDS:
            skipped = {n for what, numbers in _parsed(row.network) if what == "skip" for n in numbers}
        total += 1 - len(skipped) / blocks if skipped else 1.0
    return total


# --- which blocks can be left out -----------------------------------------------------------------------------------


def prunable(model: nn.Module) -> tuple[str, ...]:
    """Names of the blocks that `skip` counts, in the order in which the model holds them.

    Residual blocks of equal width at both ends, attention blocks and transformer blocks, each counted once (not the
    parts inside it). A model of one's own joins with residual blocks in `nn.ModuleList`s whose class names end in
    `Block`.
    """
    return tuple(_found(model, "", listed=False))


def _found(module: nn.Module, name: str, listed: bool) -> Iterator[str]:
    if listed and _keeps_shape(module):
        yield name
        return
    for part, child in module.named_children():
        inside = isinstance(module, nn.ModuleList)
        yield from _found(child, f"{name}.{part}" if name else part, inside)


def _keeps_shape(module: nn.Module) -> bool:
    title = type(module).__name__
    widths = [getattr(module, end, None) for end in ("in_channels", "out_channels")]
    if "Resnet" in title or "ResBlock" in title:
        resized = bool(getattr(module, "up", False) or getattr(module, "down", False))
        return widths[0] is not None and widths[0] == widths[1] and not resized
    if title == "Attention":
        return bool(getattr(module, "residual_connection", False))
    if title.startswith("Transformer") and title.endswith("Model"):  # the attention blocks of UNets
        return True
    return title.endswith("Block") and widths[0] == widths[1]


@kind("skip")
def skip(model: nn.Module, numbers: tuple[float, ...]) -> Changed:
    """Prunable blocks with these numbers become the identity (arXiv 2309.10438, section 3.2)."""
    names = prunable(model)
    for n in numbers:
        if n not in range(len(names)):
            hint = f"{type(model).__name__} has the prunable blocks 0 to {len(names) - 1}." if names else "It has none."
            raise FewstepError("there is no prunable block of this number", value=n, hint=hint)
    blocks = [model.get_submodule(names[int(n)]) for n in sorted(set(numbers))]
    return _all([_replaced(block, "forward", _identity(block)) for block in blocks])


def _identity(block: nn.Module) -> Callable[..., Any]:
    """What the block would return if it added nothing: its own inputs, in the form of its output."""
    signature, returned = _shape_of_call(type(block).forward)

    def identity(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(block, *args, **kwargs)
        given.apply_defaults()
        inputs = given.arguments
        if len(returned) > 1:
            return tuple(inputs[name] for name in returned)
        x = next(value for name, value in inputs.items() if name != "self")
        if "return_dict" not in inputs:
            return x
        if not inputs["return_dict"]:
            return (x,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=x)

    return identity


@functools.cache
def _shape_of_call(forward: Callable[..., Any]) -> tuple[inspect.Signature, tuple[str, ...]]:
    """Signature of `forward`, and the names it returns if it returns several of its inputs (two-stream blocks)."""
    signature = inspect.signature(forward)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    except (OSError, SyntaxError):
        return signature, ()
    returns = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    for value in returns:
        if isinstance(value, ast.Tuple) and all(isinstance(e, ast.Name) for e in value.elts):
            names = tuple(e.id for e in value.elts if isinstance(e, ast.Name))
            if len(names) > 1 and all(n in signature.parameters for n in names):
                return signature, names
    return signature, ()


# --- changes of a UNet's decoder ------------------------------------------------------------------------------------


@kind("freeu")
def freeu(model: nn.Module, numbers: tuple[float, ...]) -> Changed:
    """FreeU (arXiv 2309.11497) of diffusers, with (b1, b2, s1, s2)."""
    if not hasattr(model, "enable_freeu"):
        raise FewstepError(f"{type(model).__name__} has no FreeU", hint="Only conditional UNets of diffusers have it.")
    if len(numbers) != 4 or min(numbers) <= 0:
        raise FewstepError("freeu needs b1,b2,s1,s2 above zero", value=numbers, hint="Try freeu:1.1,1.1,0.9,0.2.")
    values = dict(zip(("b1", "b2", "s1", "s2"), numbers, strict=True))
    return _all([_replaced(block, n, v) for block in _decoder(model) for n, v in values.items()])


@kind("skip-scale")
def skip_scale(model: nn.Module, numbers: tuple[float, ...]) -> Changed:
    """Factors of the skip connections, the deepest first (arXiv 2312.07243); one number stands for all."""
    blocks = _decoder(model)
    count = sum(map(_skips, blocks))
    if not count or len(numbers) not in (1, count):
        hint = f"{type(model).__name__} has {count} skip connections."
        raise FewstepError("skip-scale needs one number, or one per skip connection", value=numbers, hint=hint)
    return _scaled(blocks, numbers if len(numbers) == count else numbers * count)


@contextmanager
def _scaled(blocks: Sequence[nn.Module], factors: tuple[float, ...]) -> Iterator[None]:
    with ExitStack() as hooks:
        for block in blocks:
            here, factors = factors[: _skips(block)], factors[_skips(block) :]
            hook = block.register_forward_pre_hook(functools.partial(_scale_skips, here), with_kwargs=True)
            hooks.callback(hook.remove)
        yield


def _scale_skips(factors: tuple[float, ...], _: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    skips = kwargs["res_hidden_states_tuple"]  # the last is used first
    scaled = tuple(x * f for x, f in zip(skips, reversed(factors), strict=True))
    return args, {**kwargs, "res_hidden_states_tuple": scaled}


def _skips(block: nn.Module) -> int:
    resnets = block.resnets
    assert isinstance(resnets, nn.ModuleList)
    return len(resnets)


def _decoder(model: nn.Module) -> list[nn.Module]:
    blocks = getattr(model, "up_blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise FewstepError(f"{type(model).__name__} has no skip connections", hint="Only UNets of diffusers have them.")
    return list(blocks)


# --- helpers --------------------------------------------------------------------------------------------------------


@contextmanager
def _replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """The attribute is `value` inside; afterwards it is what it was, or absent again."""
    own = vars(module)
    missing = object()
    before = own.get(name, missing)
    own[name] = value
    try:
        yield
    finally:
        if before is missing:
            own.pop(name, None)
        else:
            own[name] = before


def _parsed(name: str) -> list[tuple[str, tuple[float, ...]]]:
    if name == MAIN:
        return []
    parts = []
    for part in name.split("+"):
        what, _, text = part.partition(":")
        if what not in KINDS:
            raise FewstepError("unknown variant of the network", value=name, hint=nearest(what, [MAIN, *KINDS]))
        try:
            numbers = tuple(float(n) for n in text.split(","))
        except ValueError:
            raise FewstepError("a variant is a kind and numbers", value=name, hint=f"Write {what}:1,2.") from None
        parts.append((what, numbers))
    return parts
