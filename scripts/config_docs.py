"""Write what tp_grpo/settings states into docs/configuration.md and the comments of config/base.py.

python scripts/config_docs.py
python scripts/config_docs.py --check
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reward_models import terminal
from tp_grpo.settings import Settings
from tp_grpo.settings.setting import stated

ROOT = Path(__file__).resolve().parents[1]
BASE, PAGE = ROOT / "config" / "base.py", ROOT / "docs" / "configuration.md"
DEFAULT = re.compile(r"    c\.(?P<name>[\w.]+) = (?P<default>.+?)(?:  # .*)?")
STATED = {name: (setting, kind) for name, setting, kind in stated(Settings)}
WIDTH = 100
HEAD = "| setting | default | type, unit | range or choices | meaning |\n|---|---|---|---|---|\n"
INTRODUCTION = """# Configuration

Every setting, with its default. Made from [tp_grpo/settings](../tp_grpo/settings/sections.py) and
[config/base.py](../config/base.py) by `python scripts/config_docs.py`.

A run is a recipe and what is changed of it on the command line, by dotted name:

<!-- not run: minutes; tests/scripts/test_train_script.py runs such commands -->
```bash
python scripts/train.py --config=config/tp_grpo.py:shapes_tiny \\
    --config.epochs=20 --config.sample.group_size=16
```

A setting that does not exist is refused, with the nearest name. Values that cannot work are all
refused together, with numbers, before any weights load. Recipes, in which a setting is changed as
`c.sample.steps = 8`, are in [config/recipes.py](../config/recipes.py).
"""


def main() -> int:
    terminal.accept_any_text()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only report what is out of date")
    check, source = parser.parse_args().check, BASE.read_text("utf-8")
    texts = {BASE: commented(source), PAGE: page(source)}
    outdated = [path for path, text in texts.items() if path.read_text("utf-8") != text]
    for path in outdated:
        if check:
            name = path.relative_to(ROOT)
            print(f"error: {name} is out of date; run python scripts/config_docs.py")
        else:
            path.write_text(texts[path], "utf-8")
    return int(check and bool(outdated))


def commented(source: str) -> str:
    """config/base.py with a sentence at each setting: behind it if it fits, else above."""
    lines: list[str] = []
    for line in source.splitlines():
        match = DEFAULT.fullmatch(line)
        if match is None or match["name"] not in STATED:
            lines.append(line)
            continue
        while lines[-1].startswith("    # "):
            lines.pop()
        code, text = f"    c.{match['name']} = {match['default']}", sentence(match["name"])
        if len(code) + len(text) + 4 <= WIDTH:
            code += f"  # {text}"
        else:
            lines += textwrap.wrap(text, WIDTH, initial_indent="    # ", subsequent_indent="    # ")
        lines.append(code)
    return "\n".join(lines) + "\n"


def sentence(name: str) -> str:
    """The meaning, and the choices that it does not name."""
    setting, kind = STATED[name]
    if all(choice in setting.meaning for choice in setting.choices):
        return setting.meaning
    return f"{setting.meaning} {'Any' if kind.startswith('tuple') else 'One'} of: {setting.bounds}."


def page(source: str) -> str:
    """A table for each section, in the order of config/base.py."""
    parts, section = [INTRODUCTION], None
    for match in filter(None, map(DEFAULT.fullmatch, source.splitlines())):
        if (name := match["name"]) not in STATED:
            continue
        if section != (section := name.rpartition(".")[0]):
            parts.append(f"\n## {section or 'The run'}\n\n{HEAD}")
        setting, kind = STATED[name]
        default = match["default"].replace("ConfigDict(allow_dotted_keys=True)", "{}")
        accepts = f"{kind}, {setting.unit}" if setting.unit else kind
        meaning = setting.meaning.replace("|", "\\|")
        parts.append(f"| `{name}` | `{default}` | {accepts} | {setting.bounds} | {meaning} |\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.exit(main())
