"""Callables are known by what they are: every edit that changes a result changes the digest."""

import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import tl_weighted_pca as wpca
from tl_weighted_pca.support.callables import code_of

BASE = """
    import math
    import torch
    from dataclasses import dataclass
    import tl_weighted_pca as wpca
    SCALE = 2.0
    TABLE = {"a": torch.tensor([1.0, 2.0])}
    def helper(x):
        return [y * SCALE for y in x]
    class Power:
        exponent = 2
        def of(self, x):
            return x ** self.exponent
    @dataclass
    class Configured(Power):
        by: float = 1.0
        def __call__(self, run):
            return self.of(run) * self.by
    def objective(run, by=3, *, shift=torch.zeros(2)):
        inner = lambda x: helper(x)[0] + math.pi
        return torch.relu(inner(run)) * by + TABLE["a"] + shift + wpca.next_token_loss(run)
    closed = (lambda offset: lambda run: objective(run) + offset)([1, {2, 3}])
    configured = Configured()
    bound = configured.of
"""
EDITS = {
    "a constant": ("math.pi", "math.e"),
    "a number": ("[0] + ", "[1] + "),
    "a global": ("SCALE = 2.0", "SCALE = 2.5"),
    "a tensor in a dict": ("[1.0, 2.0]", "[1.0, 2.1]"),
    "a helper": ("y * SCALE", "y + SCALE"),
    "a default": ("by=3", "by=4"),
    "a default of a keyword": ("torch.zeros(2)", "torch.ones(2)"),
    "an operation": ("torch.relu", "torch.sigmoid"),
    "a closure": ("{2, 3}", "{2, 4}"),
}
EDITS_OF_OBJECTS = {
    "a method": ("self.of(run) *", "self.of(run) +"),
    "a method of a base": ("x ** self", "x // self"),
    "a class's constant": ("exponent = 2", "exponent = 3"),
    "a field": ("by: float = 1.0", "by: float = 1.5"),
}


def defined(source):
    names = {"__name__": "__main__"}
    exec(textwrap.dedent(source), names)
    return names


def test_the_same_code_elsewhere_in_a_file_is_the_same():
    moved = "\n\n    # moved\n" + BASE.replace(
        "def objective", "\n    # a remark\n    def objective"
    )
    for name in ("objective", "closed", "configured", "bound"):
        assert code_of(defined(BASE)[name]) == code_of(defined(moved)[name]) != ""


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_what_a_function_reads_is_seen(edit):
    edited = defined(BASE.replace(*EDITS[edit]))
    assert code_of(defined(BASE)["closed"]) != code_of(edited["closed"])
    assert code_of(defined(BASE)["configured"]) == code_of(edited["configured"])


@pytest.mark.parametrize("edit", EDITS_OF_OBJECTS)
def test_an_edit_of_a_callable_object_is_seen(edit):
    edited = defined(BASE.replace(*EDITS_OF_OBJECTS[edit]))
    assert code_of(defined(BASE)["configured"]) != code_of(edited["configured"])
    assert code_of(defined(BASE)["closed"]) == code_of(edited["closed"])


def test_a_module_of_the_users_is_read_and_an_installed_one_is_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for factor in (1, 2, 2):
        source = f"# {len(found)}\ndef loss(run):\n    return {factor} * run"
        (tmp_path / "users_losses.py").write_text(source)
        sys.modules.pop("users_losses", None)
        import users_losses

        def objective(run, losses=users_losses):
            return losses.loss(run)

        found.append((code_of(objective), code_of(users_losses.loss)))
    assert found[0][0] != found[1][0] == found[2][0]
    assert found[0][1] != found[1][1] == found[2][1]


def test_partials_caches_and_weights():
    def scaled(run, by):
        return run * by

    by_2, by_3 = (functools.partial(scaled, by=by) for by in (2, 3))
    assert code_of(by_2) == code_of(functools.partial(scaled, by=2)) != code_of(by_3)
    assert code_of(functools.cache(scaled)) == code_of(functools.cache(scaled)) != code_of(scaled)
    layer = torch.nn.Linear(2, 3)
    before = code_of(lambda run: layer(run))
    layer.weight.data += 1
    assert code_of(lambda run: layer(run)) != before


def test_names_are_enough_for_ours_and_for_those_that_have_one():
    for ours in ("gradient", wpca.next_token_loss, wpca.logit_probe(2), wpca.hook_probe("a")):
        assert code_of(ours) == ""

    def mine(run):
        return open(run)

    mine.name = "mine, second try"
    assert code_of(mine) == ""


def test_what_cannot_be_told_is_refused(tmp_path):
    with (tmp_path / "x").open("w") as file, pytest.raises(ValueError, match="reads a _io.TextIOW"):
        code_of(lambda run: file.write(str(run)))


def test_functions_that_call_each_other_end():
    names = defined("""
        def even(n):
            return n == 0 or odd(n - 1)
        def odd(n):
            return n != 0 and even(n - 1)
    """)
    assert code_of(names["even"]) != code_of(names["odd"])


def test_the_same_in_every_process():
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_callables import BASE, defined\n"
        "from tl_weighted_pca.support.callables import code_of\n"
        "print(*(code_of(defined(BASE)[n]) for n in ('closed', 'configured', 'bound')))"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert told == {
        " ".join(code_of(defined(BASE)[n]) for n in ("closed", "configured", "bound")) + "\n"
    }
