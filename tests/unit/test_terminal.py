"""ask_line at a pseudo-terminal: a line, the end of the input, and a Ctrl-C that the waiting read does not notice."""

from __future__ import annotations

import os
import pty
import signal
import sys
import time

import pytest

from promptgen.terminal import ask_line


def ask_in_child(deaf: bool) -> tuple[int, int]:
    """(process, its terminal) of a process that asks for a line and leaves with 0 for a line, 4 for the end, 130 for Ctrl-C."""
    pid, screen = pty.fork()
    if pid == 0:  # pragma: no cover - the child
        code = "import sys, signal, threading\nfrom promptgen.terminal import ask_line\n" + (
            "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
            if deaf
            else ""
        )
        code += (
            "try:\n    line = ask_line()\nexcept KeyboardInterrupt:\n    sys.exit(130)\nsys.exit(0 if line else 4)\n"
        )
        os.execv(sys.executable, [sys.executable, "-c", code])
    seen = b""
    while b"> " not in seen:
        seen += os.read(screen, 100)
    return pid, screen


def code_of(pid: int, timeout_s: float) -> int | None:
    """Its exit code; None, and it is killed, where it does not leave in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if (found := os.waitpid(pid, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(found[1])
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


@pytest.mark.parametrize(("typed", "code"), [(b"hello\n", 0), (b"\n", 0), (b"\x04", 4), (b"\x03", 130)])
def test_a_line_the_end_or_ctrl_c(typed: bytes, code: int) -> None:
    pid, screen = ask_in_child(deaf=False)
    os.write(screen, typed)
    assert code_of(pid, 20) == code
    os.close(screen)


def test_a_signal_that_does_not_interrupt_the_wait_is_heard_all_the_same() -> None:
    # Its handler runs in another thread, so the waiting call goes on: the same as one that came just before the wait.
    pid, screen = ask_in_child(deaf=True)
    time.sleep(0.2)
    os.kill(pid, signal.SIGINT)
    assert code_of(pid, 5) == 130
    os.close(screen)


def test_piped_lines_come_without_a_prompt(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    os.write(write, "一\n二".encode())
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as given:
        monkeypatch.setattr(sys, "stdin", given)
        assert [ask_line(), ask_line(), ask_line()] == ["一\n", "二", ""]
    assert capfd.readouterr().err == ""
