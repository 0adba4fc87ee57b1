"""What programs print where the encoding lacks characters."""

from __future__ import annotations

import io

import pytest

from reward_models import doctor, server, terminal


def ascii_stdout(patch: pytest.MonkeyPatch) -> io.BytesIO:
    written = io.BytesIO()
    patch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    return written


def test_a_character_that_the_encoding_lacks_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    written = ascii_stdout(monkeypatch)
    terminal.accept_any_text()
    print("0.5 ± 0.1")
    assert written.getvalue() == b"0.5 ? 0.1\n"


def test_a_stdout_without_an_encoding_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr("sys.stdout", text)
    terminal.accept_any_text()
    print("0.5 ± 0.1")
    assert text.getvalue() == "0.5 ± 0.1\n"


@pytest.mark.parametrize("main", [doctor.main, server.main])
def test_the_programs_of_scorers_accept_any_text(
    main: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    ascii_stdout(monkeypatch)
    with pytest.raises(SystemExit):
        main(["--help"])  # type: ignore[operator]
    print("±")
