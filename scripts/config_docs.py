"""Write docs/configuration.md, every field of a config with its default and meaning, from config/base.py.

python scripts/config_docs.py
python scripts/config_docs.py --check
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE, PAGE = ROOT / "config" / "base.py", ROOT / "docs" / "configuration.md"
INTRODUCTION = """# Configuration

Every field, with its default. Made from [config/base.py](../config/base.py) by `python scripts/config_docs.py`.

A run is a recipe and what is changed of it on the command line, by dotted name:

<!-- not run: minutes; tests/scripts/test_train_script.py runs such commands -->
```bash
python scripts/train.py --config=config/tp_grpo.py:shapes_tiny --config.epochs=20 --config.sample.group_size=16
```

A field that does not exist is refused, with the nearest name. A value that cannot work is refused with the numbers
that make it so, before any weights load. Recipes are in [config/recipes.py](../config/recipes.py); in one of your own
a field is set as `c.sample.steps = 8`.
"""


@dataclass(frozen=True)
class Field:
    """A dotted name, the default as the source has it, and what the comments say."""

    name: str
    default: str
    meaning: str


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit code 1 when the page is out of date",
    )
    text = page(SOURCE.read_text())
    if not parser.parse_args().check:
        PAGE.write_text(text)
        return 0
    if PAGE.read_text() == text:
        return 0
    print(
        f"error: {PAGE.relative_to(ROOT)} is not what config/base.py says; run python scripts/config_docs.py"
    )
    return 1


def page(source: str) -> str:
    """The whole page; a section for each part of the config, in the order of the source."""
    sections: dict[str, list[Field]] = {}
    for field in fields(source):
        sections.setdefault(field.name.rpartition(".")[0], []).append(field)
    parts = [INTRODUCTION]
    for section, own in sections.items():
        rows = [
            f"| `{field.name}` | `{field.default}` | {field.meaning.replace('|', chr(92) + '|')} |"
            for field in own
        ]
        parts.append(
            "\n".join(
                [
                    f"## {section or 'The run'}\n",
                    "| field | default | meaning |",
                    "|---|---|---|",
                    *rows,
                ]
            )
        )
    return "\n".join(parts[:1]) + "\n" + "\n\n".join(parts[1:]) + "\n"


def fields(source: str) -> Iterator[Field]:
    """In the order of the source; `c.model = _model()` stands for the fields that `_model` sets."""
    comments = _comments(source)
    functions = {
        node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)
    }
    yield from _of(functions["get_config"], "", functions, comments, source)


def _of(
    function: ast.FunctionDef,
    prefix: str,
    functions: dict[str, ast.FunctionDef],
    comments: dict[int, str],
    source: str,
) -> Iterator[Field]:
    for node in function.body:
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)):
            continue
        name = prefix + ast.unparse(node.targets[0]).removeprefix("c.")
        called = (
            node.value.func.id
            if isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)
            else ""
        )
        if called in functions:
            yield from _of(functions[called], f"{name}.", functions, comments, source)
        elif called != "ConfigDict" or (isinstance(node.value, ast.Call) and node.value.keywords):
            default = "{}" if called else ast.get_source_segment(source, node.value)
            yield Field(name, str(default), _meaning(node, comments, source))


def _meaning(node: ast.stmt, comments: dict[int, str], source: str) -> str:
    """The comment lines right above, then the comments at the end of its own lines."""
    lines = source.splitlines()
    first = node.lineno
    while lines[first - 2].lstrip().startswith("#"):
        first -= 1
    return " ".join(
        comments[i] for i in range(first, (node.end_lineno or node.lineno) + 1) if i in comments
    )


def _comments(source: str) -> dict[int, str]:
    """By line number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("# ")
        for token in tokens
        if token.type == tokenize.COMMENT
    }


if __name__ == "__main__":
    sys.exit(main())
