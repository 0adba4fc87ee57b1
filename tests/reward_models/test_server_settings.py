"""The reward server's command line: addresses, tokens, and settings refused before loading."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from reward_models.server import check_address, check_binding, is_loopback, main, read_token
from tests.reward_models.processes import TOKEN, free_port

NEVER = '{"tests.scorers:Unbuildable": {}}'


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "example.org"])
def test_other_machines_need_a_token(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main(["--scorers", json.dumps({"shapes": {}}), "--host", host])
    assert stopped.value.code == 2
    assert "needs a token" in capsys.readouterr().err
    check_binding(host, TOKEN)


def test_this_machine_needs_no_token() -> None:
    for host in ("127.0.0.1", "127.8.9.1", "::1", "localhost"):
        assert is_loopback(host)
        check_binding(host, "")


def test_a_token_comes_from_the_file_then_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    assert read_token() == ""
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    file = tmp_path / "token"
    file.write_text("another-token-in-a-file\n")
    assert (read_token(), read_token(str(file))) == (TOKEN, "another-token-in-a-file")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_token("~/token") == "another-token-in-a-file"
    for weak in ("", "short", "two lines\nof some length", "ümläuts-in-a-long-token"):
        file.write_text(weak)
        with pytest.raises(ValueError, match="16 or more ASCII characters"):
            read_token(str(file))
    with pytest.raises(ValueError, match="cannot be read"):
        read_token(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--scorers", "shapes"], "is not JSON"),
        (["--scorers", "{}"], "names with their options"),
        (["--scorers", '{"shapes": 1.0}'], "names with their options"),
        (["--scorers", '{"shape": {}}'], "did you mean 'shapes'"),
        *((["--scorers", NEVER, "--max-body", n], "above 0") for n in ("0", "-1", "nan", "inf")),
        *((["--scorers", NEVER, "--port", n], f"--port {n} must lie") for n in ("-1", "99999")),
        (["--scorers", NEVER, "--host", "[::1]"], "cannot bind to --host [::1] --port 8090: "),
        (["--scorers", '{"judge": {"question": null}}'], "judge: question = None must be a text"),
        (["--scorers", '{"judge": {"model": "m", "timeout": NaN}}'], "judge: timeout = nan must"),
    ],
)
def test_bad_settings(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_a_busy_port_or_anothers_address_is_found_before_scorers_are_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        for host, reason in (("127.0.0.1", "in use"), ("192.0.2.1", "assign")):  # of RFC 5737
            with pytest.raises(SystemExit) as stopped:
                main(["--scorers", NEVER, "--host", host, "--port", str(port)])
            assert stopped.value.code == 2
            error = capsys.readouterr().err
            assert f"the server cannot bind to --host {host} --port {port}: " in error
            assert reason in error


def test_a_free_address_may_be_bound_to_again() -> None:
    for host in ("127.0.0.1", "localhost", ""):
        port = free_port()
        check_address(host, port)
        check_address(host, port)


@pytest.mark.parametrize("name", ["Contrast", "make_contrast"])
def test_a_scorer_of_groups_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--scorers", f'{{"tests.scorers:{name}": {{}}}}'])
    assert "compares the images of a group, and requests name no groups" in capsys.readouterr().err
