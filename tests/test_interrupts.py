"""Ctrl-C inside a block that must finish."""

import signal
import threading

import pytest

from tl_weighted_pca.interrupts import uninterrupted


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
