"""Cards with all there is on a card, and cards of hostile text."""

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded

HOOK = "blocks.2.hook_resid_post"

NASTY = [
    "<script>alert(1)</script>", "&amp;", "\"'`", "</style>", "\n", "\t", "  ", " ", "", "שלום",
    "\u202eevil", "\u200b", "{{ 7*7 }}", "{% if %}", "-->", "<!--", "]]>", "é", "🙂", "\x07",
    "<img src=x onerror=alert(1)>", "\u00a0", "a\nb", "javascript:alert(1)", "\\u0041",
]  # fmt: skip


@pytest.fixture(scope="session")
def hostile_tokenizer(best_model):
    """One that gives hostile text for the ids of the embedded model's vocabulary."""
    size = best_model.cfg.d_vocab
    vocabulary = {f"{NASTY[i % len(NASTY)]}{'' if i < len(NASTY) else i}": i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="é"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def card_stories():
    return embedded.stories("heldout", 60)


@pytest.fixture(scope="session")
def story_cards(best_model, card_stories):
    """Cards of the embedded model, with all there is on a card."""
    stats = wpca.collect(best_model, card_stories, HOOK, progress=False)
    return wpca.cards(
        best_model, card_stories, wpca.pca(stats[HOOK]), 4, facts=embedded.FACTS, contexts=4,
        batch_size=30, ablation_tokens=2000, progress=False, compare=wpca.metric_pca(stats[HOOK]),
        prompts=[card_stories[0]["text"], "The cat"],
    )  # fmt: skip


@pytest.fixture(scope="session")
def hostile_cards(best_model, card_stories, hostile_tokenizer):
    """Cards whose tokens, facts and names of facts are hostile."""
    stats = wpca.collect(best_model, card_stories, HOOK, statistics=["activation"], progress=False)
    column = '<b onmouseover="alert(1)">'
    data = Dataset.from_dict(
        {
            "input_ids": card_stories["input_ids"],
            column: [f"<i>{i % 2}" for i in range(len(card_stories))],
        }
    )
    return wpca.cards(
        best_model, data, wpca.pca(stats[HOOK]), 4, facts=[column], contexts=4, score=None,
        tokenizer=hostile_tokenizer, prompts="The cat", progress=False,
    )  # fmt: skip
