"""`svd` of a product: by mathematical property, over one family of matrices, beside two references."""

import math
import threading

import pytest
import torch
import transformer_lens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from tl_weighted_pca.factored import SVD, device_rule, svd, svdvals
from tl_weighted_pca.factored.decompose import _sign_weights

DTYPES = [torch.float32, torch.float64]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_singular_values(
    l: int, values: torch.Tensor, dtype: torch.dtype, seed: int = 0
) -> torch.Tensor:
    """An l × m matrix with these m singular values, rounded to dtype."""
    m = len(values)
    U = torch.linalg.qr(random(l, m, dtype=torch.float64, seed=seed)).Q
    V = torch.linalg.qr(random(m, m, dtype=torch.float64, seed=seed + 1)).Q
    return (U * values.double() @ V.mT).to(dtype)


def _condition(log10: float, dtype: torch.dtype, l: int = 300, m: int = 32) -> torch.Tensor:
    return with_singular_values(l, torch.logspace(0, -log10, m), dtype)


def _deficient(dtype: torch.dtype) -> torch.Tensor:
    X = random(300, 32, dtype=dtype)
    X[:, 20:] = X[:, :12]
    return X


def _repeated(dtype: torch.dtype) -> torch.Tensor:
    return with_singular_values(300, torch.tensor([3.0] * 10 + [1.0] * 22), dtype)


def _columns(dtype: torch.dtype) -> torch.Tensor:
    return random(300, 32, dtype=dtype) * torch.logspace(-12, 12, 32, dtype=dtype)


def _alike(apart: float, dtype: torch.dtype) -> torch.Tensor:
    X = random(2048, 128, dtype=dtype, seed=3)
    X[:, 1] = X[:, 0] + apart * X[:, 1]
    return X


def _long_rows(l: int, m: int, k: int, longer: float, dtype: torch.dtype) -> torch.Tensor:
    X = random(l, m, dtype=dtype, seed=1)
    X[1 : 1 + k] *= longer
    return X


def _ones_over_signs(dtype: torch.dtype) -> torch.Tensor:
    X = random(1024, 32, dtype=dtype).sign() * 5.46e-4
    X[:32] += torch.eye(32, dtype=dtype)
    return X


def _batch_of_all_sorts(dtype: torch.dtype) -> torch.Tensor:
    zero = torch.zeros(300, 32, dtype=dtype)
    kinds = [
        random(300, 32, dtype=dtype),
        _condition(12, dtype),
        zero,
        _deficient(dtype),
        _repeated(dtype),
    ]
    return torch.stack(kinds)


