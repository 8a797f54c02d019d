"""Ablation at many hook points together, against a plain loop of hooks; ranks, shares and what fills in."""

import pytest
import torch
from conftest import KINDS
from formulas import divergences, next_token_losses, reconstructed
from hypothesis import given
from hypothesis import strategies as st

import tl_weighted_pca as wpca
from tl_weighted_pca import embedded
from tl_weighted_pca.ablation.fill import Filling, other_sequences
from tl_weighted_pca.data.batches import batches
from tl_weighted_pca.models.run import Run

STREAM = [f"blocks.{layer}.hook_resid_post" for layer in range(4)]
# Of three widths; inside each other's ablated output, and one whose residual is another's.
MIXED = [
    "hook_embed", "blocks.1.attn.hook_z", "blocks.1.hook_attn_out", "blocks.1.hook_resid_post",
    "blocks.2.hook_resid_pre", "blocks.2.mlp.hook_post", "ln_final.hook_normalized",
]  # fmt: skip
HEADS = "blocks.1.attn.hook_z"
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def bases(best_model, heldout):
    """PCA by hook point; per head at HEADS."""
    names = list(dict.fromkeys([*STREAM, *MIXED]))
    stats = wpca.collect(best_model, heldout, names, objective=None, **QUIET)
    heads = wpca.collect(best_model, heldout, HEADS, objective=None, per_head=True, **QUIET)
    return {name: wpca.pca(stats[name]) for name in names} | {HEADS: wpca.pca(heads[HEADS])}


def plain_loop(model, data, bases, kept, positions=slice(None), batch_size=32):
    """Loss per predicted token of a model with plain hooks at every hook point, in float64 formulas."""

    def hook_of(basis, k, mask):
        def hook(f, hook):
            new = reconstructed(f if basis.per_head else f.flatten(2), basis, k)
            new, edited = new.reshape(f.shape).float(), f.clone()
            for i in range(len(f)):
                at = torch.arange(f.shape[1]) if mask is None else mask[i].nonzero()[:, 0]
                edited[i, at[positions]] = new[i, at[positions]]
            return edited

        return hook

    total = count = 0.0
    for batch in batches(data, batch_size):
        hooks = [(name, hook_of(bases[name], k, batch.mask)) for name, k in kept.items()]
        options = {} if batch.mask is None else {"attention_mask": batch.mask.long()}
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            losses = next_token_losses(model(batch.inputs, **options), batch.inputs)
        if batch.mask is None:
            batch_count = losses.numel()
        else:
            counted = batch.mask[:, 1:] & batch.mask[:, :-1]
            losses, batch_count = losses * counted, int(counted.sum())
        total, count = total + float(losses.double().sum()), count + batch_count
    return total / count


