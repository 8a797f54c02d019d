"""`collect` gives what its peers give, on the same weights, tokens and hook points.

Those that are installed: scikit-learn always (extra `test`), kronfluence and curvlinops with the extra
`peers`.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
try:
    from helpers import peer_sides, peer_subject
except ImportError as error:  # TransformerLens 4 has no HookedTransformer
    pytest.skip(str(error), allow_module_level=True)
finally:
    sys.path.pop(0)

from transformers import GPT2Config

SHAPE = GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=2)
LIBRARIES = {"IncrementalPCA": "sklearn", "kronfluence": "kronfluence", "curvlinops": "curvlinops"}


@pytest.fixture(scope="module")
def subject():
    return peer_subject.subject(SHAPE)


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 50, (3, 4, 16), generator=generator))


@pytest.fixture(scope="module")
def truth(subject, batches):
    return peer_sides.hooks_and_backward(subject, batches, torch.float64)()


def installed():
    for group, sides in peer_sides.SIDES.items():
        for name in sides:
            needs = [library for word, library in LIBRARIES.items() if word in name]
            if all(importlib.util.find_spec(library) for library in needs):
                yield pytest.param(group, name, id=name.replace("`", ""))


def test_both_forms_of_the_model_are_one_model(subject, batches):
    with torch.no_grad():
        torch.testing.assert_close(
            subject.linear(batches[0]).logits, subject.hooked(batches[0]), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(("group", "side"), installed())
def test_every_side_finds_the_same_covariances(subject, batches, truth, group, side):
    found = peer_sides.SIDES[group][side](subject, batches)()
    names = [m for m in subject.maps if group == "both" or m.module.endswith("c_fc")]
    wanted = {("activation", m.before) for m in names}
    if group == "both":
        wanted |= {("gradient", m.after) for m in names}
    assert set(found) == wanted
    for key, read in found.items():
        right = truth[key]()
        # All of these tokens' variance is kept: 24 components are fewer than 32.
        assert float((read() - right).norm() / right.norm()) < 1e-5, key
    # What one side does to the model must not reach the next.
    assert not any(p.grad is not None and p.grad.any() for p in subject.hooked.parameters())