# name: a function of the dtype giving A and B.
FAMILY = {
    "single head": lambda t: (random(768, 64, dtype=t), random(64, 768, dtype=t, seed=1)),
    "batch": lambda t: (random(2, 3, 200, 20, dtype=t), random(2, 3, 20, 300, dtype=t, seed=1)),
    "leading one": lambda t: (random(1, 300, 32, dtype=t), random(1, 32, 300, dtype=t, seed=1)),
    "leading ones": lambda t: (
        random(1, 2, 1, 9, 8, dtype=t),
        random(1, 2, 1, 8, 9, dtype=t, seed=1),
    ),
    "mid larger": lambda t: (random(40, 300, dtype=t), random(300, 50, dtype=t, seed=1)),
    "mid larger, wide": lambda t: (
        random(2, 20, 100, dtype=t),
        random(2, 100, 400, dtype=t, seed=1),
    ),
    "mid larger, tall": lambda t: (random(400, 100, dtype=t), random(100, 20, dtype=t, seed=1)),
    "square": lambda t: (random(64, 64, dtype=t), random(64, 64, dtype=t, seed=1)),
    "tiny": lambda t: (random(3, 2, dtype=t), random(2, 4, dtype=t, seed=1)),
    "scalar": lambda t: (random(1, 1, dtype=t), random(1, 1, dtype=t, seed=1)),
    "outer product": lambda t: (random(500, 1, dtype=t), random(1, 400, dtype=t, seed=1)),
    "row": lambda t: (random(1, 30, dtype=t), random(30, 400, dtype=t, seed=1)),
    **{
        f"condition 1e{c}": lambda t, c=c: (_condition(c, t, 768, 64), random(64, 700, dtype=t))
        for c in (1, 2, 3, 4, 6, 8, 12)
    },
    "both 1e12": lambda t: (_condition(12, t), _condition(12, t, l=280).mT),
    "large 1e12": lambda t: (_condition(12, t, 2000, 64), _condition(12, t, 1000, 64).mT),
    "deficient": lambda t: (_deficient(t), random(32, 280, dtype=t)),
    "both deficient": lambda t: (_deficient(t), _deficient(t).mT),
    "repeated": lambda t: (_repeated(t), torch.eye(32, 280, dtype=t)),
    "uneven columns": lambda t: (_columns(t), random(32, 280, dtype=t)),
    "zero": lambda t: (torch.zeros(300, 32, dtype=t), random(32, 280, dtype=t)),
    "both zero": lambda t: (torch.zeros(2, 9, 4, dtype=t), torch.zeros(2, 4, 9, dtype=t)),
    "all sorts": lambda t: (_batch_of_all_sorts(t), random(5, 32, 280, dtype=t)),
    "all sorts, both": lambda t: (_batch_of_all_sorts(t), _batch_of_all_sorts(t).flip(0).mT),
    "tiny scale": lambda t: (random(300, 32, dtype=t) * 1e-18, random(32, 280, dtype=t) * 1e-18),
    "huge scale": lambda t: (random(300, 32, dtype=t) * 1e18, random(32, 280, dtype=t) * 1e17),
    "both scales": lambda t: (random(300, 32, dtype=t) * 1e18, random(32, 280, dtype=t) * 1e-18),
    # Where the Gram matrix is only just of float32 products, and where these would underflow.
    "condition 4": lambda t: (_condition(0.6, t, 768, 64), _condition(0.6, t, 900, 64).mT),
    "condition 4, long": lambda t: (_condition(0.6, t, 9000, 64), _condition(0.6, t, 700, 64).mT),
    **{
        f"entries of 1e-{c}": lambda t, c=c: (
            random(768, 64, dtype=t) * 10.0**-c,
            random(64, 768, dtype=t, seed=1),
        )
        for c in (10, 19, 20, 21, 30)
    },
    # Nearly orthogonal columns on the left only; overflowing squares on the right only; singular values far
    # apart although both factors' columns are nearly orthogonal.
    **{
        f"condition 1e{c}, right": lambda t, c=c: (
            random(768, 64, dtype=t),
            _condition(c, t, 700, 64).mT,
        )
        for c in (1, 2, 3)
    },
    "huge on the right": lambda t: (random(768, 64, dtype=t), random(64, 700, dtype=t) * 1e20),
    **{
        f"columns from 1 to 1e-{c}": lambda t, c=c: (
            random(768, 64, dtype=t) * torch.logspace(0, -c, 64, dtype=t),
            torch.logspace(0, -c, 64, dtype=t)[:, None] * random(64, 768, dtype=t, seed=1),
        )
        for c in (1, 2, 3, 5)
    },
    # What float32 Gram matrices must not be trusted with: two columns nearly parallel among many orthogonal
    # ones, terms that are all rounded the same way, one entry far above the others, a subnormal column.
    "two alike": lambda t: (_alike(0.12, t), random(128, 512, dtype=t)),
    "two less alike": lambda t: (_alike(0.3, t), random(128, 512, dtype=t)),
    "two alike, right": lambda t: (random(512, 128, dtype=t), _alike(0.12, t).mT),
    "signs": lambda t: (random(768, 64, dtype=t).sign() / 3, random(64, 768, dtype=t)),
    "signs, right": lambda t: (random(768, 64, dtype=t), random(64, 768, dtype=t).sign() / 3),
    **{
        f"{k} rows of {l}x{m} {c} times longer": lambda t, l=l, m=m, k=k, c=c: (
            _long_rows(l, m, k, c, t),
            random(m, 768, dtype=t, seed=9),
        )
        for l, m, k, c in (
            (1000, 48, 1, 50),
            (1000, 48, 1, 20),
            (768, 64, 1, 20),
            (768, 64, 8, 8),
            (2048, 128, 1, 50),
            (2048, 128, 8, 12),
            (4096, 32, 1, 50),
        )
    },
    "one long row, right": lambda t: (
        random(768, 48, dtype=t, seed=9),
        _long_rows(1000, 48, 1, 50, t).mT,
    ),
    "ones over signs": lambda t: (_ones_over_signs(t), random(32, 512, dtype=t)),
    **{
        f"a column of 1e-{c}": lambda t, c=c: (
            random(768, 64, dtype=t).index_copy(
                1, torch.tensor([0]), 10.0**-c * random(768, 1, dtype=t)
            ),
            random(64, 700, dtype=t, seed=1),
        )
        for c in (25, 35, 41)
    },
    "cancelling": lambda t: (
        random(300, 32, dtype=t),
        _deficient(t).mT - _deficient(t).mT * (1 + 1e-6),
    ),
}


