"""The FactoredMatrix class: TransformerLens's behaviour but for V_T, and a citizen of torch."""

import copy
import gc
import pickle
import weakref

import einops
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import transformer_lens
from torch.autograd import gradcheck
from torch.testing import assert_close
from transformer_lens.utilities.matrix import composition_scores

from tl_weighted_pca.factored import SVD, FactoredMatrix, svd

HAS_V = hasattr(transformer_lens.FactoredMatrix, "V")
"""Not in TransformerLens 3.0, where V is called Vh."""

SHAPES = {
    "tall": ((6, 2), (2, 4)),
    "square": ((5, 3), (3, 5)),
    "mid larger": ((4, 7), (7, 4)),
    "batch": ((2, 3, 6, 2), (2, 3, 2, 6)),
    "leading one": ((1, 8, 3), (1, 3, 8)),
    "broadcast": ((3, 1, 5, 2), (4, 2, 5)),
}


@pytest.fixture(params=SHAPES)
def pair(request):
    torch.manual_seed(0)
    a, b = SHAPES[request.param]
    return torch.randn(a, dtype=torch.float64), torch.randn(b, dtype=torch.float64)


@pytest.fixture
def M(pair):
    return FactoredMatrix(*pair)


@pytest.fixture
def theirs(pair):
    return transformer_lens.FactoredMatrix(*pair)


@pytest.fixture
def dense(pair):
    return pair[0] @ pair[1]


def is_ours(x, expected):
    assert type(x) is FactoredMatrix
    assert x.shape == expected.shape
    assert_close(x.AB, expected)


class TestConstruction:
    def test_from_factors(self):
        A, B = torch.randn(5, 3), torch.randn(3, 7)
        M = FactoredMatrix(A, B)
        assert isinstance(M, transformer_lens.FactoredMatrix)
        assert (M.ldim, M.mdim, M.rdim) == (5, 3, 7)
        assert M.shape == (5, 7)
        assert not M.has_leading_dims
        assert torch.equal(M.A, A)
        assert torch.equal(M.B, B)

    def test_leading_dimensions_broadcast(self):
        M = FactoredMatrix(torch.randn(4, 5, 3), torch.randn(2, 4, 3, 7))
        assert M.shape == (2, 4, 5, 7)
        assert M.A.shape == (2, 4, 5, 3)
        assert M.has_leading_dims
        assert M.ndim == 4

    def test_from_a_factored_matrix_shares_its_factors(self, theirs):
        M = FactoredMatrix(theirs)
        assert M.A.data_ptr() == theirs.A.data_ptr()
        assert M.B.data_ptr() == theirs.B.data_ptr()
        is_ours(FactoredMatrix(M), theirs.AB)

    def test_refusals(self):
        with pytest.raises(RuntimeError, match=r"[Mm]ismatch"):
            FactoredMatrix(torch.ones(9, 5, 3), torch.ones(2, 4, 3, 7))
        with pytest.raises(AssertionError, match="inner dimension"):
            FactoredMatrix(torch.ones(3, 4), torch.ones(5, 4))
        with pytest.raises(TypeError, match="given one Tensor"):
            FactoredMatrix(torch.ones(3, 3))

    def test_pickles(self, M):
        M.svd()
        is_ours(pickle.loads(pickle.dumps(M)), M.AB)