@pytest.mark.parametrize("places", [STREAM, MIXED], ids=["stream", "mixed"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("positions", [slice(None), slice(2, 9)])
def test_together_is_a_plain_loop_of_hooks(
    model, tokens, heldout, bases, places, masked, positions
):
    data = heldout if masked else tokens
    here = {name: bases[name] for name in places}
    ranks = [0.5, {name: 5 + 2 * i for i, name in enumerate(places)}]
    curves = wpca.ablation_curves(
        model, data, {"pca": here}, ranks=ranks, positions=positions, anywhere=True, **QUIET
    )
    for score, kept in zip(curves.scores["pca"], curves.kept, strict=True):
        expected = plain_loop(model, data, here, kept, positions)
        assert score == pytest.approx(expected, abs=2e-5)
        assert abs(score - curves.baseline) > 1e-3  # or nothing was ablated


def test_at_share_one_everywhere_the_loss_is_the_unablated_one(model, tokens, bases):
    for places in (STREAM, MIXED):
        here = {name: bases[name] for name in places}
        for fill in ("mean", "zero", "resample"):
            curves = wpca.ablation_curves(
                model, tokens, {"pca": here}, ranks=[1.0], fill=fill, anywhere=True, **QUIET
            )
            assert curves.scores["pca"][0] == pytest.approx(curves.baseline, abs=1e-5)
            assert curves.ranks == [curves.width] == [sum(b.width for b in here.values())]


@pytest.mark.parametrize("place", [*STREAM[1:3], *MIXED])
def test_one_hook_point_in_a_mapping_is_the_curve_to_the_bit(best_model, tokens, bases, place):
    basis, options = bases[place], {"ranks": [0, 3, 0.5], **QUIET}
    plain = wpca.ablation_curves(best_model, tokens, {"a": basis}, place, **options)
    for given_bases in ({"a": {place: basis}}, {"a": basis}):
        again = wpca.ablation_curves(best_model, tokens, given_bases, **options)
        assert torch.equal(again.per_sequence["a"], plain.per_sequence["a"])
        assert (again.ranks, again.width, again.hook_point) == (plain.ranks, plain.width, place)
    for given_bases in (basis, [basis]):
        again = wpca.ablation_curves(best_model, tokens, given_bases, **options)
        assert torch.equal(again.per_sequence["pca"], plain.per_sequence["a"])


def test_only_what_is_downstream_of_the_first_runs_again(tokens, bases):
    if "HookedTransformer" not in KINDS:
        pytest.skip("which bridges can start at a layer is their own affair")
    model, runs = embedded.load_model("HookedTransformer"), [0, 0]
    for i, layer in enumerate((1, 3)):
        model.blocks[layer].mlp.register_forward_hook(
            lambda *_, i=i: runs.__setitem__(i, runs[i] + 1)
        )
    here = {name: bases[name] for name in STREAM[2:0:-1]}  # in any order
    wpca.ablation_curves(model, tokens, {"a": here}, ranks=[0, 8, 16], anywhere=True, **QUIET)
    # One plain pass, two a hook point that ask whether it feeds the model; one tries the restart.
    assert runs == [1 + 2 * 2, 1 + 2 * 2 + 1 + 3]


class TestRanks:
    def test_totals_shares_and_allocations(self, best_model, tokens, bases):
        here = {
            STREAM[1]: bases[STREAM[1]],
            "blocks.2.mlp.hook_post": bases["blocks.2.mlp.hook_post"],
        }
        ranks = [3, 0.25, {STREAM[1]: 0.5, "blocks.2.mlp.hook_post": 7}]
        curves = wpca.ablation_curves(best_model, tokens, {"a": here}, ranks=ranks, **QUIET)
        assert [list(kept.values()) for kept in curves.kept] == [[3, 3], [32, 7], [16, 64]]
        assert curves.ranks == [6, 39, 80] and curves.width == 64 + 256
        default = wpca.ablation_curves(best_model, tokens, {"a": here}, **QUIET)
        assert default.ranks == [40 * i for i in range(9)]
        assert len(default.to_pandas()) == 9

    @pytest.mark.parametrize(
        ("ranks", "message"),
        [
            ([1.5], "One of ranks is 1.5; expected a whole number of components, or a share"),
            ([-1], "One of ranks is -1; expected at least 0"),
            ([65], "are outside 0..64, the components that every basis has"),
            ([], "are outside 0..64"),
            ([{STREAM[1]: 3}], "A rank is given at blocks.1.hook_resid_post, but the bases are at"),
            ([8, {STREAM[1]: 4, STREAM[2]: 12}], "Several of the ranks keep as many components"),
            (0.5, r"ranks is 0.5; expected a list"),
            ({STREAM[1]: 3}, r"expected a list of whole numbers or shares"),
        ],
    )
    def test_ranks_that_are_none(self, best_model, tokens, bases, ranks, message):
        here = {"a": {name: bases[name] for name in STREAM[1:3]}}
        with pytest.raises(ValueError, match=message):
            wpca.ablation_curves(best_model, tokens, here, ranks=ranks, **QUIET)

    def test_the_smallest_rank_is_the_first_within_the_tolerance(self, best_model, tokens, bases):
        curves = wpca.ablation_curves(
            best_model, tokens, bases[STREAM[2]], ranks=range(0, 65, 8), **QUIET
        )
        excess = [score - curves.baseline for score in curves.scores["pca"]]
        expected = next(k for k, e in zip(curves.ranks, excess, strict=True) if e <= 0.1)
        found = curves.smallest_rank("pca", 0.1)
        assert found == expected and found.low <= found <= found.high
        assert {found.low, found.high} <= set(curves.ranks)
        few = wpca.ablation_curves(best_model, tokens, bases[STREAM[2]], ranks=[0], **QUIET)
        assert few.smallest_rank("pca") == float("inf") == few.smallest_rank("pca").high


class TestRefused:
    def test_two_names_of_one_hook_point(self, tokens, bases):
        bridge = embedded.load_model("TransformerBridge")
        name, alias = "blocks.1.hook_resid_post", "blocks.1.hook_out"
        assert bridge.hook_dict[name] is bridge.hook_dict[alias]
        both = {name: bases[name], alias: bases[name]}
        with pytest.raises(ValueError, match="two names of one hook point: ablate at one of them"):
            wpca.ablation_curves(bridge, tokens, {"a": both}, anywhere=True, **QUIET)

    def test_bases_of_several_places(self, best_model, tokens, bases):
        a, b = bases[STREAM[1]], bases[STREAM[2]]
        for several in ({"a": a, "b": b}, {"a": {STREAM[1]: a}, "b": {STREAM[2]: b}}):
            with pytest.raises(ValueError, match="need the same hook points; call once for each"):
                wpca.ablation_curves(best_model, tokens, several, **QUIET)
        with pytest.raises(ValueError, match="do not tell them apart: pass a dict"):
            wpca.ablation_curves(best_model, tokens, [a, b], **QUIET)
        with pytest.raises(ValueError, match="by hook point already: leave it out"):
            wpca.ablation_curves(best_model, tokens, {"a": {STREAM[1]: a}}, STREAM[1], **QUIET)
        with pytest.raises(ValueError, match="made at 'blocks.2.*used at 'blocks.1"):
            wpca.ablation_curves(best_model, tokens, {"a": {STREAM[1]: b}}, **QUIET)

    def test_what_does_not_feed_the_model(self, tokens, bases):
        """The bridge's middle of the stream, found among hook points that are fine."""
        bridge, middle = embedded.load_model("TransformerBridge"), "blocks.1.hook_resid_mid"
        here = {STREAM[0]: bases[STREAM[0]], middle: bases[STREAM[1]]}
        with pytest.raises(ValueError, match=f"{middle}' feeds only a part"):
            wpca.ablation_curves(bridge, tokens, {"a": here}, anywhere=True, **QUIET)


class TestFill:
    def test_zero_is_a_basis_without_a_centre(self, model, tokens, bases):
        here = {name: bases[name] for name in STREAM[1:3]}

        def hook_of(basis):
            return lambda f, hook: f @ (basis.encoder[:, :9] @ basis.decoder[:9]).float()

        hooks = [(name, hook_of(basis)) for name, basis in here.items()]
        curves = wpca.ablation_curves(
            model, tokens, {"a": here}, ranks=[9], fill="zero", score="kl", anywhere=True, **QUIET
        )
        with torch.no_grad():
            p = model(tokens)
            with model.hooks(fwd_hooks=hooks):
                q = model(tokens)
        expected = float(divergences(p, q).mean())
        assert curves.scores["a"][0] == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("place", [STREAM[2], HEADS])
    def test_resample_puts_another_sequence_at_the_same_position(
        self, best_model, heldout, bases, place
    ):
        """The dropped coordinates are those of one other sequence, and depend on the seed."""
        basis, k, seen = bases[place], 5, {}
        data = [next(batches(heldout, 8))]
        mask = data[0].mask
        with (
            torch.no_grad(),
            best_model.hooks(
                fwd_hooks=[(place, lambda f, hook: seen.__setitem__("clean", f.double()))]
            ),
        ):
            best_model(data[0].inputs, attention_mask=mask.long())
        found = []
        for seed in (0, 0, 1):
            filling = Filling("resample", seed)
            filling.prepare(Run(None, data[0].inputs, mask, data[0].sequence_index))
            found.append(filling.edit(basis, k)(seen["clean"]))
        assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
        f, E, D = seen["clean"], basis.encoder[..., :k], basis.decoder[..., :k, :]

        def kept(x):  # x E D, per head where there are heads
            return torch.einsum("...hd,hdk,hke->...he", x, E, D) if E.ndim == 3 else x @ E @ D

        real = mask.nonzero().tolist()
        lengths = mask.sum(1)
        for i, s in real:  # padding is on the right here
            others = [j for j in range(len(f)) if j != i and s < lengths[j]]
            options = [kept(f[i, s]) + f[j, s] - kept(f[j, s]) for j in others]
            if not others:
                options = [basis.center + kept(f[i, s] - basis.center)]
            assert any(torch.allclose(found[0][i, s], one, atol=1e-8) for one in options)

    def test_resample_needs_another_sequence(self, best_model, tokens, bases):
        with pytest.raises(ValueError, match="the first batch has but one: pass more sequences"):
            wpca.ablation_curves(
                best_model, tokens[:1], bases[STREAM[1]], ranks=[8], fill="resample", **QUIET
            )
        with pytest.raises(ValueError, match="expected 'mean', 'zero' or 'resample'"):
            wpca.ablation_curves(best_model, tokens, bases[STREAM[1]], fill="noise", **QUIET)

    @given(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=6),
        st.integers(0, 9),
    )
    def test_others_are_other_sequences_at_the_same_position(self, shapes, seed):
        """For any lengths and left padding, the next in a cyclic order that has such a position."""
        width = max(length + left for length, left in shapes)
        real = torch.zeros(len(shapes), width, dtype=torch.bool)
        for i, (length, left) in enumerate(shapes):
            real[i, left : left + length] = True
        row, column, found = other_sequences(real, torch.arange(len(shapes)) * 7, seed)
        for i, (length, left) in enumerate(shapes):
            for s in range(width):
                at = s - left
                others = [j for j, (n, _) in enumerate(shapes) if j != i and 0 <= at < n]
                assert bool(found[i, s]) == (0 <= at < length and bool(others))
                if found[i, s]:
                    j = int(row[i, s])
                    assert j in others and int(column[i, s]) == shapes[j][1] + at