def errors(A: torch.Tensor, B: torch.Tensor, U: torch.Tensor, S: torch.Tensor, V_T: torch.Tensor):
    """‖USV_T − AB‖ / ‖A‖‖B‖ and max |UᵀU − I|, |V_T V_TᵀI|, of the worst matrix, all in float64."""
    A, B, U, S, V_T = (X.double() for X in (A, B, U, S, V_T))
    scale = torch.linalg.matrix_norm(A) * torch.linalg.matrix_norm(B)
    difference = torch.linalg.matrix_norm((U * S[..., None, :]) @ V_T - A @ B)
    eye = torch.eye(S.shape[-1], dtype=torch.float64)
    orthogonality = max((U.mT @ U - eye).abs().max(), (V_T @ V_T.mT - eye).abs().max())
    return (difference / scale.clamp(min=1e-300)).max().item(), orthogonality.item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAMILY)
def test_is_no_worse_than_transformer_lens(name, dtype):
    assert_no_worse_than_transformer_lens(*FAMILY[name](dtype))


@pytest.mark.parametrize("name", FAMILY)
def test_the_way_of_gpus_is_no_worse_either(name, monkeypatch):
    monkeypatch.setattr(device_rule, "CPU", device_rule.GPU)
    assert_no_worse_than_transformer_lens(*FAMILY[name](torch.float32))


def test_the_way_of_gpus_takes_a_batch_whole(monkeypatch):
    eigh, seen = torch.linalg.eigh, []
    monkeypatch.setattr(torch.linalg, "eigh", lambda X: (seen.append(len(X)), eigh(X))[1])
    A, B = random(30, 768, 64), random(30, 64, 768, seed=1)
    pieces = svd(A, B)
    assert len(seen) > 1 and sum(seen) == 30
    monkeypatch.setattr(device_rule, "CPU", device_rule.GPU)
    seen.clear()
    for whole, part in zip(svd(A, B), pieces, strict=True):
        torch.testing.assert_close(whole, part, atol=1e-5, rtol=1e-5)
    assert seen == [30]


def assert_no_worse_than_transformer_lens(A, B):
    dtype = A.dtype
    reconstruction, orthogonality = errors(A, B, *svd(A, B))
    theirs_U, theirs_S, theirs_V = transformer_lens.FactoredMatrix(A, B).svd()
    theirs = errors(A, B, theirs_U, theirs_S, theirs_V.mT)
    # At a few units in the last place it is chance which is smaller; float32 factors have float64 to spare.
    floor = torch.finfo(dtype).eps * (1 if dtype == torch.float32 else 8)
    assert reconstruction <= max(theirs[0], floor)
    assert orthogonality <= max(theirs[1], floor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FAMILY)
