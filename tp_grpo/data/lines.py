"""What all readers of prompt files share: limits, UTF-8, and messages that name lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CLIP_WORDS = 77  # CLIP reads 77 tokens, and a word is at least one
MAX_CHARACTERS = 10_000  # of a prompt
SHOWN = 10  # lines named in a message


def read(path: Path) -> str:
    """The text of a UTF-8 file without byte order marks. Raises ValueError."""
    try:
        return path.read_bytes().decode("utf-8").replace("\ufeff", "")  # joined files have several
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        message = f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8"
        raise ValueError(message) from error


def refuse(wrong: Sequence[str], title: str) -> None:
    """Raise ValueError with the first SHOWN messages of `wrong`, if it has any."""
    if wrong:
        count = "a bad line" if len(wrong) == 1 else f"{len(wrong)} bad lines"
        rest = [f"and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        raise ValueError("\n".join([f"{title} has {count}:", *wrong[:SHOWN], *rest]))


def name(numbers: Sequence[int], unit: str = "line") -> str:
    """[3] -> "line 3"; [3, 5] -> "lines 3, 5"; at most SHOWN of them."""
    shown = ", ".join(map(str, numbers[:SHOWN]))
    return f"{unit}{'s' * (len(numbers) > 1)} {shown}{', ...' * (len(numbers) > SHOWN)}"