class TestAgainstTransformerLens:
    """Everything but svd() has the values of the class it extends."""

    def test_products_and_pair(self, M, theirs):
        assert_close(M.AB, theirs.AB)
        assert all(torch.equal(x, y) for x, y in zip(M.pair, theirs.pair, strict=True))
        if M.ldim == M.rdim:
            assert_close(M.BA, theirs.BA)
            for x, y in zip(M.eigenvalues.flatten(), theirs.eigenvalues.flatten(), strict=True):
                assert_close(x, y)
        else:
            with pytest.raises(AssertionError):
                _ = M.BA
            with pytest.raises(AssertionError):
                _ = M.eigenvalues

    def test_parts_of_the_svd(self, M, theirs):
        U, S, V_T = M.svd()
        assert_close(S, theirs.S)
        sign = (U * theirs.U).sum(-2).sign()
        assert_close(M.U, theirs.U * sign[..., None, :])
        their_V = theirs.V if HAS_V else theirs.Vh
        assert_close(M.V, their_V * sign[..., None, :])
        assert_close(M.V_T, M.V.mT)
        assert torch.equal(M.V_T, V_T)
        assert_close(M.collapse_l(), theirs.collapse_l() * sign[..., :, None])
        assert_close(M.collapse_r(), theirs.collapse_r() * sign[..., None, :])
        with pytest.warns(DeprecationWarning, match="V_T"):
            assert torch.equal(M.Vh, M.V)

    def test_norm(self, M, theirs):
        assert_close(M.norm(), theirs.norm())

    def test_corner_and_repr(self, M, theirs):
        assert_close(M.get_corner(), theirs.get_corner())
        assert repr(M) == repr(theirs)

    def test_composition_scores_accept_both(self):
        torch.manual_seed(0)
        A, B, C, D = (torch.randn(2, 3, *s) for s in ((8, 2), (2, 8), (8, 2), (2, 8)))
        ours = composition_scores(FactoredMatrix(A, B), FactoredMatrix(C, D))
        assert_close(
            ours,
            composition_scores(
                transformer_lens.FactoredMatrix(A, B), transformer_lens.FactoredMatrix(C, D)
            ),
        )

    def test_bfloat16_eigenvalues(self):
        M = FactoredMatrix(torch.randn(6, 2).bfloat16(), torch.randn(2, 6).bfloat16())
        assert M.eigenvalues.dtype == torch.complex64
        assert M.svd().U.dtype == M.norm().dtype == torch.float32


class TestEveryOperationKeepsTheClass:
    def test_matmul_with_matrices(self, M, dense):
        right, left = torch.randn(M.rdim, 9).double(), torch.randn(9, M.ldim).double()
        is_ours(M @ right, dense @ right)
        is_ours(left @ M, left @ dense)
        is_ours(torch.matmul(M, right), dense @ right)
        is_ours(left.matmul(M), left @ dense)
        is_ours(torch.nn.Parameter(left) @ M, left @ dense)

    def test_matmul_with_vectors(self, M, dense):
        right, left = torch.randn(M.rdim).double(), torch.randn(M.ldim).double()
        assert_close(M @ right, dense @ right)
        assert_close(left @ M, left @ dense)

    @pytest.mark.parametrize("other", [FactoredMatrix, transformer_lens.FactoredMatrix])
    def test_matmul_with_factored_matrices(self, M, dense, other):
        right = other(torch.randn(M.rdim, 2).double(), torch.randn(2, 5).double())
        left = other(torch.randn(5, 2).double(), torch.randn(2, M.ldim).double())
        is_ours(M @ right, dense @ right.AB)
        is_ours(left @ M, left.AB @ dense)

    def test_matmul_refuses_a_mismatch(self, M):
        with pytest.raises(AssertionError, match="inner dimension"):
            M @ torch.randn(M.rdim + 1, 2).double()
        with pytest.raises(AssertionError, match="inner dimension"):
            torch.randn(2, M.ldim + 1).double() @ M

    @pytest.mark.parametrize("scalar", [3, 0.5, torch.tensor([2.0]), torch.tensor(-1.5)], ids=str)
    def test_products_with_scalars(self, M, dense, scalar):
        is_ours(M * scalar, dense * scalar)
        is_ours(scalar * M, dense * scalar)
        is_ours(M / scalar, dense / scalar)
        is_ours(-M, -dense)

    @pytest.mark.parametrize("shape", [(2,), (2, 2)])
    def test_products_with_anything_else_are_refused(self, M, shape):
        with pytest.raises(AssertionError, match="scalar"):
            M * torch.rand(shape)
        with pytest.raises(AssertionError, match="scalar"):
            torch.rand(shape) * M

    def test_transpose_unsqueeze_make_even(self, M, dense):
        is_ours(M.T, dense.mT)
        is_ours(M.T.T, dense)
        is_ours(M.unsqueeze(0), dense.unsqueeze(0))
        is_ours(M.make_even(), dense)

    def test_indexing(self):
        M = FactoredMatrix(torch.randn(3, 4, 5, 2).double(), torch.randn(3, 4, 2, 6).double())
        dense = M.AB
        is_ours(M[0], dense[0])
        is_ours(M[-1, 2], dense[-1, 2])
        is_ours(M[:, 1:3], dense[:, 1:3])
        is_ours(M[None], dense[None])
        is_ours(M[[0, 2]], dense[[0, 2]])
        # As in TransformerLens an integer in the matrix's own dimensions keeps the dimension.
        is_ours(M[0, 0, 1], dense[0, 0, 1:2])
        if HAS_V:  # TransformerLens 3.0 gives nothing for the last
            is_ours(M[0, 0, -1], dense[0, 0, -1:])
            is_ours(M[0, 0, :, -1], dense[0, 0, :, -1:])
        is_ours(M[..., :2, :3] if _ellipsis() else M[:, :, :2, :3], dense[..., :2, :3])
        assert len(list(M[0])) == 4
        with pytest.raises(IndexError):
            M[7]
        with pytest.raises(ValueError, match="too long"):
            M[0, 0, 0, 0, 0]