def test_agrees_with_the_dense_svd(name, dtype):
    A, B = FAMILY[name](dtype)
    S = svd(A, B).S
    dense = torch.linalg.svdvals(A.double() @ B.double())
    k = min(*A.shape[-2:], B.shape[-1])
    scale = torch.linalg.matrix_norm(A.double()) * torch.linalg.matrix_norm(B.double())
    assert ((S - dense[..., :k]).abs() <= 8 * torch.finfo(dtype).eps * scale[..., None]).all()
    assert torch.equal(svdvals(A, B), S)
    assert (S[..., 1:] <= S[..., :-1]).all()
    assert (S >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["single head", "batch", "mid larger", "tiny", "condition 1e2"])
def test_vectors_agree_with_the_dense_svd_up_to_sign(name, dtype):
    """Singular values of random matrices are well apart: each vector is determined."""
    A, B = FAMILY[name](dtype)
    k = min(*A.shape[-2:], B.shape[-1])
    dense_U, _, dense_V_T = torch.linalg.svd(A.double() @ B.double(), full_matrices=False)
    U, _, V_T = svd(A, B)
    sign = (U.double() * dense_U[..., :k]).sum(-2).sign()
    tolerance = 1e-3 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(
        U.double(), dense_U[..., :k] * sign[..., None, :], atol=tolerance, rtol=0
    )
    dense_V_T = dense_V_T[..., :k, :] * sign[..., None]
    torch.testing.assert_close(V_T.double(), dense_V_T, atol=tolerance, rtol=0)


@settings(max_examples=100, deadline=None)
@given(
    batch=st.lists(st.integers(0, 3), max_size=2),
    sizes=st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40)),
    rank=st.integers(0, 40),
    wide=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape(batch, sizes, rank, wide, seed):
    l, m, r = sizes
    dtype = torch.float64 if wide else torch.float32
    A, B = (
        random(*batch, l, m, dtype=dtype, seed=seed),
        random(*batch, m, r, dtype=dtype, seed=seed + 1),
    )
    A[..., rank:] = 0
    U, S, V_T = svd(A, B)
    k = min(l, m, r)
    assert (U.shape, S.shape, V_T.shape) == ((*batch, l, k), (*batch, k), (*batch, k, r))
    if S.numel():
        assert max(errors(A, B, U, S, V_T)) < 20 * torch.finfo(dtype).eps


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 5),
    m=st.integers(17, 40),
    sizes=st.tuples(st.integers(60, 400), st.integers(60, 400)),
    log10=st.lists(st.floats(0, 13), min_size=5, max_size=5),
    seed=st.integers(0, 2**16),
)
def test_any_conditioning_in_a_batch(n, m, sizes, log10, seed):
    """Every matrix of the batch goes its own way, Cholesky or Householder."""
    l, r = sizes
    A = torch.stack(
        [with_singular_values(l, torch.logspace(0, -c, m), torch.float32, seed) for c in log10]
    )
    A, B = A.repeat(n, 1, 1), random(5 * n, m, r, seed=seed)
    result = svd(A, B)
    assert max(errors(A, B, *result)) < 20 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("value", [1e20, math.nan, math.inf])
@pytest.mark.parametrize("factor", [0, 1])
def test_lapack_iterates_on_finite_numbers_only(factor, value, monkeypatch):
    """On others it may take for ever. Squares of 1e20 overflow in float32 and are fine in float64."""
    eigh = torch.linalg.eigh

    def checked(X):
        assert X.isfinite().all()
        return eigh(X)

    monkeypatch.setattr(torch.linalg, "eigh", checked)
    factors = [random(3, 300, 64), random(3, 64, 280)]
    factors[factor][1] *= value
    if math.isfinite(value):
        assert svd(*factors).S.isfinite().all()
    else:
        with pytest.raises(ValueError, match=f"Factor {'AB'[factor]} holds"):
            svd(*factors)


