"""Errors in Python files that a user wrote, such as a config: which line, in one line."""

from __future__ import annotations

import importlib
import traceback

# What such code may raise besides KeyboardInterrupt: sys.exit() would end the program in silence.
RAISED = (Exception, SystemExit)


def mistake(error: BaseException, file: str) -> str:
    """FILE:LINE: KIND: message, of the last line of `file` that the error came through.

    A SyntaxError is its own place's, which may be a module that `file` imports.
    """
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    place, message = ":".join(map(str, [file, *lines[-1:]])), innermost(error)
    if isinstance(error, SyntaxError):
        place, message = f"{error.filename or file}:{error.lineno}", error.msg
    return f"{place}: {type(error).__name__}: {message}"


def entered(error: BaseException, default: str, *passed: str) -> str:
    """The first file that the error came through below the one that caught it, imports aside.

    default: what stands for it where there is none, as for code written in C. passed: files between
    the two that are not the user's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = {frame.filename for frame in frames[:1]} | {importlib.__file__, *passed}
    names = [frame.filename for frame in frames if frame.filename not in ours]
    return next((name for name in names if not name.startswith("<frozen importlib")), default)


def innermost(error: BaseException) -> str:
    """The message of an error that may hold another, on one line."""
    cause: object = error
    while isinstance(cause, BaseException) and cause.args and not isinstance(cause, OSError):
        cause = cause.args[0]
    return " ".join(str(cause).split())
