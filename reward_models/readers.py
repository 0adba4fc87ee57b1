"""Processes that read texts, fed through pipes; a pool of `reward_models.ocr`.

The standard library's pools start a process by importing the caller's main module in it, so that
a script without `if __name__ == "__main__"` would start its work again in every process. These
processes import `reward_models.readers` alone, so that a script or a notebook needs no guard.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {} import serve; serve()"


class ReaderDied(RuntimeError):
    """A process ended in the middle of its work."""


class Readers:
    """Up to `number` processes that call functions of importable modules; started when needed.

    They end with `close`, and with this process, however that ends: their input ends then.
    """

    def __init__(self, number: int) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        # A thread holds at most one process, so there are never more of these than of those.
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="reader")

    def map(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        """`function(*arguments)` for each of the calls, in their order.

        Raises what the first call to fail raised, or ReaderDied.
        """
        futures = [self._threads.submit(self._call, function, arguments) for arguments in calls]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """End the processes when their running calls are done; calls that wait are dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self.processes:
            with contextlib.suppress(BrokenPipeError):  # it died before it had read all
                process.communicate()

    def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        process = self._take()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, (function, arguments))
            ok, result = _receive(process.stdout)
        except (OSError, EOFError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            ended = f"process {process.pid} ended with the exit code {process.returncode}"
            raise ReaderDied(ended) from error
        finally:
            self._idle.put(process)
        if ok:
            return result
        raise result

    def _take(self) -> subprocess.Popen[bytes]:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            process = _start()
            self.processes.append(process)
            return process


def _start() -> subprocess.Popen[bytes]:
    path = json.dumps([os.path.abspath(folder) for folder in sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM.format(__name__), path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _send(pipe: IO[bytes], message: Any) -> None:
    # As bytes within a pickle: a message that cannot be unpickled leaves the pipe in order.
    pickle.dump(pickle.dumps(message), pipe)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    return pickle.loads(pickle.load(pipe))


def serve() -> None:
    """Answer calls from the input until it ends: (True, the result) or (False, the exception).

    Ctrl-C is left to the parent. What libraries print goes to the error output.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            message = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: tuple[bool, Any]
        try:
            function, arguments = pickle.loads(message)
            answer = True, function(*arguments)
        except Exception as error:
            answer = False, _portable(error)
        try:
            _send(answers, answer)
        except BrokenPipeError:  # the parent has ended
            os._exit(0)


def _portable(error: Exception) -> Exception:
    """The exception, or its words if it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
