import warnings

import pytest
import torch
from torch import nn

from fewstep.errors import FewstepError
from fewstep.jacobian import diagonal, jacobian, jacobian_trace, jvp, vjp


def field(x):
    """Mixes all numbers of a sample, nonlinearly and without symmetry."""
    flat = x.flatten(1)
    mixed = torch.tanh(flat @ MATRIX.to(flat)) + 0.3 * flat.roll(1, 1) * flat
    return mixed.reshape(x.shape)


MATRIX = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
POINTS = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
DIRECTIONS = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def explicit(function, x):
    """One Jacobian (D, D) per sample by torch's own reverse mode, one sample at a time."""
    each = [torch.autograd.functional.jacobian(function, x[b : b + 1]) for b in range(len(x))]
    return torch.stack([j.reshape(x[0].numel(), -1) for j in each])


@pytest.mark.parametrize("method", ["forward", "difference"])
def test_products_are_those_of_the_explicit_matrix(method):
    matrix = explicit(field, POINTS)
    value, product = jvp(field, POINTS, DIRECTIONS, method=method)
    expected = torch.einsum("bij,bj->bi", matrix, DIRECTIONS.flatten(1))
    assert torch.equal(value, field(POINTS))
    torch.testing.assert_close(product.flatten(1), expected, rtol=1e-8, atol=1e-8)
    value, product = vjp(field, POINTS, DIRECTIONS)
    expected = torch.einsum("bij,bi->bj", matrix, DIRECTIONS.flatten(1))
    torch.testing.assert_close(product.flatten(1), expected)
    torch.testing.assert_close(jacobian(field, POINTS), matrix)


def test_trace_and_diagonal_converge_to_the_matrix():
    matrix = explicit(field, POINTS)
    generator = torch.Generator().manual_seed(3)
    copies = POINTS.repeat(100, 1, 1)  # 4000 probes of each point, a hundred at once
    estimate = diagonal(field, copies, 40, generator).unflatten(0, (100, -1)).mean(0)
    torch.testing.assert_close(estimate.flatten(1), matrix.diagonal(dim1=1, dim2=2), atol=0.15, rtol=0)
    estimate = jacobian_trace(field, copies, 40, generator).unflatten(0, (100, -1)).mean(0)
    torch.testing.assert_close(estimate, matrix.diagonal(dim1=1, dim2=2).sum(1), atol=0.3, rtol=0)


def test_one_probe_is_exact_for_a_diagonal_field():
    torch.testing.assert_close(diagonal(torch.sin, POINTS, 1), torch.cos(POINTS))


def test_equal_generators_give_equal_estimates():
    first, second = (jacobian_trace(field, POINTS, 2, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 12, dtype=torch.float64)

    def forward(self, x):
        q, k, v = self.mix(x).chunk(3, -1)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def test_attention_has_a_forward_derivative():
    torch.manual_seed(0)
    network, x = Attention(), torch.randn(2, 5, 4, dtype=torch.float64)
    v = torch.randn_like(x)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        product = jvp(network, x, v)[1]
    expected = torch.einsum("bij,bj->bi", explicit(network, x), v.flatten(1))
    torch.testing.assert_close(product.flatten(1), expected)


class NoForwardRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.cos()


def test_an_operator_without_a_forward_rule_is_differenced_and_said():
    with pytest.warns(UserWarning, match="central differences"):
        product = jvp(NoForwardRule.apply, POINTS, DIRECTIONS)[1]
    torch.testing.assert_close(product, POINTS.cos() * DIRECTIONS, rtol=1e-8, atol=1e-8)
    with pytest.raises((NotImplementedError, RuntimeError)):
        jvp(NoForwardRule.apply, POINTS, DIRECTIONS, method="forward")


def test_errors_of_the_network_are_not_swallowed():
    def broken(x):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        jvp(broken, POINTS, DIRECTIONS)


def test_a_network_that_forbids_gradients_is_named():
    with pytest.raises(FewstepError, match="no gradient"):
        vjp(torch.no_grad()(field), POINTS, DIRECTIONS)


def test_wrong_use_is_refused():
    with pytest.raises(FewstepError, match="shape"):
        jvp(field, POINTS, DIRECTIONS[:2])
    with pytest.raises(FewstepError, match="method"):
        jvp(field, POINTS, DIRECTIONS, method="reverse")
    with pytest.raises(FewstepError, match="probe"):
        jacobian_trace(field, POINTS, 0)
    with pytest.raises(FewstepError, match="dimensions"):
        jacobian(torch.sin, torch.zeros(1, 5000))