def _ellipsis() -> bool:
    """TransformerLens 4.3 learnt it."""
    M = transformer_lens.FactoredMatrix(torch.ones(2, 3, 1), torch.ones(2, 1, 3))
    return M[..., :1, :1].shape == (2, 1, 1)


class Wrapped:
    """Not a tensor, but enough like one for TransformerLens's matmul."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __getattr__(self, name):
        return getattr(self.tensor, name)

    def unsqueeze(self, dim):
        return Wrapped(self.tensor.unsqueeze(dim))

    def squeeze(self, dim):
        return Wrapped(self.tensor.squeeze(dim))

    def broadcast_to(self, shape):
        return Wrapped(self.tensor.broadcast_to(shape))

    def __matmul__(self, other):
        if isinstance(other, transformer_lens.FactoredMatrix):
            return NotImplemented
        return Wrapped(self.tensor @ getattr(other, "tensor", other))

    def __rmatmul__(self, other):
        return Wrapped(other @ self.tensor)


@pytest.mark.skipif(not HAS_V, reason="TransformerLens 3.0 multiplies tensors only")
def test_matmul_with_what_is_only_like_a_tensor():
    M = FactoredMatrix(torch.randn(2, 3), torch.randn(3, 4))
    right, left, vector = torch.randn(4, 5), torch.randn(5, 2), torch.randn(4)
    assert type(M @ Wrapped(right)) is FactoredMatrix
    assert_close((M @ Wrapped(right)).AB.tensor, M.AB @ right)
    assert type(Wrapped(left) @ M) is FactoredMatrix
    assert_close((Wrapped(left) @ M).AB.tensor, left @ M.AB)
    assert_close((M @ Wrapped(vector)).tensor, M.AB @ vector)


class TestAsAContainer:
    """Iteration and numpy see the dense product: rows of a matrix, matrices of a batch."""

    def test_iteration(self, M, dense):
        assert len(M) == len(dense)
        found = list(M)
        assert len(found) == len(dense)
        for x, y in zip(found, dense, strict=True):
            assert_close(x, y) if M.ndim == 2 else is_ours(x, y)
        for x, y in zip(reversed(M), reversed(found), strict=True):
            assert torch.dist(x, y) == 0
        first, *_ = M
        assert torch.dist(first, dense[0]) < 1e-12

    def test_rows_carry_gradients(self):
        A = torch.randn(3, 2).requires_grad_()
        first, _, _ = FactoredMatrix(A, torch.randn(2, 4))
        first.sum().backward()
        assert A.grad[0].any()
        assert not A.grad[1:].any()

    def test_membership_and_truth(self, M, dense):
        assert M.AB[(0,) * M.ndim] in M
        assert 1e9 not in M
        for refused in (lambda x: "x" in x, bool):
            with pytest.raises(RuntimeError) as ours:
                refused(M)
            with pytest.raises(RuntimeError) as theirs:
                refused(dense)
            assert str(ours.value) == str(theirs.value)
        assert bool(FactoredMatrix(torch.ones(1, 2), torch.ones(2, 1)))

    def test_no_rows(self):
        M = FactoredMatrix(torch.ones(0, 2), torch.ones(2, 3))
        assert len(M) == 0
        assert list(M) == []

    def test_numpy(self, M, dense):
        for convert in (np.asarray, np.array, np.abs, np.sum, lambda x: np.stack([x, x])):
            np.testing.assert_allclose(convert(M), convert(dense.numpy()), rtol=1e-12)
        assert np.asarray(M, dtype=np.float32).dtype == np.float32
        with_graph = type(M)(M.A.detach().requires_grad_(), M.B)
        np.testing.assert_array_equal(np.asarray(with_graph), np.asarray(M))
        is_ours(np.float64(2) * M, 2 * dense)
        is_ours(M * np.array(2.0), 2 * dense)
        is_ours(np.array(2.0) * M, 2 * dense)

    def test_products_with_arrays(self, M, dense):
        """As torch's: an array on the right is multiplied, on the left refused; no array scales A."""
        A, right = M.A.numpy(), M.B.mT.numpy()
        np.testing.assert_allclose(M @ right, dense.numpy() @ right)
        with pytest.raises(TypeError, match=r"unsupported operand type\(s\) for @"):
            A.swapaxes(-1, -2) @ M
        for product in (lambda: A * M, lambda: M * A):
            with pytest.raises(AssertionError, match="must be a scalar"):
                product()

    def test_pandas_and_matplotlib(self):
        M = FactoredMatrix(torch.randn(3, 2), torch.randn(2, 4))
        np.testing.assert_array_equal(pd.DataFrame(M).to_numpy(), M.AB.numpy())
        with pytest.raises(ValueError, match="2-d"):
            pd.DataFrame(M.unsqueeze(0))
        _, axes = plt.subplots()
        np.testing.assert_array_equal(axes.imshow(M).get_array(), M.AB.numpy())
        for line, column in zip(axes.plot(M), M.AB.mT, strict=True):
            np.testing.assert_allclose(line.get_ydata(orig=False), column, rtol=1e-6)
        plt.close("all")

    def test_einops_refuses_at_once(self, M):
        with pytest.raises(RuntimeError, match="type unknown"):
            einops.rearrange(M, "... -> ...")
        with pytest.raises(RuntimeError, match="type unknown"):
            einops.rearrange([M, M], "n ... -> ... n")
        if M.ndim == 2:  # a list of rows is a list of tensors
            assert_close(einops.rearrange(list(M), "i j -> j i"), M.AB.mT)


