"""Train the embedded models: the very runs that made the weights in the package.

    python benchmarks/train_embedded.py --out tl_weighted_pca/embedded/gpt2-stories
    python benchmarks/train_embedded.py --out tl_weighted_pca/embedded/gpt2-slips \\
        --slips --muon --steps 7000 --learning-rate 5e-3 --fact-weight 15 --seed 1

Same seed, same number of threads and same version of torch: same weights. `--minutes` sets a limit
by the clock, to which the learning rate is then annealed. What to expect is printed as it goes; what
came of it is for `benchmarks/embedded.py` to say.
"""

import argparse
import json
import math
import shutil
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from helpers.page import made_on
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100


def write_tokenizer(folder: Path) -> None:
    """Store the tokenizer whose vocabulary is every token of the first 20,000 stories."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from tl_weighted_pca.embedded.corpus import told
    from tl_weighted_pca.embedded.teller import TOKEN
    from tl_weighted_pca.embedded.vocabulary import BOS, EOS, PAD, SPECIAL_TOKENS, UNK

    words = {token for teller in islice(told("train"), 20_000) for token in teller.tokens}
    vocabulary = {token: id for id, token in enumerate((*SPECIAL_TOKENS, *sorted(words)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN.pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, vocabulary[BOS])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        padding_side="right",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text())
    # The class that both transformers 4 and 5 know, and that BOS comes by itself: without the
    # latter TransformerLens would load a second tokenizer.
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True}
    config_file.write_text(json.dumps(config, indent=2) + "\n")


class Example(NamedTuple):
    """What is trained on of a story."""

    ids: torch.Tensor
    carries_fact: torch.Tensor


def batches(stories: list[Example], size: int, generator: torch.Generator):
    """Endless batches, each padded ids [size, S] and marks [size, S] of the fact tokens."""
    while True:
        order = torch.randperm(len(stories), generator=generator).tolist()
        for start in range(0, len(order) - 16 * size + 1, 16 * size):
            # Stories of about the same length go together: little padding.
            chunk = sorted(order[start : start + 16 * size], key=lambda i: len(stories[i].ids))
            for first in (size * torch.randperm(16, generator=generator)).tolist():
                rows = [stories[i] for i in chunk[first : first + size]]
                yield (
                    pad_sequence(
                        [row.ids for row in rows], batch_first=True, padding_value=IGNORED
                    ),
                    pad_sequence([row.carries_fact for row in rows], batch_first=True),
                )


def example(teller, ids: dict[str, int]) -> Example:
    """The ids of a story, and which of them a fact determines."""
    from tl_weighted_pca.embedded.vocabulary import token_ids

    tokens = torch.tensor(token_ids(teller.tokens, ids))
    carries_fact = torch.zeros(len(tokens))
    carries_fact[[position + 1 for position, _ in teller.carried]] = 1.0
    return Example(tokens, carries_fact)


def fact_accuracy(model, stories: list[Example]) -> float:
    """Share of the fact tokens that the model ranks first."""
    right = total = 0.0
    with torch.no_grad():
        for ids, carries_fact in stories:
            hits = model(ids[None, :-1]).logits[0].argmax(-1) == ids[1:]
            right += float((hits * carries_fact[1:]).sum())
            total += float(carries_fact.sum())
    return right / total


def save(model, folder: Path) -> None:
    """Store the model as GPT-2: with the activation's usual name, and its cache on."""
    training = model.config.activation_function, model.config.use_cache
    model.config.activation_function, model.config.use_cache = "gelu_new", True
    model.save_pretrained(folder)
    model.config.activation_function, model.config.use_cache = training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, help="stop by then (annealed by the clock)")
    parser.add_argument("--slips", action="store_true", help="of a teller who slips")
    parser.add_argument("--muon", action="store_true", help="for the matrices inside the blocks")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--stories", type=int, default=100_000, help="size of the training set")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--fact-weight", type=float, default=9.0, help="added, at first")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder for model and tokenizer")
    parser.add_argument(
        "--keep", type=int, nargs="*", default=[], help="also store the model after these steps"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    from transformers import GPT2Config, GPT2LMHeadModel

    from tl_weighted_pca.embedded import vocabulary as vocab
    from tl_weighted_pca.embedded.corpus import told

    write_tokenizer(args.out)
    ids = vocab.vocabulary(args.out)
    pad = ids[vocab.PAD]
    stories = [example(teller, ids) for teller in islice(told("train", args.slips), args.stories)]
    check = list(islice(told("heldout", args.slips), 100))
    entropy = sum(t.entropy for t in check) / sum(len(t.tokens) + 1 for t in check)
    checks = [example(teller, ids) for teller in check]
    print(f"{len(stories)} stories; exact entropy {entropy:.4f} nats a token", flush=True)

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(ids),
            n_positions=128,
            n_embd=args.width,
            n_layer=args.layers,
            n_head=args.heads,
            # The same function as gelu_new, which is what gets stored, but several times faster.
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=ids[vocab.BOS],
            eos_token_id=ids[vocab.EOS],
            pad_token_id=pad,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )
    inner = [p for p in model.transformer.h.parameters() if p.ndim >= 2] if args.muon else []
    matrices = [p for p in model.parameters() if p.ndim >= 2 and all(p is not q for q in inner)]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
            lr=args.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
    ]
    if args.muon:
        optimizers.append(
            torch.optim.Muon(
                inner, lr=args.learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
            )
        )
    data = batches(stories, args.batch_size, torch.Generator().manual_seed(args.seed))
    started = time.monotonic()
    running = 0.0
    for step in range(args.steps):
        done = step / args.steps
        if args.minutes:
            done = max(done, (time.monotonic() - started) / (60 * args.minutes))
            if done >= 1:
                break
        # At its peak for long: facts are learnt one kind after the other, each rather suddenly.
        decay = 0.5 * (1 + math.cos(math.pi * max(0.0, 2 * done - 1)))
        rate = args.learning_rate * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * decay)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        tokens, carries_fact = next(data)
        targets = tokens[:, 1:]
        logits = model(tokens[:, :-1].clamp(min=0)).logits
        losses = cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        # A fact token is certain (but for slips): weighing it hardly moves the optimum, and only lets the
        # few of them be heard above the many tokens that nobody can predict.
        weight = args.fact_weight * min(1.0, 2 * (1 - done)) * carries_fact[:, 1:].flatten()
        weight += targets.flatten() != IGNORED
        loss = (weight * losses).sum() / weight.sum()
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        running += float(losses.detach().sum() / (targets != IGNORED).sum())
        if (step + 1) % 100 == 0:
            clock = time.monotonic() - started
            line = f"step {step + 1:5d}  {clock:6.0f} s  loss {running / 100:.4f}"
            if (step + 1) % 500 == 0:
                line += f"  held-out fact accuracy {fact_accuracy(model, checks):.3f}"
            print(line, flush=True)
            running = 0.0
        if step + 1 in args.keep:
            folder = args.out / f"step-{step + 1}"
            shutil.copytree(args.out, folder, ignore=shutil.ignore_patterns("step-*"))
            save(model, folder)
    save(model, args.out)
    print(f"trained for {time.monotonic() - started:.0f} s; {made_on()}", flush=True)


if __name__ == "__main__":
    main()
