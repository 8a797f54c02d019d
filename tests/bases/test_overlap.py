"""Angles between subspaces: against constructions whose angles are known."""

import math
from dataclasses import replace

import pytest
import torch
from formulas import rotation

from tl_weighted_pca import principal_angles, subspace_overlap
from tl_weighted_pca.bases.basis import Basis
from tl_weighted_pca.bases.overlap import component_cosines, subspace_angles
from tl_weighted_pca.bases.principal_components import metric_pca, pca
from tl_weighted_pca.moments.second_moment import Moments, SecondMoment


def basis(encoder):
    """The basis with this square encoder, whatever its shape."""
    *heads, d, k = encoder.shape
    ones = torch.ones(*heads, k, dtype=torch.float64)
    return Basis(
        encoder, torch.linalg.inv(encoder), torch.zeros(*heads, d).double(), ones, ones.sum(-1)
    )


def planes(angles, seed):
    """Two subspaces with exactly these principal angles, in a rotated space, by skewed columns."""
    k = len(angles)
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.zeros(2, 2 * k + 3, k, dtype=torch.float64)
    for i, angle in enumerate(angles):
        left[2 * i, i] = 1
        right[2 * i, i], right[2 * i + 1, i] = math.cos(angle), math.sin(angle)
    turn = rotation(2 * k + 3, seed)
    mixes = torch.randn(2, k, k, generator=generator, dtype=torch.float64)
    return turn @ left @ mixes[0], turn @ right @ mixes[1] * 1e3


def test_angles_are_those_that_were_built_in_small_ones_and_right_ones_too():
    angles = [1e-9, 1e-4, 0.3, 1.2, math.pi / 2]
    left, right = planes(angles, 0)
    found = subspace_angles(left, right)
    # arccos of the cosine would give 0 or 2e-8 for the first.
    torch.testing.assert_close(found, torch.tensor(angles).double(), rtol=1e-4, atol=1e-13)
    torch.testing.assert_close(subspace_angles(right, left), found, rtol=1e-4, atol=1e-13)
    # A line in a plane makes one angle, and it is the smallest there is.
    assert float(subspace_angles(left, left[:, :1])) < 1e-12


def test_a_basis_equals_itself_and_is_orthogonal_to_its_other_half():
    whole = basis(rotation(8, 1))
    torch.testing.assert_close(subspace_overlap(whole, whole), torch.ones(8).double())
    other = basis(whole.encoder.flip(-1))
    assert float(subspace_overlap(whole, other, 4)[-1]) < 1e-28
    assert float(principal_angles(whole, other, 4).min()) == pytest.approx(math.pi / 2)
    torch.testing.assert_close(
        component_cosines(whole, other, 8), torch.eye(8).double().flip(-1), atol=1e-14, rtol=0
    )
    # At k = d every subspace is the whole space.
    assert float(subspace_overlap(whole, basis(rotation(8, 2)))[-1]) == pytest.approx(1)


@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_oblique_bases_count_by_their_subspaces_each_at_every_rank(side):
    generator = torch.Generator().manual_seed(3)
    a, b = (basis(torch.randn(7, 7, generator=generator).double()) for _ in range(2))
    curve = subspace_overlap(a, b, 6, side=side)
    for j in range(1, 7):
        angles = principal_angles(a, b, j, side=side)
        assert float(angles.cos().square().mean()) == pytest.approx(float(curve[j - 1]))
    # Turned together the two keep their angles, mixed within themselves (nested) their subspaces.
    turn, mix = rotation(7, 4), torch.randn(7, 7, generator=generator).double().triu()
    turned = [replace(x, encoder=turn @ x.encoder, decoder=x.decoder @ turn.mT) for x in (a, b)]
    torch.testing.assert_close(subspace_overlap(*turned, 6, side=side), curve)
    mixed = replace(a, encoder=a.encoder @ mix, decoder=mix.mT @ a.decoder)
    torch.testing.assert_close(subspace_overlap(mixed, b, 6, side=side), curve)
    # What an oblique basis reads is not what it writes.
    other = subspace_overlap(a, b, 6, side="encoder" if side == "decoder" else "decoder")
    assert (other - curve).abs().max() > 0.01


def test_random_subspaces_overlap_by_their_share_of_the_space():
    curves = torch.stack(
        [
            subspace_overlap(basis(rotation(12, 2 * s)), basis(rotation(12, 2 * s + 1)))
            for s in range(400)
        ]
    )
    expected = torch.arange(1, 13).double() / 12
    error = (curves.mean(0) - expected).abs()
    assert bool((error <= 4 * curves.std(0) / 20 + 1e-12).all())


def test_a_metric_that_commutes_changes_the_order_and_not_the_axes():
    variances = torch.tensor([5.0, 4.0, 3.0, 2.0]).double()
    turn = rotation(4, 5)
    n = torch.tensor(10.0)
    zero = torch.zeros(4)
    moments = Moments(
        SecondMoment.about_zero(n, zero, 10 * turn @ variances.diag() @ turn.mT), None, None, 10, 1
    )
    metric = turn @ torch.tensor([1.0, 1.0, 9.0, 9.0]).double().diag() @ turn.mT
    a, b = pca(moments), metric_pca(moments, metric)
    assert float(subspace_overlap(a, b, 2)[-1]) < 1e-20
    assert sorted(component_cosines(a, b).argmax(1).tolist()) == [0, 1, 2, 3]


def test_heads_are_compared_each_with_its_own():
    a, b = basis(rotation(5, 6, 3)), basis(rotation(5, 7, 3))
    curves = subspace_overlap(a, b, 4)
    assert curves.shape == (3, 4) and principal_angles(a, b, 2).shape == (3, 2)
    for head in range(3):
        single = subspace_overlap(basis(a.encoder[head]), basis(b.encoder[head]), 4)
        torch.testing.assert_close(curves[head], single)


def test_what_cannot_be_compared_is_refused_in_one_sentence():
    a = basis(rotation(4, 8))
    with pytest.raises(
        ValueError, match=r"\(4,\) and \(5,\).*make both at hook points of one width"
    ):
        principal_angles(a, basis(rotation(5, 8)))
    with pytest.raises(ValueError, match="k is 5; expected 1 to 4"):
        subspace_overlap(a, a, 5)
    with pytest.raises(ValueError, match="side is 'both'; expected one of decoder, encoder"):
        component_cosines(a, a, side="both")
    with pytest.raises(ValueError, match="4 and 5 dimensions"):
        subspace_angles(torch.eye(4), torch.eye(5))
    twice = replace(a, decoder=a.decoder[[0, 1, 1, 2]])
    with pytest.raises(ValueError, match="Direction 2 lies in the span of those before it"):
        subspace_overlap(a, twice, 3)
    assert subspace_overlap(a, twice, 2).shape == (2,)


def test_lengths_of_directions_do_not_matter_however_small():
    """Encoders of a metric in small units are short: their squares would vanish."""
    short = basis(rotation(6, 0) * 1e-200)
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(component_cosines(short, short, side="encoder"), eye)


def test_subspaces_of_two_dtypes_and_too_many_directions():
    a = torch.randn(5, 2)
    assert float(subspace_angles(a, a.double()).max()) < 1e-6
    for k, d in ((5, 3), (2, 1)):
        with pytest.raises(ValueError, match=f"{k} directions of a space of {d} dimensions"):
            subspace_angles(torch.randn(d, k), torch.randn(d, 1))
