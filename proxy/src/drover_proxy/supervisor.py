"""The process that systemd watches: it goes at once when told to stop, while the server finishes its work.

systemd starts the next process only when the last one's main process is gone. So where systemd hands over the
sockets, the server runs as the child of this small process, which imports nothing, and which ends

- when the server ends, in the same way;
- when the server says that it is ready to hand over: then the server goes on without it.

Until then the two live and die together: signals are passed on, and the kernel kills a server whose
supervisor was killed.
"""

from __future__ import annotations

import os
import signal
import sys

RELEASE = signal.SIGUSR1
VARIABLE = "DROVER_SUPERVISOR"
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT)
"""SIGABRT is the watchdog's."""
PR_SET_PDEATHSIG = 1


def wanted(arguments: list[str]) -> bool:
    """Whether the command is to serve on sockets that systemd hands over."""
    return arguments[:1] == ["serve"] and os.environ.get("LISTEN_PID") == str(os.getpid())


def supervise() -> None:
    """Fork: the child returns and becomes the server; the parent watches it, and never returns."""
    waited_for = {*PASSED_ON, RELEASE, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, waited_for)
        _become_server(parent)
        return
    while True:
        found = signal.sigwaitinfo(waited_for)
        if found.si_signo == signal.SIGCHLD:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                _end_like(status)
        elif found.si_signo != RELEASE:
            os.kill(child, found.si_signo)
        elif found.si_pid == child:
            os._exit(0)


def _end_like(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)  # of all that can have ended it, Python handles only SIGINT
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _become_server(parent: int) -> None:
    _die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # it was killed before the kernel knew
    os.environ[VARIABLE] = str(parent)
    os.environ["LISTEN_PID"] = str(os.getpid())
    if "WATCHDOG_PID" in os.environ:
        os.environ["WATCHDOG_PID"] = str(os.getpid())


class Supervisor:
    """What the server knows of its supervisor."""

    def __init__(self) -> None:
        self._pid = os.getppid()
        self.present = os.environ.pop(VARIABLE, "") == str(self._pid)

    def release(self) -> None:
        """Let it go, and so let systemd start the next process; this one lives on."""
        if self.present:
            self.present = False
            _die_with_parent(0)
            if os.getppid() == self._pid:
                os.kill(self._pid, RELEASE)


def _die_with_parent(number: int) -> None:
    import ctypes  # noqa: PLC0415 - the supervisor itself shall stay small

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