def test_reduced_precision_products_are_not_used():
    """What a user allows for the model's own products would cost all but three digits here."""
    A, B = FAMILY["single head"](torch.float32)
    expected = svd(A, B)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("high", "medium"):
            torch.set_float32_matmul_precision(precision)
            found = svd(A, B)
            assert torch.allclose(found.S, expected.S, rtol=1e-6)
            assert errors(A, B, *found)[1] < 3e-8
    finally:
        torch.set_float32_matmul_precision(before)
    if not hasattr(torch.backends.mkldnn, "matmul"):
        return
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # by the newer API, which cannot be asked
    try:
        assert errors(A, B, *svd(A, B))[1] < 3e-8
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize("given", [torch.float16, torch.bfloat16])
def test_half_precision_is_upcast(given):
    A, B = random(100, 20).to(given), random(20, 90).to(given)
    for result, expected in zip(svd(A, B), svd(A.float(), B.float()), strict=True):
        assert result.dtype == torch.float32
        assert torch.equal(result, expected)


def test_the_wider_factor_counts():
    A, B = random(30, 4), random(4, 20)
    assert svd(A, B.double()).U.dtype == torch.float64
    assert svd(A, B.half()).U.dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_float64_keeps_float64_accuracy(dtype):
    A, B = FAMILY["large 1e12"](torch.float64)
    bound = 5e-7 if dtype == torch.float32 else 5e-15
    assert max(errors(A.to(dtype), B.to(dtype), *svd(A.to(dtype), B.to(dtype)))) < bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(30, 6, 20), (200, 40, 300), (5, 30, 7), (400, 32, 300)])
def test_signs_are_a_property_of_the_product(shape, dtype):
    l, m, r = shape
    A, B = random(l, m, dtype=dtype), random(m, r, dtype=dtype, seed=1)
    U = svd(A, B).U
    falling = 1 - torch.arange(l) / (2 * l)
    largest = (U.abs() * falling[:, None]).argmax(0, keepdim=True)
    assert (U.gather(0, largest) > 0).all()
    # The same matrix from other factors, and in the other precision.
    change = torch.linalg.qr(random(m, m, dtype=dtype, seed=2)).Q
    torch.testing.assert_close(svd(A @ change, change.mT @ B).U, U, atol=2e-3, rtol=0)
    torch.testing.assert_close(svd(A.double(), B.double()).U, U.double(), atol=2e-3, rtol=0)


@pytest.mark.parametrize("scale", [1, -1, 1 + 1e-6, -1 - 1e-6])
def test_a_tie_between_entries_does_not_leave_the_sign_to_rounding(scale):
    """(1, −1) / √2: rounding decides which entry is larger, but not the sign."""
    for l in (2, 200):
        u = torch.zeros(l, 1)
        u[-2], u[-1] = 1, -1
        assert svd(u * scale, torch.ones(1, 3) / scale).U[-2] > 0


@pytest.mark.parametrize("name", ["single head", "batch", "tiny", "all sorts"])
def test_is_deterministic(name):
    A, B = FAMILY[name](torch.float32)
    for first, second in zip(svd(A, B), svd(A.clone(), B.clone()), strict=True):
        assert torch.equal(first, second)


def test_a_matrix_does_not_depend_on_its_batch():
    """Ill-conditioned neighbours change the route of the rest by rounding at most."""
    A, B = FAMILY["all sorts"](torch.float32)
    together, alone = svd(A, B), svd(A[:1], B[:1])
    for x, y in zip(together, alone, strict=True):
        torch.testing.assert_close(x[:1], y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shapes", [((3, 1), (4,)), ((2, 3), ()), ((), (2,)), ((1,), (5,))])
def test_leading_dimensions_broadcast(shapes):
    A, B = random(*shapes[0], 30, 4), random(*shapes[1], 4, 20)
    U, S, V_T = svd(A, B)
    lead = torch.broadcast_shapes(*shapes)
    assert (U.shape, S.shape, V_T.shape) == ((*lead, 30, 4), (*lead, 4), (*lead, 4, 20))
    torch.testing.assert_close(U * S[..., None, :] @ V_T, A @ B, atol=1e-5, rtol=1e-5)


def test_what_is_repeated_is_computed_once(monkeypatch):
    seen = []
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda X: (seen.append(len(X)), qr(X))[1])
    A, B = random(1, 200, 20, dtype=torch.float64), random(1, 20, 200, dtype=torch.float64)
    U, _, _ = svd(A.expand(50, -1, -1), B.expand(50, -1, -1))
    assert seen == [1, 1]
    assert U.shape == (50, 200, 20)


