"""Likeness of matrices: closed forms of chance against chance itself, curves against their definition."""

import math

import pytest
import torch
from fancy_einsum import einsum
from formulas import rotation

from tl_weighted_pca.ansatz import alignment


def positive(d, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(d, 3 * d, generator=generator, dtype=torch.float64)
    return (x * torch.linspace(1, 1 + spread, 3 * d)) @ x.mT / (3 * d)


def test_the_cosine_by_chance_is_the_product_of_both_cosines_with_the_identity():
    a, g, generator = positive(7, 0, 4.0), positive(7, 1, 4.0), torch.Generator().manual_seed(2)
    draws = [rotation(7, generator) for _ in range(4000)]
    eye = torch.eye(7, dtype=torch.float64)
    cosines = torch.tensor([alignment.cosine(r @ g @ r.mT, a) for r in draws])
    expected = alignment.cosine(eye, a) * alignment.cosine(eye, g)
    assert float(cosines.mean()) == pytest.approx(
        expected, abs=4 * float(cosines.std()) / 4000**0.5
    )
    centred = torch.tensor([alignment.centred_cosine(r @ g @ r.mT, a) for r in draws])
    assert float(centred.mean()) == pytest.approx(0, abs=4 * float(centred.std()) / 4000**0.5)
    assert float(centred.std()) == pytest.approx(alignment.centred_cosine_sd(7), rel=0.05)


def test_participation_ratio_is_the_squared_cosine_with_the_identity():
    a = positive(5, 3)
    eye = torch.eye(5, dtype=torch.float64)
    assert alignment.participation_ratio(a) == pytest.approx(alignment.cosine(a, eye) ** 2)
    assert alignment.participation_ratio(eye) == pytest.approx(1)
    one = torch.zeros(5, 5, dtype=torch.float64)
    one[2, 2] = 3
    assert alignment.participation_ratio(one) == pytest.approx(1 / 5)
    assert alignment.support_condition(one) == 1
    assert alignment.support_condition(torch.tensor([4.0, 2.0, 0.0]).diag().double()) == 0.5
    assert math.isnan(alignment.centred_cosine(eye, a))


def test_captured_is_the_share_of_the_best_subspace_and_random_ones_reach_their_mean():
    agop, generator = positive(6, 4, 5.0), torch.Generator().manual_seed(0)
    w = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    u = torch.linalg.svd(w).U
    best = torch.linalg.eigvalsh(agop).flip(0)
    slow = [
        float(einsum("i k, i j, j k ->", u[:, :k], agop, u[:, :k]) / best[:k].sum())
        for k in range(1, 5)
    ]
    torch.testing.assert_close(alignment.captured(w, agop), torch.tensor(slow).double())
    draws = torch.stack([alignment.captured(rotation(6, generator) @ w, agop) for _ in range(2000)])
    torch.testing.assert_close(
        draws.mean(0), alignment.captured_by_chance(w, agop), rtol=0.02, atol=0
    )
    # Its own root's directions are the best there are.
    assert alignment.captured(alignment.power_of(agop, 0.5), agop).min() > 1 - 1e-9


def test_angles_of_equal_and_orthogonal_subspaces():
    agop = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64).diag()
    w = torch.eye(4, dtype=torch.float64)[:, :2] @ torch.tensor([[2.0, 0], [0, 3.0]]).double()
    assert alignment.principal_angles(w, agop, 2).max() < 1e-6
    v = torch.eye(4, dtype=torch.float64)[:, 2:]
    torch.testing.assert_close(
        alignment.principal_angles(v, agop, 2), torch.full((2,), math.pi / 2).double()
    )
    with pytest.raises(ValueError, match="expected 1 to 2"):
        alignment.principal_angles(v, agop, 3)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_replaced_draws_whole_weights_of_the_same_spectrum(shape):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    k = positive(shape[1], 5, 6.0)
    u, s, v_t = torch.linalg.svd(w, full_matrices=False)
    slow = []
    for _ in range(600):
        random = (rotation(shape[0], generator) @ u) * s @ (v_t @ rotation(shape[1], generator))
        slow.append(alignment.cosine(random @ random.mT, random @ k @ random.mT))
    error = torch.tensor(slow).std() / 600**0.5
    fast = alignment.replaced_cosine(w, k, draws=600)
    assert fast == pytest.approx(sum(slow) / 600, abs=6 * float(error))
    # With a tight frame of gradients any weight satisfies the ansatz.
    eye = torch.eye(shape[1], dtype=torch.float64)
    assert alignment.replaced_cosine(w, eye, draws=2) == pytest.approx(1, abs=1e-12)
