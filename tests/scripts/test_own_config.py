"""--config=mine.py, a config file of one's own: its mistakes are one line, with the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import forked

HEAD = "def get_config(recipe):\n"


def refused(file: Path) -> str:
    """The one line that is printed."""
    done = forked.run("scripts/estimate.py", f"--config={file}:shapes_smoke")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    "text, place, message",
    [
        (f"{HEAD}    x = (\n", ":2", "SyntaxError: '(' was never closed"),
        ("\nimport nosuchmodule\n", ":2", "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("x = missing\n", ":1", "NameError: name 'missing' is not defined"),
        (f"{HEAD}    return missing\n", ":2", "NameError: name 'missing' is not defined"),
        (f"{HEAD}    return {{}}['abc']\n", ":2", "KeyError: abc"),
        (f"{HEAD}    return int('abc')\n", ":2", "ValueError: invalid literal for int()"),
        (f"{HEAD}    return open('/no/file')\n", ":2", "FileNotFoundError: [Errno 2] No such"),
        (f"{HEAD}    return 1 / 0\n", ":2", "ZeroDivisionError: division by zero"),
        (f"{HEAD}    raise SystemExit('no data')\n", ":2", "SystemExit: no data"),
        ("def get_config():\n    pass\n", "", "TypeError: get_config() takes 0 positional"),
        (f"{HEAD}    pass\n", "", "get_config returns a ConfigDict, got NoneType"),
    ],
)
def test_a_mistake_in_it_is_named_with_its_line(
    text: str, place: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert refused(file).startswith(f"error: {file}{place}: {message}")


def test_a_field_that_it_misspells(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from config import base\n\n\n"
        f"{HEAD}    c = base.get_config()\n    c.sample.stepz = 3\n    return c\n"
    )
    line = refused(file)
    assert line.startswith(f'error: {file}:6: AttributeError: Key "stepz" does not exist')
    assert line.endswith('Did you mean "steps" instead of "stepz"?')


def test_one_without_get_config(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("x = 1\n")
    assert refused(file) == f"error: {file} has no function get_config"


def test_a_module_that_it_imports_is_the_one_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper, file = tmp_path / "helper_of_mine.py", tmp_path / "mine.py"
    helper.write_text("x = 1\nif x\n")
    file.write_text(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport {helper.stem}\n")
    assert refused(file) == f"error: {helper}:2: SyntaxError: expected ':'"