@pytest.mark.parametrize(
    ("l", "m", "r"), [(6, 3, 5), (3, 5, 4), (5, 5, 5), (2, 4, 7), (4, 1, 3), (40, 3, 4)]
)
class TestGradients:
    """In float64, where singular values are apart. Signs are locally constant, so U itself is smooth."""

    @staticmethod
    def factors(l, m, r):
        return (
            random(2, l, m, dtype=torch.float64, seed=5).requires_grad_(),
            random(2, m, r, dtype=torch.float64, seed=6).requires_grad_(),
        )

    def test_of_each_part(self, l, m, r):
        A, B = self.factors(l, m, r)
        for part in range(3):
            assert gradcheck(lambda A, B, part=part: svd(A, B)[part], (A, B))

    def test_of_a_mixture(self, l, m, r):
        def mixture(A, B):
            U, S, V_T = svd(A, B)
            return (U**3).sum() * S.prod() + (V_T.sin() * S[..., None]).sum()

        assert gradcheck(mixture, self.factors(l, m, r))

    def test_of_values(self, l, m, r):
        assert gradcheck(svdvals, self.factors(l, m, r))

    def test_forward_and_batched(self, l, m, r):
        assert gradcheck(
            lambda A, B: tuple(svd(A, B)), self.factors(l, m, r),
            check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True,
        )  # fmt: skip

    def test_second_derivatives(self, l, m, r):
        def mixture(A, B):
            U, S, V_T = svd(A, B)
            return (U[..., :1] ** 3).sum() + S.log().sum() + (V_T.sin() * S[..., None]).sum()

        assert gradgradcheck(mixture, self.factors(l, m, r))


def test_gradients_of_the_quick_way():
    """In float32 and by Cholesky, beside those that gradcheck vouches for."""

    def gradients(dtype):
        A = random(2, 300, 64).to(dtype).requires_grad_()
        B = random(2, 64, 280, seed=1).to(dtype).requires_grad_()
        U, S, V_T = svd(A, B)
        loss = ((U[..., :3] * S[..., None, :3]) @ V_T[..., :3, :]).pow(3).sum() + S.sum()
        return torch.autograd.grad(loss, (A, B))

    for x, y in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-3, atol=1e-4 * y.abs().max().item())


@pytest.mark.parametrize("kind", ["dual", "func"])
def test_forward_derivative_of_the_quick_way(kind):
    A, B, dA, dB = (random(2, 300, 64, seed=seed) for seed in range(4))

    def forward(A, B, dA, dB):
        def low_rank(A, B):
            U, S, V_T = svd(A, B.mT)
            return (U[..., :3] * S[..., None, :3]) @ V_T[..., :3, :], S

        if kind == "func":
            return torch.func.jvp(low_rank, (A, B), (dA, dB))[1]
        with forward_ad.dual_level():
            duals = (forward_ad.make_dual(x, dx) for x, dx in ((A, dA), (B, dB)))
            return tuple(forward_ad.unpack_dual(y).tangent for y in low_rank(*duals))

    wide = forward(*(x.double() for x in (A, B, dA, dB)))
    for x, y in zip(forward(A, B, dA, dB), wide, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-3, atol=1e-4 * y.abs().max().item())


@pytest.mark.parametrize("size", [1, 8, 64])  # small, in float64, and by Gram matrices
def test_vmap_is_one_more_leading_dimension(size):
    l, m, r = 5 * size, 2 * size, 6 * size
    A, B = random(4, 2, 1, l, m), random(3, m, 4, r, seed=1)
    got = torch.func.vmap(svd, in_dims=(0, 2))(A, B)
    values = torch.func.vmap(svdvals, in_dims=(None, 2))(A[0], B)
    for i in range(4):
        U, S, V_T = svd(A[i], B[:, :, i])
        torch.testing.assert_close((got.U[i], got.S[i], got.V_T[i]), (U, S, V_T))
        torch.testing.assert_close(values[i], svdvals(A[0], B[:, :, i]))


