"""What the tests share: no network, and the models that the installed TransformerLens has."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import nn
from transformer_lens.hook_points import HookPoint

from tl_weighted_pca import embedded

pytest_plugins = ["in_browser", "sample_cards"]

try:  # TransformerLens 4 has only the bridge, and raises ImportError where one asks for the other
    from transformer_lens import HookedTransformer  # noqa: F401

    KINDS = ["HookedTransformer", "TransformerBridge"]
except ImportError:
    KINDS = ["TransformerBridge"]

try:  # TransformerLens 3 has it on both paths, 4 on this one
    from transformer_lens.HookedRootModule import HookedRootModule
except ImportError:
    from transformer_lens.hook_points import HookedRootModule


class TinyMLP(HookedRootModule):
    """x -> W₂ tanh(W₁ x), with hook points, on [batch, d] or [batch, pos, d]."""

    def __init__(self, width: int = 5, hidden: int = 7, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(width, hidden).double()
        self.second = nn.Linear(hidden, outputs).double()
        self.hook_in, self.hook_hidden, self.hook_out = HookPoint(), HookPoint(), HookPoint()
        self.hook_unused, self.hook_dead_end = HookPoint(), HookPoint()
        self.setup()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.hook_hidden(self.first(self.hook_in(x)).tanh())
        self.hook_dead_end(hidden * 2)
        return self.hook_out(self.second(hidden))


@pytest.fixture(
    scope="session",
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
            ],
        ),
    ],
)
def device(request: pytest.FixtureRequest) -> str:
    """Where a test runs: the same on a CPU, always, and on a GPU, where there is one."""
    return request.param


@pytest.fixture
def one_thread():
    """Matrices as small as some tests' are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=KINDS)
def model(request: pytest.FixtureRequest):
    """The embedded model, in each class there is."""
    return embedded.load_model(request.param, device="cpu")


@pytest.fixture(scope="session")
def best_model():
    """The embedded model in the best class there is."""
    return embedded.load_model(device="cpu")


@pytest.fixture(scope="session")
def heldout():
    return embedded.stories("heldout", 24)


@pytest.fixture(scope="session")
def tokens(heldout) -> torch.Tensor:
    """[10, 20] tokens: the beginnings of ten stories."""
    return torch.tensor([row[:20] for row in heldout["input_ids"][:10]])


@pytest.fixture
def mlp() -> TinyMLP:
    return TinyMLP()
