"""The reading processes: answers in order, errors in words, and their ends."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import pytest

from reward_models.readers import ReaderDied, Readers


class Unpicklable(Exception):
    def __reduce__(self) -> tuple:
        raise TypeError("not to be sent")


def refuse(words: str) -> None:
    raise Unpicklable(words)


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    readers = Readers(2)
    yield readers
    readers.close()


def test_answers_come_in_order_from_as_many_processes_as_are_needed(readers: Readers) -> None:
    assert readers.map(math.sqrt, [(4,)]) == [2]
    assert len(readers.processes) == 1
    assert readers.map(pow, [(2, n) for n in range(40)]) == [2**n for n in range(40)]
    assert len(readers.processes) == 2


def test_errors_keep_their_type_or_at_least_their_words(readers: Readers) -> None:
    with pytest.raises(ValueError, match="math domain error"):
        readers.map(math.sqrt, [(4,), (-1,)])
    with pytest.raises(RuntimeError, match="Unpicklable: out of ink"):
        readers.map(refuse, [("out of ink",)])
    assert readers.map(math.sqrt, [(9,)] * 5) == [3] * 5, "it still reads"


def test_what_is_printed_does_not_mix_with_the_answers(readers: Readers) -> None:
    assert readers.map(os.write, [(1, b"print me")]) == [8]


def test_a_process_that_ends_is_named_with_its_code() -> None:
    readers = Readers(1)
    with pytest.raises(ReaderDied, match=r"process \d+ ended with the exit code 3"):
        readers.map(os._exit, [(3,)])
    readers.close()
    assert [process.returncode for process in readers.processes] == [3]


def test_a_function_that_the_process_cannot_import_is_an_error(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reward_models.readers.pickle.dumps", _nowhere)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        readers.map(math.sqrt, [(4,)])


def _nowhere(message: object) -> bytes:
    return b"cno_such_module\nread\n."