@pytest.mark.parametrize("size", [1, 16])
def test_forward_of_forward(size):
    """Where torch by itself would lose what a Function says of its derivative."""
    A = random(3 * size, 2 * size, dtype=torch.float64)
    B, dA = (
        random(2 * size, 4 * size, dtype=torch.float64),
        random(3 * size, 2 * size, seed=2).double(),
    )

    def cubes(A):
        return (svdvals(A, B) ** 3).sum()

    def along(A):
        return torch.func.jvp(cubes, (A,), (dA,))[1]

    _sign_weights.cache_clear()  # nothing made inside the transform may stay in it
    twice = torch.func.jvp(along, (A,), (dA,))[1]
    assert svd(A, B).U.isfinite().all()
    reverse = torch.func.jvp(lambda A: (torch.func.grad(cubes)(A) * dA).sum(), (A,), (dA,))[1]
    torch.testing.assert_close(twice, reverse)
    if size == 1:
        nested = torch.func.jacfwd(torch.func.jacfwd(cubes))(A)
        torch.testing.assert_close(nested, torch.func.hessian(cubes)(A))


def test_jacobians_by_torch_func():
    A, B = random(6, 3, dtype=torch.float64), random(3, 5, dtype=torch.float64)
    for part in range(3):
        rows = torch.func.jacrev(lambda A, part=part: svd(A, B)[part])(A)
        columns = torch.func.jacfwd(lambda A, part=part: svd(A, B)[part])(A)
        torch.testing.assert_close(rows, columns)


