"""Near-equal eigenvalues and singular values are blocks: they partition the spectrum, and fix a subspace."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tl_weighted_pca as wpca
from tl_weighted_pca.bases import Basis
from tl_weighted_pca.factored.near_equal import near_equal
from tl_weighted_pca.moments.second_moment import Moments, SecondMoment

SPECTRUM = [9.0, 9.0, 9.0, 4.0, 4.0, 1.0, 0.0, 0.0]


def basis_of(covariance):
    n = torch.tensor(1000)
    moment = SecondMoment.about_zero(n, torch.zeros(len(covariance)).double(), 1000 * covariance)
    return wpca.pca(Moments(moment, None, None, 1000, 1))


def orthogonal(seed, width):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator).double()).Q


@given(
    st.lists(st.floats(0, 1e6), max_size=12).map(lambda v: sorted(v, reverse=True)),
    st.floats(0, 1),
)
def test_blocks_partition_the_spectrum(values, rtol):
    blocks = near_equal(torch.tensor(values, dtype=torch.float64), rtol)
    assert [i for block in blocks for i in block] == list(range(len(values)))
    assert all(len(block) for block in blocks)
    for block in blocks:
        for i in block[:-1]:
            assert values[i] - values[i + 1] <= rtol * values[i]
        if block.stop < len(values):
            assert values[block[-1]] - values[block.stop] > rtol * values[block[-1]]


@pytest.mark.parametrize("seed", range(3))
def test_a_block_fixes_its_subspace_and_no_directions(seed):
    """The same matrix from two rotations within its eigenspaces, each with rounding of its own."""
    d, U = len(SPECTRUM), orthogonal(seed, len(SPECTRUM))
    within = torch.block_diag(*(orthogonal(seed + 7, n) for n in (3, 2, 1, 2)))
    values = torch.tensor(SPECTRUM).double()
    noise = torch.randn(2, d, d, generator=torch.Generator().manual_seed(seed)).double()
    one, other = (
        basis_of((V * values) @ V.T + 1e-9 * E @ E.T)
        for V, E in zip((U, U @ within), noise, strict=True)
    )
    blocks = one.blocks()
    assert [len(block) for block in blocks[:3]] == [3, 2, 1]
    assert other.blocks()[:3] == blocks[:3]
    for block in blocks[:3]:
        at = slice(block.start, block.stop)
        projectors = [b.encoder[:, at] @ b.decoder[at] for b in (one, other)]
        assert torch.allclose(*projectors, atol=1e-6)
    first = [b.encoder[:, :1] @ b.decoder[:1] for b in (one, other)]
    assert not torch.allclose(*first, atol=1e-2)


def test_equal_eigenvalues_of_a_sample_come_apart_by_5_over_root_n_in_one_of_twenty():
    n = 2000
    x = torch.randn(1000, n, 2, generator=torch.Generator().manual_seed(0)).double()
    values = torch.linalg.eigvalsh(x.mT @ x / n).flip(-1)
    whole = [len(blocks) == 1 for blocks in near_equal(values, 5 / n**0.5)]
    assert 0.94 < sum(whole) / 1000 < 0.98


def test_per_head_and_singular_values():
    eigenvalues = torch.tensor([[2.0, 2.0, 1.0], [3.0, 2.0, 1.0]]).double()
    eye = torch.eye(3).double().expand(2, 3, 3)
    heads = Basis(eye, eye, torch.zeros(2, 3).double(), eigenvalues, eigenvalues.sum(1))
    assert heads.blocks() == [[range(2), range(2, 3)], [range(1), range(1, 2), range(2, 3)]]
    U, V = orthogonal(0, 4), orthogonal(1, 4)
    A = U * torch.tensor([5.0, 5.0, 5.0, 1.0]).double()
    assert wpca.svd(A, V).blocks() == [range(3), range(3, 4)]
    assert wpca.svd(A.expand(2, 4, 4), V).blocks(10.0) == [[range(4)], [range(4)]]
    with pytest.raises(ValueError, match="rtol is -1"):
        wpca.svd(A, V).blocks(-1)