class TestSvd:
    def test_is_the_kernels(self, M, pair):
        assert isinstance(M.svd(), SVD)
        for x, y in zip(M.svd(), svd(*pair), strict=True):
            assert_close(x, y)
        assert torch.equal(M.svdvals(), M.S)

    def test_is_kept_and_freed_with_the_matrix(self):
        M = FactoredMatrix(torch.randn(4, 3), torch.randn(3, 4))
        assert M.svd() is M.svd()
        assert M.U is M.svd().U
        reference, values = weakref.ref(M), weakref.ref(M.S)
        del M
        gc.collect()
        assert reference() is None
        assert values() is None

    @pytest.mark.parametrize("factor", ["A", "B"])
    def test_is_not_kept_where_a_factor_was_changed_in_place(self, factor):
        M = FactoredMatrix(torch.randn(4, 3), torch.randn(3, 4))
        before = M.S
        getattr(M, factor).mul_(2)
        assert_close(M.S, 2 * before)
        assert M.svd() is M.svd()

    def test_is_not_kept_for_other_factors_nor_past_a_transform(self):
        M = FactoredMatrix(torch.randn(4, 3), torch.randn(3, 4))
        before = M.S
        M.A = 3 * M.A
        assert_close(M.S, 3 * before)
        A = torch.randn(4, 3)
        seen = []

        def through(A):
            seen.append(FactoredMatrix(A, M.B))
            return seen[-1].S.sum() + M.S.sum()

        torch.func.grad(through)(A)
        copy.deepcopy(M)

    def test_is_kept_in_inference_mode_too(self):
        with torch.inference_mode():
            M = FactoredMatrix(torch.randn(4, 3), torch.randn(3, 4))
            assert M.svd() is M.svd()

    def test_is_not_kept_without_the_graph_that_is_wanted(self):
        M = FactoredMatrix(torch.randn(4, 3).requires_grad_(), torch.randn(3, 4))
        with torch.no_grad():
            assert not M.svd().S.requires_grad
        assert M.svd().S.requires_grad
        M.S.sum().backward()

    def test_truncate(self, M, dense):
        U, S, V_T = torch.linalg.svd(dense, full_matrices=False)
        for k in range(M.S.shape[-1] + 1):
            best = (U[..., :k] * S[..., None, :k]) @ V_T[..., :k, :]
            is_ours(M.truncate(k), best)
            assert M.truncate(k).mdim == k
        for k in (-1, M.S.shape[-1] + 1):
            with pytest.raises(ValueError, match="choose k"):
                M.truncate(k)

    def test_pinv(self, M, dense):
        k = M.S.shape[-1]
        rtol = 1e-10  # of the dense matrix, whose values beyond the factors' rank are rounding
        is_ours(M.pinv(), torch.linalg.pinv(dense, rtol=rtol))
        cut = (M.S[..., k - 1] / M.S[..., 0]).max().item() * 1.01
        is_ours(M.pinv(rtol=cut), torch.linalg.pinv(dense, rtol=cut))
        zero = FactoredMatrix(torch.zeros(3, 2), torch.zeros(2, 4))
        is_ours(zero.pinv(), torch.zeros(4, 3))


