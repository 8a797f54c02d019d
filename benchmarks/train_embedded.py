"""Train the embedded model: the very run that made the weights in the package.

    python benchmarks/train_embedded.py --steps 3000 --out tl_weighted_pca/embedded/gpt2-stories

Same seed, same thread count and same version of torch: same weights. On 2 cores it takes about
fifteen minutes; `--minutes` sets a limit, to which the learning rate is then annealed.
"""

import argparse
import json
import math
import time
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

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


def batches(stories: list[list[int]], size: int, pad: int, generator: torch.Generator):
    """Endless batches [size, S] of inputs and targets, of stories of about the same length."""
    while True:
        order = torch.randperm(len(stories), generator=generator).tolist()
        for start in range(0, len(order) - 16 * size + 1, 16 * size):
            chunk = sorted(order[start : start + 16 * size], key=lambda i: len(stories[i]))
            for first in (size * torch.randperm(16, generator=generator)).tolist():
                rows = [torch.tensor(stories[i]) for i in chunk[first : first + size]]
                tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
                targets = tokens[:, 1:].masked_fill(tokens[:, 1:] == pad, IGNORED)
                yield tokens[:, :-1], targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, help="stop by then (annealed by the clock)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--stories", type=int, default=100_000, help="size of the training set")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="folder for model and tokenizer")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    from transformers import GPT2Config, GPT2LMHeadModel

    from tl_weighted_pca.embedded import vocabulary as vocab
    from tl_weighted_pca.embedded.corpus import told
    from tl_weighted_pca.embedded.vocabulary import token_ids

    write_tokenizer(args.out)
    ids = vocab.vocabulary(args.out)
    pad = ids[vocab.PAD]
    stories = [token_ids(teller.tokens, ids) for teller in islice(told("train"), args.stories)]
    check = list(islice(told("heldout"), 200))
    entropy = sum(t.entropy for t in check) / sum(len(t.tokens) + 1 for t in check)
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
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    data = batches(stories, args.batch_size, pad, torch.Generator().manual_seed(args.seed))
    started = time.monotonic()
    running = 0.0
    for step in range(args.steps):
        done = step / args.steps
        if args.minutes:
            done = max(done, (time.monotonic() - started) / (60 * args.minutes))
            if done >= 1:
                break
        rate = args.learning_rate * min(1.0, (step + 1) / 150)
        rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = next(data)
        logits = model(inputs).logits
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running += loss.item()
        if (step + 1) % 100 == 0:
            clock = time.monotonic() - started
            print(f"step {step + 1:5d}  {clock:6.0f} s  loss {running / 100:.4f}", flush=True)
            running = 0.0
    model.config.activation_function = "gelu_new"
    model.config.use_cache = True
    model.save_pretrained(args.out)
    print(f"trained for {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
