"""ProLU against the formulas, worked out by hand."""

import pytest
import torch

from tl_weighted_pca.dictionary import prolu

RULES = ["ste", "relu"]

# m, b, ProLU(m, b), and ∂f/∂m and ∂f/∂b under each rule.
CASES = [
    # m     b     f    ste: m    b  relu: m  b
    (2.0, -1.0, 2.0, 3.0, 2.0, 1.0, 1.0),  # passes whole, though ReLU(m + b) would give 1
    (1.0, -3.0, 0.0, 0.0, 0.0, 0.0, 0.0),  # m + b < 0
    (-1.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0),  # m < 0, though m + b > 0
    (0.5, 4.0, 0.5, 1.5, 0.5, 1.0, 1.0),  # a positive bias adds nothing
    (0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0),  # on the first edge
    (1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0),  # on the second edge
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES)
def test_forward_and_backward_by_hand(rule, dtype):
    table = torch.tensor(CASES, dtype=dtype)
    m, b = table[:, 0].clone().requires_grad_(), table[:, 1].clone().requires_grad_()
    f = prolu(m, b, rule)
    upstream = torch.arange(1.0, 7.0, dtype=dtype)
    f.backward(upstream)
    at = 3 if rule == "ste" else 5
    assert torch.equal(f.detach(), table[:, 2])
    assert torch.equal(m.grad, upstream * table[:, at])
    assert torch.equal(b.grad, upstream * table[:, at + 1])


@pytest.mark.parametrize("rule", RULES)
def test_broadcasting_sums_gradients(rule):
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(4, 5, 3, generator=generator, dtype=torch.float64)
    prolu(m, b, rule).backward(upstream)
    gate = ((m > 0) & (m + b > 0)).double()
    factor_m, factor_b = (gate * (1 + m), gate * m) if rule == "ste" else (gate, gate)
    assert torch.allclose(m.grad, upstream * factor_m)
    assert b.grad.shape == (3,)
    assert torch.allclose(b.grad, (upstream * factor_b).sum((0, 1)))


@pytest.mark.parametrize("rule", RULES)
def test_broadcasts_the_pre_activations_too(rule):
    m = torch.tensor([2.0], requires_grad=True)
    b = torch.tensor([-1.0, -3.0, 1.0], requires_grad=True)
    f = prolu(m, b, rule)
    f.sum().backward()
    assert f.tolist() == [2.0, 0.0, 2.0]
    assert m.grad.tolist() == ([6.0] if rule == "ste" else [2.0])


@pytest.mark.parametrize("rule", RULES)
def test_no_gradient_outside_the_gate_and_positive_biases_act_as_zero(rule):
    generator = torch.Generator().manual_seed(1)
    m = torch.randn(1000, generator=generator, requires_grad=True)
    b = torch.randn(1000, generator=generator, requires_grad=True)
    f = prolu(m, b, rule)
    f.sum().backward()
    shut = ~((m > 0) & (m + b > 0))
    assert not f[shut].any() and not m.grad[shut].any() and not b.grad[shut].any()
    assert torch.equal(f, prolu(m, b.clamp(max=0), rule))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES)
def test_half_precision_is_the_float32_formula_rounded(rule, dtype):
    generator = torch.Generator().manual_seed(3)
    m, b = (3 * torch.randn(1000, generator=generator).to(dtype) for _ in range(2))
    wide_m, wide_b = m.float(), b.float()
    gate = ((wide_m > 0) & (wide_m + wide_b > 0)).float()
    f = prolu(m.requires_grad_(), b.requires_grad_(), rule)
    f.sum().backward()
    factors = (gate * (1 + wide_m), gate * wide_m) if rule == "ste" else (gate, gate)
    assert torch.equal(f.detach(), (gate * wide_m).to(dtype))
    for found, factor in zip((m.grad, b.grad), factors, strict=True):
        assert found.dtype == dtype
        assert torch.allclose(found.float(), factor, rtol=torch.finfo(dtype).eps, atol=0)


def test_dtypes_are_promoted_and_gradients_keep_their_own():
    m = torch.tensor([2.0], dtype=torch.bfloat16, requires_grad=True)
    b = torch.tensor([-1.0], dtype=torch.float32, requires_grad=True)
    f = prolu(m, b)
    f.backward(torch.ones_like(f))
    assert f.dtype == torch.float32
    assert m.grad.dtype == torch.bfloat16 and b.grad.dtype == torch.float32


def test_relu_where_the_bias_is_positive():
    m = torch.tensor([1.0, -1.0, -3.0, 2.0], requires_grad=True)
    b = torch.tensor([2.0, 2.0, 2.0, -1.0], requires_grad=True)
    f = prolu(m, b, "ste", relu_where_positive=True)
    f.sum().backward()
    assert f.tolist() == [3.0, 1.0, 0.0, 2.0]
    assert m.grad.tolist() == [1.0, 1.0, 0.0, 3.0]
    assert b.grad.tolist() == [1.0, 1.0, 0.0, 2.0]


@pytest.mark.parametrize("rule", RULES)
def test_vmap_and_non_finite(rule):
    m, b = torch.randn(4, 3), torch.randn(3)
    assert torch.equal(torch.func.vmap(lambda row: prolu(row, b, rule))(m), prolu(m, b, rule))
    odd = prolu(torch.tensor([float("nan"), float("-inf"), float("inf")]), torch.zeros(3), rule)
    assert odd[0].isnan() and odd[1] == 0 and odd[2] == float("inf")


def test_the_relu_rule_is_relus_gradient_inside_the_gate():
    """gradcheck's idea: compare with numerical differences of the function the rule borrows."""
    generator = torch.Generator().manual_seed(2)
    m = torch.rand(50, generator=generator, dtype=torch.float64) + 0.5
    b = -0.4 * torch.rand(50, generator=generator, dtype=torch.float64)
    m.requires_grad_()
    b.requires_grad_()
    prolu(m, b, "relu").sum().backward()
    step = 1e-6
    with torch.no_grad():
        borrowed = (torch.relu(m + b + step) - torch.relu(m + b - step)) / (2 * step)
        # And with respect to m the forward pass really has this derivative.
        own = (prolu(m + step, b) - prolu(m - step, b)) / (2 * step)
    assert torch.allclose(b.grad, borrowed) and torch.allclose(m.grad, own)


def test_unknown_rule():
    with pytest.raises(ValueError, match="expected 'ste' or 'relu'"):
        prolu(torch.zeros(1), torch.zeros(1), "gelu")
