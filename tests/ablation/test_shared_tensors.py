"""Ablation where several modules read one tensor: all of them, or refused with the place for it."""

import families
import pytest
import torch

import tl_weighted_pca as wpca

pytestmark = pytest.mark.usefixtures("one_thread")


def shared(family):
    """Hook points of the second block whose tensor others read too, and the one that feeds them all."""
    yield from (f"blocks.1.attn.{letter}.hook_in" for letter in "qkv")
    if family == "GPTJ":  # attention and MLP read one norm
        yield from ("blocks.1.attn.hook_in", "blocks.1.mlp.hook_in")
    else:
        yield from ("blocks.1.mlp.gate.hook_in", "blocks.1.mlp.in.hook_in")


@pytest.mark.parametrize("family", ["GPTJ", "Llama"])
def test_is_refused_past_other_readers_and_right_where_it_says(family):
    model, tokens = families.bridged(family, torch.float32), families.tokens(6)
    for name in shared(family):
        norm = "ln2" if "mlp" in name and family != "GPTJ" else "ln1"
        whole = f"blocks.1.{norm}.hook_out"
        basis = wpca.pca(wpca.collect(model, tokens, name, objective=None, progress=False)[name])
        with pytest.raises(ValueError, match=f"{name}' feeds only a part.*Ablate at '{whole}'"):
            wpca.ablation_curves(model, tokens, {"a": basis}, name, progress=False)
        curves = wpca.ablation_curves(
            model, tokens, {"a": basis}, whole, ranks=[5], anywhere=True, progress=False
        )

        def edit(point, inputs, output, basis=basis):
            return output.copy_(basis.project(output, 5))  # in place, for whoever reads it

        handle = model.hook_dict[whole].register_forward_hook(edit)
        with torch.no_grad():
            log_probs = model(tokens)[:, :-1].log_softmax(-1)
        handle.remove()
        loss = -log_probs.gather(-1, tokens[:, 1:, None]).mean()
        assert curves.scores["a"][0] == pytest.approx(float(loss), rel=1e-5)


def test_kl_takes_logits_of_minus_infinity_for_no_share():
    """Some models forbid tokens so; 0 log 0 is 0."""
    from tl_weighted_pca.ablation.scores import Scorer
    from tl_weighted_pca.models.run import Run

    x, generator = torch.zeros(2, 3, dtype=torch.long), torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 2, 3, 5, generator=generator, dtype=torch.float64)
    one[..., 4] = other[..., 4] = -torch.inf
    run = Run(one, x, None, torch.arange(2))
    scores, _ = Scorer("kl")(run, other)
    p, q = one[..., :4].log_softmax(-1), other[..., :4].log_softmax(-1)
    torch.testing.assert_close(scores, (p.exp() * (p - q)).sum((1, 2)))
    assert not Scorer("kl").unablated(run)[0].isnan().any()