class TestNorm:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_when_factors_cancel(self, dtype):
        """In float32 the trace of such a pair is negative."""
        torch.manual_seed(0)
        x, y = torch.randn(50, 4, dtype=dtype), torch.randn(4, 50, dtype=dtype)
        A, B = torch.cat([x, x * (1 + 1e-5)], 1), torch.cat([y, -y], 0)
        expected = torch.linalg.matrix_norm(A.double() @ B.double())
        found = FactoredMatrix(A, B).norm()
        assert found.dtype == dtype
        assert_close(found.double(), expected, rtol=1e-6, atol=0)

    def test_of_zero_and_nothing(self):
        assert FactoredMatrix(torch.zeros(3, 2), torch.ones(2, 3)).norm() == 0
        assert FactoredMatrix(torch.zeros(3, 0), torch.ones(0, 3)).norm() == 0
        A = torch.stack([torch.zeros(3, 2), torch.ones(3, 2)]).requires_grad_()
        norm = FactoredMatrix(A, torch.ones(2, 2, 3)).norm()
        assert_close(norm, torch.tensor([0.0, 6.0]))
        norm.sum().backward()
        assert A.grad.isfinite().all()

    def test_needs_no_svd(self, M):
        M.norm()
        assert M._svd is None

    def test_gradient(self, pair):
        A, B = (x.clone().requires_grad_() for x in pair)
        assert gradcheck(lambda A, B: FactoredMatrix(A, B).norm(), (A, B))


class TestTorchFunctions:
    """M goes wherever its dense product goes."""

    @pytest.mark.parametrize(
        "function",
        [
            torch.linalg.norm,
            torch.norm,
            torch.linalg.matrix_norm,
            lambda x: torch.linalg.matrix_norm(x, "nuc"),
            lambda x: torch.linalg.matrix_norm(x, 2),
            lambda x: torch.linalg.matrix_norm(x, 1),
            lambda x: torch.linalg.matrix_norm(x, keepdim=True),
            lambda x: torch.linalg.matrix_norm(x, dim=(0, 1)),
            lambda x: torch.linalg.norm(x, dim=(-2, -1)),
            lambda x: torch.linalg.norm(x, dim=-1),
            lambda x: torch.linalg.norm(x, "fro", (-2, -1), True),
            lambda x: torch.linalg.vector_norm(x, ord=3),
            lambda x: torch.norm(x, 1),
            lambda x: torch.norm(x, dim=-1),
            torch.linalg.svdvals,
            lambda x: torch.linalg.svdvals(A=x),
            lambda x: torch.linalg.svd(x).S,
            lambda x: torch.linalg.svd(x).U.shape,
            lambda x: torch.linalg.svd(x, full_matrices=False).Vh.shape,
            torch.sum,
            lambda x: torch.einsum("...ij->...ji", x),
            lambda x: einops.reduce(torch.abs(x), "... i j -> ... i", "max"),
            lambda x: torch.cat([x, x]),
            lambda x: x + 1,
            lambda x: 1 + x,
            lambda x: x - x,
            lambda x: 2 - x,
            lambda x: 1 / x,
        ],
    )
    def test_function(self, M, dense, function):
        assert_close(function(M), function(dense))

    def test_with_a_tensor(self, M, dense):
        other = torch.randn_like(dense)
        assert_close(torch.dist(M, other), torch.dist(dense, other))
        assert_close(torch.dist(other, M), torch.dist(other, dense))
        assert torch.allclose(M, dense)
        assert not torch.allclose(other, M)
        assert_close(M + other, dense + other)
        assert_close(other + M, dense + other)
        assert_close(M - other, dense - other)
        assert_close(other - M, other - dense)
        assert_close(M / other, dense / other)
        assert_close(other / M, other / dense)
        assert_close(torch.mul(M, other), dense * other)
        assert_close(torch.einsum("...ij,...ij->...", M, other), (dense * other).sum((-2, -1)))

    def test_with_another(self, M, dense, theirs):
        assert_close(M + M, 2 * dense)
        assert_close(M - theirs, torch.zeros_like(dense))
        assert torch.dist(M, M) == 0
        assert torch.allclose(M, M)

    def test_trace(self):
        M = FactoredMatrix(torch.randn(5, 2).double(), torch.randn(2, 5).double())
        assert_close(torch.trace(M), torch.trace(M.AB))
        M = FactoredMatrix(torch.randn(5, 2).double(), torch.randn(2, 3).double())
        assert_close(torch.trace(M), torch.trace(M.AB))
        with pytest.raises(RuntimeError, match="trace"):
            torch.trace(M.unsqueeze(0))

    @pytest.mark.parametrize(
        "function",
        [
            torch.linalg.norm,
            torch.linalg.svdvals,
            torch.linalg.matrix_norm,
            torch.trace,
            torch.norm,
        ],
    )
    def test_quick_ways_never_multiply_out(self, function, monkeypatch):
        M = FactoredMatrix(torch.randn(5, 2), torch.randn(2, 5))
        expected = function(M.AB)
        monkeypatch.setattr(
            FactoredMatrix, "AB", property(lambda self: pytest.fail("dense product"))
        )
        assert_close(function(M), expected)

    def test_the_issues_example(self):
        OV = FactoredMatrix(torch.randn(2, 3, 32, 8), torch.randn(2, 3, 8, 32))
        U, S, V_T = OV.svd()
        assert torch.dist(OV, U @ S.diag_embed() @ V_T) < 1e-4
        U, S, V_T = OV[0, 0].svd()
        assert torch.dist(OV[0, 0], U @ torch.diag(S) @ V_T) < 1e-4

    def test_gradients_flow(self):
        A, B = (
            torch.randn(5, 2).double().requires_grad_(),
            torch.randn(2, 5).double().requires_grad_(),
        )
        other = torch.randn(5, 5).double()
        assert gradcheck(lambda A, B: torch.dist(FactoredMatrix(A, B), other), (A, B))
        assert gradcheck(lambda A, B: FactoredMatrix(A, B).pinv().AB, (A, B))
        assert gradcheck(lambda A, B: FactoredMatrix(A, B).truncate(1).AB, (A, B))


