"""The eigenproblem, by its properties: identity metric, optimality, rank-deficient metrics, signs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tl_weighted_pca as wpca


def moments(d=6, n=40, s=5, seed=0, mean=2.0, rank=None, heads=()):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = (n, s, *heads, d)
    F = draw(*shape) @ draw(d, d) + mean
    g = draw(*shape) @ (draw(d, d) if rank is None else draw(d, rank) @ draw(rank, d))
    return wpca.MomentAccumulator(per_head=bool(heads)).update(F, g).result(), F, g


METHODS = [wpca.pca, wpca.weighted_pca, wpca.gradient_pca, wpca.metric_pca, wpca.random_basis]


def lost(covariance, metric, projector):
    """E‖Q^½(f − f̂)‖² for f̂ = (f − μ)P: tr(Q (I − P)ᵀ C (I − P))."""
    off = torch.eye(len(covariance), dtype=torch.float64) - projector
    return torch.trace(metric @ off.T @ covariance @ off)


def test_pca_is_that_of_the_data_written_out():
    m, F, _ = moments()
    flat = F.flatten(0, 1)
    centred = flat - flat.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(flat))
    basis = wpca.pca(m)
    assert torch.allclose(basis.eigenvalues, values.flip(0))
    assert torch.allclose(
        (basis.components @ vectors.flip(1)).abs(), torch.eye(6).double(), atol=1e-8
    )
    assert torch.allclose(basis.mean, flat.mean(0))
    singular = torch.linalg.svdvals(flat)
    assert torch.allclose(wpca.pca(m, center=False).eigenvalues, singular.square() / len(flat))


def test_weighted_pca_is_that_of_the_sum_written_out():
    m, F, g = moments()
    mu = F.flatten(0, 1).mean(0)
    centred = F - mu
    G = sum(f.T @ (y @ y.T) @ f for f, y in zip(centred, g, strict=True)) / 200
    basis = wpca.weighted_pca(m)
    assert torch.allclose(
        basis.encoder @ basis.eigenvalues.diag() @ basis.encoder.T, G, atol=1e-8 * G.abs().max()
    )


def test_a_hand_computed_case():
    # Two tokens on the axes: variances 4.5 about the mean (1.5, 0.5)·…, gradients only along axis 1.
    F = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    g = torch.tensor([[[1.0, 0.0], [-2.0, 0.0]]], dtype=torch.float64)
    m = wpca.MomentAccumulator().update(F, g).result()
    # gᵀF = [[3, −2], [0, 0]], so G = [[9, −6], [−6, 4]], c = (1 − 2)² = 1, b = (−3, 2).
    assert m.weighted.second.tolist() == [[9.0, -6.0], [-6.0, 4.0]]
    assert float(m.weighted.weight) == 1.0
    assert m.weighted.first.tolist() == [-3.0, 2.0]
    basis = wpca.weighted_pca(m, center=False)
    assert torch.allclose(basis.eigenvalues, torch.tensor([6.5, 0.0], dtype=torch.float64))
    assert torch.allclose(
        basis.encoder[:, 0], torch.tensor([3.0, -2.0], dtype=torch.float64) / 13**0.5
    )
    assert wpca.gradient_pca(m).eigenvalues.tolist() == [2.5, 0.0]


def test_the_identity_metric_gives_pca():
    m, _, _ = moments()
    plain, metric = wpca.pca(m), wpca.metric_pca(m, torch.eye(6).double())
    assert torch.allclose(plain.eigenvalues, metric.eigenvalues)
    assert torch.allclose(plain.encoder, metric.encoder, atol=1e-8)
    assert torch.allclose(plain.decoder, metric.decoder, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("center", [True, False, "row_metric", torch.full((6,), 0.5)])
def test_full_rank_is_the_identity_and_rank_zero_the_centre(method, center):
    m, F, _ = moments()
    basis = method(m, center=center)
    assert torch.allclose(basis.project(F), F, atol=1e-9)
    assert torch.allclose(basis.project(F, 0), basis.center.expand(F.shape))
    if center is False:
        assert basis.center.abs().max() == 0
    assert basis.n_components == 6


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_directions_that_the_model_ignores_cost_nothing(rank):
    m, F, _ = moments(rank=rank)
    basis = wpca.metric_pca(m)
    metric = m.gradient.second / m.n_tokens
    covariance = m.activation.about(m.activation.mean) / m.n_tokens
    kept = basis.encoder[:, :rank] @ basis.decoder[:rank]
    assert lost(covariance, metric, kept) < 1e-9 * lost(covariance, metric, 0 * kept)
    assert torch.allclose(basis.eigenvalues[rank:], torch.zeros(6 - rank).double())
    assert torch.allclose(basis.project(F), F, atol=1e-7)
    # The rest is the PCA of what remains: each further component takes the most variance it can.
    left = [float((F - basis.project(F, k)).square().sum()) for k in range(rank, 7)]
    gains = [a - b for a, b in zip(left, left[1:], strict=False)]
    assert gains == sorted(gains, reverse=True)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), k=st.integers(0, 6), rank=st.one_of(st.none(), st.integers(1, 5))
)
def test_no_other_rank_k_map_does_better_in_the_metric(seed, k, rank):
    m, _, _ = moments(seed=seed, rank=rank)
    metric = m.gradient.second / m.n_tokens
    covariance = m.activation.about(m.activation.mean) / m.n_tokens
    basis = wpca.metric_pca(m)
    E, D = basis.encoder[:, :k], basis.decoder[:k]
    best = lost(covariance, metric, E @ D)
    whole = lost(covariance, metric, 0 * E @ D)
    used = min(k, rank or 6)
    assert abs(best - (whole - basis.eigenvalues[:used].sum())) < 1e-8 * whole
    generator = torch.Generator().manual_seed(seed)
    for size in (1e-3, 1e-1, 1.0):
        other_E = E + size * torch.randn(6, k, generator=generator, dtype=torch.float64)
        other_D = D + size * torch.randn(k, 6, generator=generator, dtype=torch.float64)
        assert lost(covariance, metric, other_E @ other_D) >= best - 1e-9 * whole


def test_a_direct_optimiser_finds_nothing_better():
    m, _, _ = moments(seed=3)
    metric = m.gradient.second / m.n_tokens
    covariance = m.activation.about(m.activation.mean) / m.n_tokens
    best = lost(
        covariance, metric, wpca.metric_pca(m).encoder[:, :2] @ wpca.metric_pca(m).decoder[:2]
    )
    generator = torch.Generator().manual_seed(0)
    E = torch.randn(6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    D = torch.randn(2, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([E, D], max_iter=500, line_search_fn="strong_wolfe")

    def step():
        optimiser.zero_grad()
        value = lost(covariance, metric, E @ D)
        value.backward()
        return value

    for _ in range(5):
        reached = float(optimiser.step(step))
    assert best <= reached * (1 + 1e-9)
    assert reached < best * 1.001


def test_damping_moves_from_the_metric_to_plain_pca():
    m, _, _ = moments(rank=3)
    plain = wpca.pca(m)
    far = wpca.metric_pca(m, damping=1e9)
    assert torch.allclose(far.encoder @ far.decoder, torch.eye(6).double(), atol=1e-8)
    one, two = plain.encoder[:, :2] @ plain.decoder[:2], far.encoder[:, :2] @ far.decoder[:2]
    assert torch.allclose(one, two, atol=1e-6)


def test_the_whole_triplet():
    m, _, _ = moments()
    basis = wpca.metric_pca(m, torch.eye(6).double(), weighted=True)
    assert torch.allclose(basis.eigenvalues, wpca.weighted_pca(m).eigenvalues)
    assert torch.allclose(basis.encoder, wpca.weighted_pca(m).encoder, atol=1e-8)


def test_the_method_says_what_makes_the_eigenvalues_other_numbers():
    m, _, _ = moments()
    assert wpca.metric_pca(m, weighted=True).method == "metric_pca(weighted)"
    metric = wpca.Metric(torch.eye(6).double(), name="fisher")
    basis = wpca.metric_pca(m, metric, weighted=True, damping=0.1)
    assert basis.method == "metric_pca(fisher, weighted, damping=0.1)"


@pytest.mark.parametrize("method", METHODS)
def test_one_basis_a_head(method):
    m, F, g = moments(heads=(3,), d=4)
    basis = method(m)
    assert basis.per_head
    assert basis.encoder.shape == (3, 4, 4)
    assert torch.allclose(basis.project(F), F, atol=1e-9)
    if method is wpca.random_basis:
        return
    for h in range(3):
        alone = method(wpca.MomentAccumulator().update(F[:, :, h], g[:, :, h]).result())
        assert torch.allclose(basis.project(F, 2)[:, :, h], alone.project(F[:, :, h], 2), atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_signs_and_order_are_deterministic(method):
    m, _, _ = moments()
    basis, again = method(m), method(m)
    assert torch.equal(basis.encoder, again.encoder)
    if method is not wpca.random_basis:
        largest = basis.encoder.gather(0, basis.encoder.abs().argmax(0, keepdim=True))
        assert (largest > 0).all()
        assert (basis.eigenvalues.diff() <= 0).all()
    assert float(basis.explained_ratio.sum()) == pytest.approx(1.0)


def test_mirrored_data_turns_no_sign():
    m, F, g = moments(mean=0.0)
    mirrored = wpca.MomentAccumulator().update(-F, -g).result()
    assert torch.allclose(wpca.pca(m).encoder, wpca.pca(mirrored).encoder, atol=1e-8)


class TestBasis:
    def test_encode_and_decode_are_project(self):
        m, F, _ = moments()
        basis = wpca.metric_pca(m).truncate(3)
        assert torch.allclose(basis.decode(basis.encode(F)), basis.project(F))
        assert torch.allclose(basis.project(F), wpca.metric_pca(m).project(F, 3))
        assert basis.n_components == 3
        assert float(basis.explained_ratio.sum()) < 1

    def test_metric_coordinates_carry_their_importance(self):
        m, F, _ = moments()
        basis = wpca.metric_pca(m)
        z = basis.encode(F).flatten(0, 1)
        assert torch.allclose(z.T @ z / len(z), basis.eigenvalues.diag(), atol=1e-8)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_any_dtype_comes_back_as_it_was(self, dtype):
        m, F, _ = moments()
        basis = wpca.pca(m)
        x = F.to(dtype)
        assert basis.project(x).dtype == dtype
        assert torch.allclose(basis.project(x).double(), x.double(), rtol=1e-2, atol=1e-2)
        assert basis.encode(x).dtype == torch.float32

    def test_files_come_back_to_the_bit(self, tmp_path):
        m, _, _ = moments()
        basis = wpca.metric_pca(m)
        basis.save(tmp_path / "b.safetensors")
        loaded = wpca.Basis.load(tmp_path / "b.safetensors")
        assert torch.equal(loaded.encoder, basis.encoder)
        assert torch.equal(loaded.total, basis.total)
        assert (loaded.method, loaded.provenance) == (basis.method, basis.provenance)

    def test_a_basis_that_cannot_be_written_leaves_the_old_one(self, tmp_path, monkeypatch):
        m, _, _ = moments()
        path = tmp_path / "b.safetensors"
        wpca.pca(m).save(path)
        before = path.read_bytes()

        def no_space(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", no_space)
        with pytest.raises(OSError, match="No space left on device; what was there before"):
            wpca.metric_pca(m).save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_heads_may_come_apart_and_columns_are_no_heads(self):
        basis = wpca.pca(moments()[0])  # of width 6
        x = torch.randn(4, 5, 6)
        apart = x.unflatten(-1, (2, 3))
        assert torch.equal(basis.encode(apart), basis.encode(x))
        assert torch.equal(basis.project(apart, 2).flatten(-2), basis.project(x, 2))
        for use in (basis.encode, basis.project):
            with pytest.raises(ValueError, match="do not fit this basis"):
                use(torch.randn(6, 1))

    def test_heads_of_width_one_come_with_a_batch(self):
        basis = wpca.pca(moments()[0])
        x = torch.randn(2, 5, 6)
        assert torch.equal(basis.project(x[..., None], 3)[..., 0], basis.project(x, 3))

    def test_rounding_is_no_fault_of_the_row_metric(self):
        """A first batch far off makes the shift that all sums are about."""
        accumulator = wpca.MomentAccumulator("gradient")
        generator = torch.Generator().manual_seed(0)
        for at in (3000.0, *[0.0] * 8):
            f, g = torch.randn(2, 4, 5, 6, generator=generator)
            accumulator.update(f + at, g)
        assert wpca.weighted_pca(accumulator.result()).n_components == 6

    def test_whole_numbers_are_not_cut_to_whole_numbers(self):
        basis = wpca.pca(moments()[0])
        x = torch.arange(24).view(4, 6)
        torch.testing.assert_close(basis.project(x), x.float(), rtol=1e-4, atol=1e-4)

    def test_bases_can_be_looked_for_in_a_list(self):
        one, other = wpca.pca(moments()[0]), wpca.gradient_pca(moments()[0])
        assert one in [other, one] and one not in [other] and one != other
        assert one.digest == wpca.pca(moments()[0]).digest != other.digest

    def test_wrong_use_is_told_in_a_sentence(self, tmp_path):
        m, F, _ = moments()
        basis = wpca.pca(m)
        with pytest.raises(ValueError, match=r"Rank 7 is outside 0\.\.6"):
            basis.project(F, 7)
        with pytest.raises(ValueError, match="The rank is -1; expected at least 0"):
            basis.hook(-1)
        with pytest.raises(ValueError, match="do not fit this basis"):
            basis.project(F[..., :5])
        with pytest.raises(ValueError, match="2 columns, but this basis has 6"):
            basis.decode(F[..., :2])
        with pytest.raises(FileNotFoundError):
            wpca.Basis.load(tmp_path / "none")
        (tmp_path / "text").write_text("not a basis")
        with pytest.raises(ValueError, match="not readable as what Basis.save writes"):
            wpca.Basis.load(tmp_path / "text")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"center": "median"}, "expected True .token mean., False"),
            ({"center": torch.zeros(3)}, "has width 6: pass a vector of that width"),
            ({"metric": torch.eye(5)}, r"pass one \[d, d\] matrix"),
            ({"metric": -torch.eye(6)}, "expected a positive semi-definite matrix"),
            ({"metric": torch.eye(6).roll(1, 0)}, "not symmetric"),
            ({"metric": torch.full((6, 6), float("nan"))}, "NaN or infinity"),
            ({"damping": -1.0}, "expected a finite number not below zero"),
            ({"damping": float("nan")}, "expected a finite number not below zero"),
            ({"damping": float("inf")}, "expected a finite number not below zero"),
            ({"center": torch.zeros(1, 6)}, "has width 6: pass a vector of that width"),
            ({"center": torch.full((6,), float("nan"))}, "centre holds NaN"),
            ({"metric": torch.eye(6).expand(4, 6, 6)}, r"pass one \[d, d\] matrix"),
        ],
    )
    def test_wrong_metrics_and_centres(self, arguments, message):
        m, _, _ = moments()
        with pytest.raises(ValueError, match=message):
            wpca.metric_pca(m, **arguments)


def test_a_basis_is_told_in_one_line():
    m, _, _ = moments(heads=(2,))
    assert repr(wpca.pca(m)) == "Basis(pca: 2 heads, 6 components of width 6)"
    assert repr(wpca.pca(moments()[0]).truncate(3)) == "Basis(pca: 3 components of width 6)"
