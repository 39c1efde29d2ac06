"""Processes that serve: signals, from their first moment on."""

from __future__ import annotations

import os
import signal

import pytest

from mtrl.system.process import STOP_SIGNALS, ServingProcess
from tests.system.commands import alive


def test_signals_before_it_has_begun() -> None:
    """While the interpreter starts there is nothing but the mask that it inherited."""
    process = ServingProcess("tests.unit.system.echo")
    for number in STOP_SIGNALS:
        os.kill(process.pid, number)
    process.connection.send("there")
    assert process.next_message() == "there"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(STOP_SIGNALS) == set(), "this process has its own back"
    for number in STOP_SIGNALS:
        os.kill(process.pid, number)
    process.connection.send("still")
    assert process.next_message() == "still"
    process.close()
    assert not alive(process.pid)


def test_what_it_starts_can_be_ended() -> None:
    """Signals are not ignored by programs that an environment starts."""
    process = ServingProcess("tests.unit.system.echo")
    process.connection.send("start a program and terminate it")
    assert process.next_message() == -signal.SIGTERM
    process.close()


def test_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    process = ServingProcess("tests.unit.system.echo")
    monkeypatch.setattr(ServingProcess, "patience", 0.1)
    with pytest.raises(TimeoutError):
        process.next_message()
    process.connection.send("there")
    monkeypatch.undo()
    assert process.next_message() == "there"
    process.close()
    assert not alive(process.pid)