def test_functions_take_their_arguments_by_name_and_an_out(M):
    dense = M.AB
    X = torch.randn(dense.shape[-1], 3, dtype=torch.float64)
    assert_close(torch.matmul(input=M, other=X).AB, dense @ X)
    assert_close(torch.matmul(M, X, out=torch.empty(0, dtype=torch.float64)), dense @ X)
    values = torch.linalg.svdvals(dense)
    assert_close(torch.linalg.svdvals(M, out=torch.empty(0, dtype=torch.float64)), values)
    if M.ndim == 2 and M.ldim == M.rdim:
        assert_close(torch.trace(input=M), torch.trace(dense))
    with pytest.raises(IndexError):
        torch.linalg.norm(M, dim=(M.ndim - 1, M.ndim))


def test_arithmetic_with_transformer_lens_on_either_side(M):
    theirs = transformer_lens.FactoredMatrix(M.A + 1, M.B)
    assert_close(theirs + M, theirs.AB + M.AB)
    assert_close(theirs - M, theirs.AB - M.AB)
    assert_close(M - theirs, M.AB - theirs.AB)
    assert_close(theirs / M, theirs.AB / M.AB)


def test_norm_under_vmap_is_that_of_each_matrix(pair):
    A, B = (
        X.expand(5, *X.shape) * torch.arange(5.0, dtype=X.dtype).view(5, *[1] * X.ndim)
        for X in pair
    )
    got = torch.func.vmap(lambda a, b: FactoredMatrix(a, b).norm())(A, B)
    assert_close(
        got, torch.stack([torch.linalg.matrix_norm(a @ b) for a, b in zip(A, B, strict=True)])
    )


def test_gradient_of_the_norm_under_torch_func(pair):
    def norm(a, b):
        return FactoredMatrix(a, b).norm().sum()

    got = torch.func.grad(norm, argnums=(0, 1))(*pair)
    a, b = (X.clone().requires_grad_() for X in pair)
    torch.linalg.matrix_norm(a @ b).sum().backward()
    assert_close(got, (a.grad, b.grad))
