"""Jacobian products of networks: forward and reverse mode, traces and diagonals by random probes, small matrices.

A function here maps states (B, ...) to an output of the same shape sample by sample: row b of the output depends on row
b of the input alone, so its Jacobian J is one D x D matrix per sample. Attention runs in its plain form, because the
fused kernels have no forward rule.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fewstep.errors import FewstepError, nearest

Function = Callable[[Tensor], Tensor]
"""States (B, ...) -> output of the same shape, sample by sample; times and conditions are already bound."""

METHODS = ("auto", "forward", "difference")
LARGEST = 4096
"""Dimension up to which `jacobian` writes the whole matrix."""


def jvp(function: Function, x: Tensor, v: Tensor, *, method: str = "auto") -> tuple[Tensor, Tensor]:
    """The value f(x) and J v, both of the shape of the output; the cost of about two evaluations.

    The derivative of a rounded (quantized) activation is zero nearly everywhere: ask for `difference` there.

    Args:
        x, v: states and directions (B, ...) of equal shape.
        method: `forward` mode; central `difference`s (two more evaluations); `auto`: forward, and where an operator has
            no forward rule a difference (about a third of the digits), with a warning.

    Raises:
        FewstepError: shapes differ, or an unknown method.
    """
    if method not in METHODS:
        raise FewstepError("unknown method of a Jacobian product", value=method, hint=nearest(method, METHODS))
    _same_shape(x, v)
    if method == "difference":
        return _difference(function, x, v)
    try:
        with plain_attention(), forward_ad.dual_level():
            value, slope = forward_ad.unpack_dual(function(forward_ad.make_dual(x, v.to(x))))
            return value, torch.zeros_like(value) if slope is None else slope
    except (NotImplementedError, RuntimeError) as error:
        if method == "forward" or not _lacks_forward_rule(error):
            raise
    reason = "an operator of this network has no forward-mode derivative; using central differences"
    warnings.warn(reason, stacklevel=2)
    return _difference(function, x, v)


def vjp(function: Function, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The value f(x) and J^T v; `v` has the shape of the output, the product that of `x`. Both are detached.

    Raises:
        FewstepError: the output carries no gradient (a network that runs under `no_grad`, or in integers).
    """
    value, transposed = linearized(function, x)
    return value, transposed(v)


def linearized(function: Function, x: Tensor) -> tuple[Tensor, Function]:
    """The value f(x), detached, and the function v -> J^T v at x: one evaluation serves any number of products.

    Raises:
        FewstepError: the output carries no gradient (a network that runs under `no_grad`, or in integers).
    """
    with torch.enable_grad(), plain_attention():
        point = x.detach().requires_grad_()
        value = function(point)
    if not value.requires_grad:
        hint = "Remove torch.no_grad from the network, or use jvp with method='difference'."
        raise FewstepError("the output has no gradient with respect to the state", hint=hint)

    def transposed(v: Tensor) -> Tensor:
        _same_shape(value, v)
        return torch.autograd.grad(value, point, v.to(value), retain_graph=True)[0]

    return value.detach(), transposed


def jacobian_trace(
    function: Function, x: Tensor, probes: int = 16, generator: torch.Generator | None = None, *, method: str = "auto"
) -> Tensor:
    """Trace of J per sample (B,), that is the divergence of f: mean of v . J v over random signs v (Hutchinson).

    Exact with one probe where J is diagonal; the variance is twice the squared symmetric off-diagonal part over probes.

    Raises:
        FewstepError: fewer than one probe, or as `jvp`.
    """
    return diagonal(function, x, probes, generator, method=method).flatten(1).sum(1)


def diagonal(
    function: Function, x: Tensor, probes: int = 16, generator: torch.Generator | None = None, *, method: str = "auto"
) -> Tensor:
    """Diagonal of J per sample, of the shape of `x`: mean of v * J v over random signs v.

    Raises:
        FewstepError: fewer than one probe, or as `jvp`.
    """
    if probes < 1:
        raise FewstepError("at least one probe is needed", value=probes, hint="Use 16.")
    total = torch.zeros_like(x)
    for _ in range(probes):
        v = signs(x, generator)
        total += v * jvp(function, x, v, method=method)[1]
    return total / probes


def jacobian(function: Function, x: Tensor, *, method: str = "auto") -> Tensor:
    """The whole J per sample, (B, D, D) with rows for outputs and columns for inputs: D products, for small D.

    Raises:
        FewstepError: more than `LARGEST` dimensions.
    """
    size = x[0].numel()
    if size > LARGEST:
        raise FewstepError(
            f"a Jacobian of more than {LARGEST} dimensions is not written out", value=size, hint="Probe."
        )
    columns = []
    for axis in range(size):
        v = torch.zeros_like(x).flatten(1)
        v[:, axis] = 1
        columns.append(jvp(function, x, v.reshape(x.shape), method=method)[1].flatten(1))
    return torch.stack(columns, 2)


def signs(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Random +1 and -1 of the shape, dtype and device of `x`; a CPU generator means the same signs on every device."""
    device = generator.device if generator is not None else "cpu"
    drawn = torch.randint(0, 2, x.shape, generator=generator, device=device)
    return (2 * drawn - 1).to(x)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Scaled dot-product attention in its mathematical form, the only one that has a forward-mode derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


def _difference(function: Function, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Central difference per sample, with the step that balances truncation against rounding: cube root of epsilon."""
    shape = (-1, *[1] * (x.ndim - 1))
    size, reach = (t.flatten(1).square().mean(1).sqrt().reshape(shape) for t in (x, v.to(x)))
    step = torch.finfo(x.dtype).eps ** (1 / 3) * (1 + size) / reach.clamp(min=torch.finfo(x.dtype).tiny ** 0.5)
    value, above, below = function(x), function(x + step * v), function(x - step * v)
    return value, (above - below) / (2 * step)


def _lacks_forward_rule(error: Exception) -> bool:
    text = str(error).lower()
    # the last one: torch's forward rule of group norm views a tangent that attention has left in another memory order
    return any(part in text for part in ("forward ad", "forward mode", "forward-mode", "jvp", "view size"))


def _same_shape(x: Tensor, v: Tensor) -> None:
    if x.shape != v.shape:
        raise FewstepError("a direction needs the shape of the state", value=(tuple(x.shape), tuple(v.shape)))
