"""Collections of objectives that have one name and other code do not add."""

import dataclasses
import functools

import pytest

import tl_weighted_pca as wpca
from tl_weighted_pca.support.callables import source_of

HOOK = "blocks.1.hook_resid_post"


class TestObjectivesOfOneNameAndOtherCode:
    """Two callables of a user's own are not one for having one name."""

    def collected(self, model, tokens, objective, **options):
        options = {"objective": objective, "progress": False} | options
        return wpca.collect(model, tokens[:4], HOOK, **options)

    def variants(self):
        def loss(run):
            return 2 * wpca.next_token_loss(run)

        first = loss

        def loss(run):
            return wpca.next_token_loss(run).square()

        return first, loss

    def test_do_not_add(self, model, tokens, tmp_path):
        first, other = self.variants()
        one, two = (self.collected(model, tokens, each) for each in (first, other))
        one.save(tmp_path / "one")
        one = wpca.Collection.load(tmp_path / "one")
        assert (one + self.collected(model, tokens, self.variants()[0]))[HOOK].n_sequences == 8
        with pytest.raises(
            ValueError, match=r"they differ in objective code '\S+ \w+' and '\S+ \w+'\."
        ):
            one + two
        with pytest.raises(
            ValueError, match="they differ in objective 'loss' and 'next_token_loss'"
        ):
            one + self.collected(model, tokens, wpca.next_token_loss)

    def test_nor_do_row_metrics(self, model, tokens):
        loss = wpca.next_token_loss
        one, two = (
            self.collected(model, tokens, loss, row_metric=each)
            for each in (lambda F, g: F @ F.mT, lambda F, g: g @ g.mT)
        )
        with pytest.raises(ValueError, match="they differ in row metric code"):
            one + two

    def test_files_of_before_add(self, model, tokens):
        first, other = self.variants()
        one, two = (self.collected(model, tokens, each) for each in (first, other))
        made = dataclasses.replace(one[HOOK].provenance, objective_code="")
        old = wpca.Collection({HOOK: dataclasses.replace(one[HOOK], provenance=made)}, one.settings)
        assert (old + two)[HOOK].n_sequences == 8
        anothers = dataclasses.replace(made, objective_code="cpython-39 0123")
        newer = dataclasses.replace(one[HOOK], provenance=anothers)
        assert (newer + two[HOOK]).n_sequences == 8  # bytecode differs between versions


def test_the_source_is_told_in_every_form_of_a_callable():
    def by(run, scale):
        return scale * wpca.next_token_loss(run)

    def by_two(run, scale):
        return 2 * scale * wpca.next_token_loss(run)

    class One:
        def loss(self, run):
            return by(run, 1)

        __call__ = loss

    class Two:
        def loss(self, run):
            return by_two(run, 1)

        __call__ = loss

    one = [by, functools.partial(by, scale=2), One(), One().loss, lambda run: by(run, 1)]
    two = [
        by_two,
        functools.partial(by_two, scale=2),
        Two(),
        Two().loss,
        lambda run: by_two(run, 1),
    ]
    for mine, theirs in zip(one, two, strict=True):
        assert source_of(mine) == source_of(mine) != source_of(theirs)
    assert source_of(wpca.next_token_loss) == source_of(wpca.sampled_token_loss()) == ""


def test_values_are_no_source():
    """Such as the device or the rank of a process, whose collections are to be summed."""

    def of(rank):
        return lambda run: wpca.next_token_loss(run) + 0 * rank

    assert source_of(of(0)) == source_of(of(1))
