"""`recompute=True` changes what memory is used for, and no number."""

import pytest
import torch

import tl_weighted_pca as wpca

POINTS = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z", "blocks.2.hook_resid_mid"]


def same(a: wpca.Collection, b: wpca.Collection, tolerance: float) -> bool:
    return all(
        torch.allclose(
            getattr(a[name], kind).second,
            getattr(b[name], kind).second,
            rtol=tolerance,
            atol=tolerance * float(getattr(a[name], kind).second.abs().max()),
        )
        for name in a
        for kind in ("activation", "gradient", "weighted")
    )


@pytest.mark.parametrize("points", [POINTS, "hook_embed", "blocks.3.hook_resid_pre"])
def test_same_moments(model, tokens, points):
    plain = wpca.collect(model, tokens, points, progress=False)
    again = wpca.collect(model, tokens, points, progress=False, recompute=True)
    assert same(plain, again, 1e-5)


def test_padding_and_several_objectives_share_the_forward_pass(model, tokens):
    mask = torch.ones_like(tokens)
    mask[::2, 15:] = 0
    data = [{"input_ids": tokens, "attention_mask": mask}]
    objectives = {"loss": wpca.next_token_loss, "labels": wpca.sampled_token_loss(2)}
    plain, again = (
        wpca.collect(model, data, POINTS, objective=objectives, progress=False, recompute=recompute)
        for recompute in (False, True)
    )
    assert all(same(plain[key], again[key], 1e-5) for key in objectives)


def test_a_hook_point_that_fires_thrice_counts_once(model, tokens):
    name = "blocks.1.ln1.hook_normalized"
    plain = wpca.collect(model, tokens, name, progress=False)
    again = wpca.collect(model, tokens, name, progress=False, recompute=True)
    assert again[name].n_tokens == tokens.numel()
    assert same(plain, again, 1e-5)


def test_each_block_runs_twice_downstream_and_once_upstream(model, tokens):
    calls = dict.fromkeys(range(model.cfg.n_layers), 0)
    point = "blocks.{}.ln1.hook_normalized"
    unwanted = {}

    def count(layer):
        def see(tensor, hook):
            calls[layer] += 1

        return see

    # In the MLP, where both classes fire once in a pass.
    hooks = [(point.format(0).replace("ln1", "ln2").replace("0", str(n)), count(n)) for n in calls]
    with model.hooks(fwd_hooks=hooks):
        wpca.collect(
            model, tokens, "blocks.1.hook_resid_post", progress=False, batch_size=10, recompute=True
        )
    assert not unwanted
    # And once more each, in the pass that sees where the graph must start.
    assert calls == {0: 2, 1: 2, 2: 3, 3: 3} | {n: 3 for n in calls if n > 3}


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_as_it_was(model, tokens, fail):
    before = [(type(b), dict(vars(b)).get("forward")) for b in model.blocks]

    def objective(run):
        if fail:
            raise KeyboardInterrupt
        return wpca.next_token_loss(run)

    try:
        wpca.collect(model, tokens, POINTS, objective=objective, progress=False, recompute=True)
    except KeyboardInterrupt:
        assert fail
    assert [(type(b), dict(vars(b)).get("forward")) for b in model.blocks] == before


def test_a_model_without_blocks_is_refused(mlp):
    with pytest.raises(ValueError, match="block by block"):
        wpca.collect(
            mlp,
            torch.ones(2, 3, 5, dtype=torch.float64),
            "hook_in",
            objective=lambda run: run.output.sum((1, 2)),
            recompute=True,
            progress=False,
        )
