"""Ctrl-C inside a block that must finish."""

import signal
import tempfile
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tl_weighted_pca.models.frozen import quiet
from tl_weighted_pca.models.hook_points import hooked
from tl_weighted_pca.support.files import check_writable, tensors_of, write_text_atomically
from tl_weighted_pca.support.interrupts import uninterrupted


@pytest.fixture
def handler():
    """Sets what Ctrl-C does, whatever it does to the tests themselves."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda new: signal.signal(signal.SIGINT, new)
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_for_the_end_of_the_block(handler):
    handler(signal.default_int_handler)
    done = []

    def interrupted():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_caller_s_own_handler_hears_of_it(handler):
    heard = []
    handler(lambda number, frame: heard.append(number))
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
        assert not heard
    assert heard == [signal.SIGINT]


def test_what_ignores_interrupts_goes_on_ignoring_them(handler):
    """As a job under nohup does."""
    handler(signal.SIG_IGN)
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_thread_that_hears_no_signals_is_left_alone(handler):
    seen = []

    def work():
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


class Impatient(torch.nn.Linear):
    """A model at which Ctrl-C is pressed again while it is given back."""

    def __init__(self):
        super().__init__(3, 3)
        self.hooked = 0

    def __setattr__(self, name, value):
        if name == "training" and value and "hooked" in self.__dict__:
            signal.raise_signal(signal.SIGINT)
        super().__setattr__(name, value)

    @contextmanager
    def hooks(self, fwd_hooks):
        self.hooked += len(fwd_hooks)
        try:
            yield
        finally:
            signal.raise_signal(signal.SIGINT)
            self.hooked -= len(fwd_hooks)


def test_a_second_interrupt_leaves_the_model_as_it_was_too(handler):
    handler(signal.default_int_handler)
    model = Impatient()
    reached = []

    def measured():
        with quiet(model, gradients=False), hooked(model, [("weight", print)]):
            reached.append((model.training, model.hooked, torch.is_grad_enabled()))
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        measured()
    assert reached == [(False, 1, False)]
    assert model.training and not model.hooked and torch.is_grad_enabled()
    assert model.weight.requires_grad and model.bias.requires_grad


def test_an_interrupt_while_hooks_are_attached_takes_them_off_again(handler):
    handler(signal.default_int_handler)
    model = Impatient()
    attach = model.hooks

    def slowly(fwd_hooks):
        manager = attach(fwd_hooks)
        enter = manager.__enter__

        def entered():
            entering = enter()
            signal.raise_signal(signal.SIGINT)
            return entering

        return SimpleNamespace(__enter__=entered, __exit__=manager.__exit__)

    model.hooks = slowly
    with pytest.raises(KeyboardInterrupt), hooked(model, [("weight", print)]):
        raise AssertionError("the interrupt comes first")
    assert not model.hooked


def test_an_interrupt_while_a_file_is_read_is_no_damage_to_it(handler):
    """safetensors turns what is raised inside it into a ValueError."""
    handler(signal.default_int_handler)
    read = []

    def get_tensor(name):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None
        read.append(name)

    file = SimpleNamespace(
        keys=lambda: ["other", "here//first", "here//second"], get_tensor=get_tensor
    )
    with pytest.raises(KeyboardInterrupt):
        tensors_of(file, "here//")
    assert read == ["here//first"]


@pytest.mark.parametrize(
    "write", [check_writable, lambda path: write_text_atomically(path, "whole")]
)
def test_an_interrupt_beside_a_temporary_file_leaves_none(handler, tmp_path, monkeypatch, write):
    handler(signal.default_int_handler)
    make = tempfile.mkstemp

    def interrupted(**where):
        made = make(**where)
        signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(tempfile, "mkstemp", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "result")
    assert not list(tmp_path.iterdir())
