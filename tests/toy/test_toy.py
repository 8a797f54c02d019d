"""x², where the truth is known: what activation PCA sees, and what gradient PCA sees."""

import pytest
import torch
from formulas import cosine

import tl_weighted_pca as wpca
from tl_weighted_pca.toy.square_network import HIDDEN, square_network, wave


def angles(a, b):
    """Principal angles between the spans of the columns."""
    a, b = (torch.linalg.qr(m.double()).Q for m in (a, b))
    return torch.linalg.svdvals(a.T @ b).clamp(max=1).acos()


def moments(network, objective):
    stats = wpca.collect(network.model, network.x, HIDDEN, objective=objective, progress=False)
    return stats[HIDDEN]


@pytest.fixture(scope="module")
def plain():
    return square_network(bias=False, steps=300)


@pytest.fixture(scope="module")
def biased():
    return square_network(bias=True)


@pytest.fixture(scope="module")
def two_outputs():
    return square_network(bias=True, second=wave)


def test_activation_pca_spans_the_two_rays(plain):
    basis = wpca.pca(moments(plain, lambda run: run.output.sum(1)), center=False)
    E = plain.input_weights
    rays = torch.stack([E.relu(), (-E).relu()], 1)
    assert float(angles(basis.encoder[:, :2], rays).max()) < 0.1
    assert float(basis.explained_ratio[:2].sum()) > 0.999


@pytest.mark.parametrize("which", ["plain", "biased"])
@pytest.mark.parametrize("kind", ["output", "error"])
def test_gradient_pca_is_the_output_direction_alone(which, kind, request):
    network = request.getfixturevalue(which)

    def objective(run):
        if kind == "output":
            return run.output.sum(1)
        return (run.output - network.y[run.sequence_index]).square().sum(1)

    basis = wpca.gradient_pca(moments(network, objective))
    assert abs(cosine(basis.encoder[:, 0], network.output_weights[:, 0])) > 0.999
    assert float(basis.explained_ratio[0]) > 0.99


def test_activation_pca_does_not_find_it(plain):
    basis = wpca.pca(moments(plain, lambda run: run.output.sum(1)), center=False)
    w = plain.output_weights[:, 0]
    assert max(abs(cosine(basis.encoder[:, i], w)) for i in range(2)) < 0.99


def test_two_outputs_have_their_span_and_their_shares(two_outputs):
    basis = wpca.gradient_pca(moments(two_outputs, wpca.logit_probe(64)))
    W = two_outputs.output_weights
    assert float(angles(basis.encoder[:, :2], W).max()) < 1e-3
    assert float(basis.explained_ratio[:2].sum()) > 0.9999
    shares = torch.linalg.eigvalsh(W.double().T @ W.double()).flip(0)
    assert torch.allclose(basis.explained_ratio[:2], shares / shares.sum(), atol=0.02)


def test_they_learn_their_functions(biased, two_outputs):
    assert biased.error < 1e-3
    with torch.no_grad():
        errors = (two_outputs.model(two_outputs.x) - two_outputs.y).square().mean(0)
    assert (errors < 1e-3).all()


def test_the_error_is_the_mean_square(biased):
    with torch.no_grad():
        errors = (biased.model(biased.x) - biased.y).square()
    assert biased.error == pytest.approx(float(errors.mean()))
