"""A model whose vocabulary is masked."""

import contextlib

import torch


@contextlib.contextmanager
def never_saying(model, token):
    """The model with a logit of -infinity, as where a vocabulary is masked."""

    def never(logits, hook):
        logits = logits.clone()
        logits[..., token] = -torch.inf
        return logits

    if "unembed.hook_out" in model.hook_dict:
        with model.hooks(fwd_hooks=[("unembed.hook_out", never)]):
            yield
        return
    before = model.unembed.b_U.data
    model.unembed.b_U.data = before.index_fill(0, torch.tensor(token), -torch.inf)
    try:
        yield
    finally:
        model.unembed.b_U.data = before