def test_gradient_through_the_values_needs_no_gaps():
    """The nuclear norm of a matrix of repeated singular values, and of one that is deficient."""
    A = _repeated(torch.float64).requires_grad_()
    B = torch.eye(32, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(svdvals(A, B).sum(), A)
    U, _, V_T = torch.linalg.svd(A.detach(), full_matrices=False)
    torch.testing.assert_close(gradient, U @ V_T)
    A = _deficient(torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(svdvals(A, random(32, 280)).sum(), A)
    assert gradient.isfinite().all()


def test_gradient_through_leading_vectors_ignores_the_null_space():
    """A of rank 2 and exact zeros after it: the first two vectors are smooth functions."""
    A = torch.zeros(6, 4, dtype=torch.float64)
    A[:, :2] = random(6, 2, dtype=torch.float64)
    A.requires_grad_()
    U = svd(A, torch.eye(4, dtype=torch.float64)).U
    (gradient,) = torch.autograd.grad((U[:, :2] ** 3).sum(), A)
    assert gradient.isfinite().all()


def test_no_graph_where_none_is_wanted():
    A, B = random(6, 3).requires_grad_(), random(3, 5)
    with torch.no_grad():
        assert not svd(A, B).U.requires_grad
    assert not svd(A.detach(), B).U.requires_grad
    with torch.inference_mode():
        svd(A, B)
    assert svd(A, B).U.requires_grad


@pytest.mark.parametrize("size", [(3, 2, 4), (50, 20, 60), (400, 64, 400), (5, 40, 5)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("value", "kind"), [(math.nan, "NaN"), (math.inf, "infinity"), (-math.inf, "infinity")]
)
@pytest.mark.parametrize("factor", ["A", "B"])
def test_names_the_factor_that_is_not_finite(factor, value, kind, dtype, size):
    l, m, r = size
    A, B = random(2, l, m, dtype=dtype), random(2, m, r, dtype=dtype)
    (A if factor == "A" else B)[1, -1, 0] = value
    with pytest.raises(ValueError, match=rf"Factor {factor} holds {kind}"):
        svd(A, B)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((random(3, 3),), TypeError, "given one Tensor"),
        (("OV",), TypeError, "given one str"),
        ((random(3, 2), "B"), TypeError, "Factor B is str"),
        ((random(3, 2), torch.ones(2, 2, dtype=torch.int64)), TypeError, "Factor B is torch.int64"),
        (
            (random(3, 2).to(torch.complex64), random(2, 2)),
            TypeError,
            "Factor A is torch.complex64",
        ),
        ((random(3), random(3, 3)), ValueError, "two dimensions"),
        ((random(3, 2), random(3, 2)), ValueError, "don't multiply"),
        ((random(2, 3, 2), random(4, 2, 2)), ValueError, "don't broadcast"),
    ],
)
def test_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        svd(*arguments)


def test_a_product_that_overflows_is_said_to():
    A = random(2, 30, 4, dtype=torch.float64) * 1e200
    with pytest.raises(ValueError, match="overflows"):
        svd(A, A.mT)
    U, S, V_T = svd(A, A.mT * 1e-200 * 1e-200)
    torch.testing.assert_close(U * S[..., None, :] @ V_T, A * 1e-200 @ (A.mT * 1e-200))


@pytest.mark.parametrize("shape", [(3, 2, 4), (40, 8, 30), (300, 32, 300), (768, 64, 768)])
def test_values_beyond_float32_are_no_infinity(shape):
    l, m, r = shape
    A = torch.linalg.qr(random(5, l, m, dtype=torch.float64))[0].float()
    B = torch.linalg.qr(random(5, r, m, dtype=torch.float64))[0].float().mT
    torch.testing.assert_close(svdvals(A * 1.8e19, B * 1.8e19), torch.full((5, m), 1.8**2 * 1e38))
    with pytest.raises(
        ValueError, match=r"value of A B is 4e\+38, beyond float32: pass factors in"
    ):
        svd(A * 2e19, B * 2e19)
    assert svdvals(A.double() * 2e19, B * 2e19).isfinite().all()


class TestThreads:
    """Large batches go to threads of their own, which no one else may notice."""

    @staticmethod
    def factors():
        return random(40, 500, 64), random(40, 64, 500, seed=1)

    def test_same_result(self):
        A, B = self.factors()
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            several = svd(A, B)
            assert torch.get_num_threads() == 3
            defaults = []
            new = threading.Thread(target=lambda: defaults.append(torch.get_num_threads()))
            new.start()
            new.join()
            assert defaults == [3]
            torch.set_num_threads(1)
            one = svd(A, B)
        finally:
            torch.set_num_threads(threads)
        for x, y in zip(several, one, strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)

    def test_errors_arrive(self):
        A, B = self.factors()
        B[-1, 0, 0] = math.nan
        with pytest.raises(ValueError, match="Factor B holds NaN"):
            svd(A, B)

    def test_inference_mode_and_gradients(self):
        A, B = self.factors()
        with torch.inference_mode():
            assert svd(A, B).U.is_inference()
        A.requires_grad_()
        U, S, _ = svd(A, B)
        (U[..., 0].sum() + S.sum()).backward()
        assert A.grad.isfinite().all()


def test_works_under_functional_transforms():
    A, B = random(6, 3, dtype=torch.float64), random(3, 5, dtype=torch.float64)
    functional = torch.func.grad(lambda A: svdvals(A, B).sum())(A)
    A.requires_grad_()
    svdvals(A, B).sum().backward()
    torch.testing.assert_close(functional, A.grad)


def test_takes_any_factored_matrix_and_is_a_named_tuple():
    A, B = random(5, 3), random(3, 4)
    result = svd(transformer_lens.FactoredMatrix(A, B))
    assert isinstance(result, SVD)
    assert result._fields == ("U", "S", "V_T")
    torch.testing.assert_close(result.U * result.S @ result.V_T, A @ B)


@pytest.mark.slow
def test_model_shapes():
    """GPT-2 small's, whole, by the quick way in several pieces."""
    A, B = random(12, 12, 768, 64) * 0.02, random(12, 12, 64, 768) * 0.02
    assert max(errors(A, B, *svd(A, B))) < 1e-6
