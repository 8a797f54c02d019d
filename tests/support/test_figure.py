"""One look a method, whatever it is called and whatever is drawn beside it."""

import pytest

from tl_weighted_pca.bases.names import display_name
from tl_weighted_pca.cli.basis import Method
from tl_weighted_pca.cli.options import ObjectiveName
from tl_weighted_pca.support.figure import METHODS, styles


@pytest.mark.parametrize(
    "names",
    [
        ["PCA", "weighted PCA", "Fisher-metric PCA", "trained basis", "random"],
        ["metric-fisher", "metric loss", "pca", "random", "weighted-loss", "trained"],
        ["random_basis", "optimize_basis", "metric_pca(fisher)", "weighted_pca", "pca"],
        ["something else", "random", "weighted", "metric", "trained", "PCA"],
    ],
)
def test_a_method_looks_the_same_in_every_picture(names):
    found = styles(names)
    assert "pca" in next(iter(found)).lower() and "random" in list(found)[-1]
    looks = {
        word: found[name]
        for word, name in zip(["pca", "random"], [next(iter(found)), list(found)[-1]], strict=True)
    }
    assert looks["pca"] == {"color": "#000000", "marker": "o", "linestyle": "-"}
    assert looks["random"] == {"color": "#8c8c8c", "marker": "x", "linestyle": "--"}
    for name, style in found.items():
        for word in ("weighted", "trained", "optimize"):
            if word in name:
                assert tuple(style.values())[:2] == METHODS[word][:2]
    assert len({tuple(style.values()) for style in found.values()}) == len(names)
    # Told apart without colour, too.
    assert len({(s["marker"], s["linestyle"]) for s in found.values()}) == len(names)


@pytest.mark.parametrize("method", [each for each in Method if each not in ("pca", "random")])
def test_a_method_looks_the_same_whatever_its_gradients_are_of(method):
    """As the commands name its bases, as files have it, and as it is shown."""
    keys = [method.value, *(f"{method.value} {each.value}" for each in ObjectiveName)]
    names = [*keys, *(key.replace(" ", "-") for key in keys), *map(display_name, keys)]
    expected = METHODS[method.value]
    assert {tuple(styles([name])[name].values()) for name in names} == {expected}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("gradient-weighted PCA", "weighted"), ("trained basis from random", "trained"),
        ("trained from Fisher-metric PCA", "trained"), ("path-metric PCA, fisher", "path"),
        ("metric_pca(empirical)", "metric"), ("Fisher PCA", "fisher"), ("PCA, uncentred", "pca"),
        ("local_interaction_basis", "interaction"), ("LIB, fisher", "lib"),
        ("random, of Fisher gradients", "random"),
    ],
)  # fmt: skip
def test_of_several_words_the_one_that_names_the_method_counts(name, method):
    assert tuple(styles([name])[name].values()) == METHODS[method]


def test_variants_of_one_method_share_its_colour_and_many_do_not():
    few = styles(["PCA", "PCA, uncentred"])
    assert {s["color"] for s in few.values()} == {"#000000"}
    assert [s["linestyle"] for s in few.values()] == ["-", "--"]
    many = styles([f"pca of layer {i}" for i in range(6)])
    assert len({s["color"] for s in many.values()}) == 6
