"""What a program prints, on terminals and in log files of any encoding."""

from __future__ import annotations

import io
import sys


def accept_any_text() -> None:
    """From now on a character that stdout's encoding lacks is printed as "?", never an error.

    A scheduler's log may be ASCII, and a run must not end at the "±" of its score. stderr needs
    nothing: it escapes such characters.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
