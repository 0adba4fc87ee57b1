"""README.md and docs/: commands work, examples compute, quotations and figures are real."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from config import base, recipes
from config.models import MEMORY as MODEL_MEMORY
from config.models import MODELS
from reward_models.pickscore import PickScore
from tests import forked
from tp_grpo.cost.estimate import estimate
from tp_grpo.method import advantage, credit
from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.models import pretrained
from tp_grpo.observe import alarms
from tp_grpo.settings import Settings
from tp_grpo.store import files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
# A block that is not run here begins with one of these: why, or which test runs it.
REASONS = (
    "needs a GPU",
    "needs weights",
    "needs the network",
    "needs a finished run",
    "minutes; tests/",
)
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>.*?) -->\n)?```bash\n(?P<body>.*?)```", re.DOTALL)
# Appended to the commands of a page, so that they take seconds.
CHEAP = {
    "generate.py": ["--config.eval.steps=2"],
    "evaluate.py": ["--config.eval.steps=2", "--config.eval.prompts=4", "--config.eval.members=1"],
    "estimate.py": [],
    "prepare_prompts.py": [],
    "report.py": [],
}


def commands(body: str) -> Iterator[list[str]]:
    """The words of each command, without comments and environment assignments."""
    for line in body.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield [word for i, word in enumerate(words) if i or not re.match(r"[A-Z_]+=", word)]


def blocks() -> Iterator[tuple[str, str | None, list[str]]]:
    """(page, why it is not run or None, words) of every fenced command."""
    for page, text in PAGES.items():
        for block in BLOCK.finditer(text):
            for words in commands(block["body"]):
                yield page, block["reason"], words


def inline() -> Iterator[tuple[str, str | None, list[str]]]:
    """The commands inside a line of prose."""
    for page, text in PAGES.items():
        for code in re.findall(
            r"`((?:python|bash) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        ):
            yield page, "prose", shlex.split(code.replace("\n", " "))


ALL = [*blocks(), *inline()]
RUN = [(page, words) for page, reason, words in ALL if reason is None]


def named(items: list[tuple[str, str | None, list[str]]]) -> list[str]:
    return [f"{page}: {' '.join(words)[:70]}" for page, _, words in items]


def program(words: list[str]) -> tuple[Path, list[str]] | None:
    """The file of ours that a command runs, and its arguments; None for programs of others."""
    for i, word in enumerate(words):
        if word == "-m" and words[i + 1].startswith(("tp_grpo", "reward_models")):
            return ROOT / f"{words[i + 1].replace('.', '/')}.py", words[i + 2 :]
        if re.match(r"(scripts|benchmarks)/.*\.(py|sh)$", word):
            return ROOT / word, words[i + 1 :]
    return None


def test_there_are_commands_and_what_is_not_run_says_why() -> None:
    assert len(RUN) >= 8 and len(ALL) > 20
    for page, reason, words in blocks():
        assert reason is None or reason.startswith(REASONS), f"{page}: {words}: {reason}"
        for test in re.findall(r"tests/[\w/]+\.py", reason or ""):
            assert (ROOT / test).is_file(), test


@pytest.mark.parametrize("page, reason, words", ALL, ids=named(ALL))
def test_every_command_names_programs_options_and_fields_that_exist(
    page: str, reason: str | None, words: list[str]
) -> None:
    ours = program(words)
    if ours is None:
        assert reason is not None, f"{page}: {words} is not ours: say why it is not run"
        return
    file, arguments = ours
    assert file.is_file(), file
    source = file.read_text() + (ROOT / "scripts" / "_config.py").read_text()
    config = base.get_config()
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option == "--config":
            module, _, recipe = value.partition(":")
            if recipe.isupper():  # a placeholder
                continue
            if module in ("my_credit.py", "my_objective.py"):  # the reader's, which a page shows
                assert recipe in recipes.RECIPES
                continue
            config = importlib.import_module(
                module.removesuffix(".py").replace("/", ".")
            ).get_config(recipe)
        elif option.startswith("--config."):
            assert option.removeprefix("--config.") in dict(flat(config.to_dict())), argument
        elif option.startswith("--") and file.suffix == ".py":
            assert f'"{option.removeprefix("--")}"' in source or f'"{option}"' in source, argument


def flat(fields: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in fields.items():
        yield prefix + name, value
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository; what is written stays there."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("config", "docs", "reward_models", "scripts", "tp_grpo"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "drawbench.csv").write_text("prompt,category\na red cube on a blue sphere,Colors\n")
    return folder


@pytest.fixture(scope="module")
def quickstart(checkout: Path) -> None:
    """A finished runs/quickstart in it."""
    cheap = [
        "--config.run_name=quickstart",
        "--config.epochs=1",
        "--config.eval.prompts=4",
        "--config.eval.every=9",
    ]
    run(checkout, ["python", "scripts/train.py", "--config=config/tp_grpo.py:shapes_smoke", *cheap])


def run(folder: Path, words: list[str]) -> None:
    python, *command = words
    assert python == "python" and program(words), words
    done = forked.run(*command, folder=folder)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "page, words", RUN, ids=[f"{page}: {' '.join(words)[:70]}" for page, words in RUN]
)
def test_commands_run(
    page: str, words: list[str], checkout: Path, request: pytest.FixtureRequest
) -> None:
    if any("runs/quickstart" in word for word in words):
        request.getfixturevalue("quickstart")
    ours = program(words)
    assert ours is not None and ours[0].name in CHEAP, (
        f"{page}: {words} has no cheap form: mark it as not run"
    )
    run(checkout, [*words, *CHEAP[ours[0].name]])


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].split()) <= 1000


def test_the_index_lists_every_page() -> None:
    for page in PAGES.keys() - {"README.md", "docs/README.md"}:
        assert f"]({page.removeprefix('docs/')})" in PAGES["docs/README.md"], page


def section(page: str, heading: str) -> str:
    return PAGES[page].split(f"## {heading}\n")[1].split("\n## ")[0]


def test_each_line_of_the_first_real_run_fits_the_next() -> None:
    block = BLOCK.search(section("README.md", "A first real run"))
    assert block is not None
    lines = list(commands(block["body"]))
    download = {words[2]: words[3:] for words in lines if words[:2] == ["hf", "download"]}
    config = recipes.build("tp_grpo", "turning_point", "pickscore_sd3_80gb")
    assert config.model.path in download
    assert download[config.model.path] == [
        word
        for name in pretrained.published()[config.model.path]["download"]["exclude"]
        for word in ("--exclude", name)
    ]
    assert download[PickScore.weights.repo] == list(PickScore.weights.files)
    patterns = download[PickScore.processor_weights.repo][1::2]
    for file in PickScore.processor_weights.files:
        assert any(fnmatch.fnmatch(file, pattern) for pattern in patterns), file
    programs = [program(words) for words in lines]
    names = [ours[0].stem for ours in programs if ours is not None]
    assert names == ["prepare_prompts", "doctor", "estimate", "train", "report"]
    arguments = {ours[0].stem: ours[1] for ours in programs if ours is not None}
    for prompts in (config.prompts.train, config.prompts.eval):
        assert Path(prompts).parent == Path("dataset") / arguments["prepare_prompts"][0]
    assert arguments["doctor"] == list(config.rewards.scorers)
    assert arguments["estimate"][0] == arguments["train"][0]
    assert arguments["report"] == [f"{config.output_dir}/{config.run_name}"]


def example(page: str, title: str) -> str:
    """The Python file that the section shows."""
    code = re.search(r"```python\n(.*?)```", section(page, title), re.DOTALL)
    assert code is not None
    return code[1]


@pytest.mark.slow
def test_the_credit_method_of_the_readme_trains(checkout: Path) -> None:
    (checkout / "my_credit.py").write_text(example("README.md", "Add your own"))
    cheap = ["--config.epochs=1", "--config.eval.prompts=4", "--config.tracking.groups=2"]
    run(checkout, ["python", "scripts/train.py", "--config=my_credit.py:shapes_smoke", *cheap])
    folder = checkout / "runs" / "halfway-shapes_smoke"
    assert "the credit method `halfway`" in (folder / "adapter" / "README.md").read_text()
    kept = load_file(folder / "ladders" / "epoch-1.safetensors")
    R = kept["ladder"]
    long_term = R[:, -1:] - R[:, :-1]
    torch.testing.assert_close(kept["reward"], (R.diff(dim=1) + long_term) / 2)


@pytest.mark.slow
def test_the_objective_of_the_page_on_objectives_trains(checkout: Path) -> None:
    code = example("docs/objectives.md", "Your own objective")
    (checkout / "my_objective.py").write_text(code)
    cheap = ["--config.epochs=1", "--config.eval.prompts=4", "--config.train.beta=0.1"]
    run(checkout, ["python", "scripts/train.py", "--config=my_objective.py:shapes_smoke", *cheap])
    folder = checkout / "runs" / "reinforce-shapes_smoke"
    assert "REINFORCE" in (folder / "adapter" / "README.md").read_text()
    (trained,) = [r for r in files.read_lines(folder / "metrics.jsonl") if r["kind"] == "train"]
    assert trained["kl"] > 0
    assert trained["ratio_dev_moved"] > trained["ratio_dev"], "the policy has moved"


def test_every_objective_has_a_section_with_its_settings_and_its_place() -> None:
    page = PAGES["docs/objectives.md"]
    for name, objective in OBJECTIVES.items():
        text = page.split(f"\n### {name}\n")[1].split("\n### ")[0].split("\n## ")[0]
        for option in objective.options - {"beta"}:
            setting = f"train.{option}" if option == "clip_range" else f"objective.{option}"
            assert setting in text, (name, setting)
        table = page.split("| points")[1].split("\n\n")[0].splitlines()
        row = table[-1] if objective.noised else table[2]
        assert f"`{name}`" in row.split("|")[3 if objective.clean else 2], (name, row)


def test_the_page_on_credit_says_which_combinations_are_refused() -> None:
    rows = [
        re.findall(r"`(\w+)`", row)
        for row in PAGES["docs/credit.md"].split("| `objective.name` |")[1].splitlines()[2:5]
    ]
    everything, shared, noised = rows
    assert set(everything) == {name for name, o in OBJECTIVES.items() if not o.noised}
    assert set(shared) == {*everything, "terminal"}
    assert set(noised) == {*(OBJECTIVES.keys() - everything), "terminal"}


def test_the_page_on_the_method_shows_the_yardstick() -> None:
    naive = (ROOT / "benchmarks" / "naive.py").read_text()
    assert f"```python\n{naive}```" in PAGES["docs/method.md"], (
        "copy benchmarks/naive.py into method.md"
    )


# GPUs by recipe of docs/recipes.md, whose memory the README quotes.
MEMORY = re.findall(
    r"^\| `(pickscore_\w+)` \| (\d+) \| ([\d.]+) \|", PAGES["docs/recipes.md"], re.MULTILINE
)


def test_the_readme_quotes_the_memory_of_every_recipe_and_each_fits_with_a_tenth_to_spare() -> None:
    assert {recipe for recipe, _, _ in MEMORY} == {
        name for name in recipes.RECIPES if name.startswith("pickscore_")
    }
    head, *body = re.findall(r"^\| `.*", PAGES["README.md"], re.MULTILINE)
    for recipe, _, gigabytes in MEMORY:
        model, _, gb = recipe.removeprefix("pickscore_").rpartition("_")
        model, column = (
            (model, f"`_{gb}`") if gb.endswith("gb") else (f"{model}_{gb}", "32 x 80 GB")
        )
        row = next(row for row in body if row.startswith(f"| `{model.lstrip('_')}` "))
        cells = dict(zip(*(map(str.strip, line.split("|")) for line in (head, row)), strict=True))
        assert cells[column] == gigabytes, recipe
        assert float(gigabytes) < 0.9 * (int(gb.removesuffix("gb")) if gb.endswith("gb") else 80)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_memory_of_a_models_smallest_recipe_is_what_the_estimate_says(model: str) -> None:
    """`benchmarks/memory.py` makes the whole table."""
    smallest = f"pickscore_{model}_{next(iter(MODEL_MEMORY[model]))}"
    ((gpus, gigabytes),) = [(n, gb) for recipe, n, gb in MEMORY if recipe == smallest]
    config = Settings.read(recipes.build("tp_grpo", "turning_point", smallest))
    counted = estimate(config, int(gpus))
    assert f"{max(map(counted.peak, counted.memory)) / 2**30:.1f}" == gigabytes


def test_configuration_is_what_the_source_says_and_complete() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/config_docs.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(
        re.findall(
            r"^\| `([\w.]+)` \| `.*?` \| (.*) \|$", PAGES["docs/configuration.md"], re.MULTILINE
        )
    )
    fields = {
        name for name, value in flat(base.get_config().to_dict()) if not isinstance(value, dict)
    }
    assert rows.keys() == fields | {"rewards.scorers"}
    assert not [name for name, meaning in rows.items() if not meaning.strip()], (
        "every field has a meaning"
    )


def table(heading: str) -> list[list[float]]:
    """The numbers of the table of method.md whose first column has this heading."""
    body = PAGES["docs/method.md"].split(f"\n| {heading} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[float(cell.strip(" *")) for cell in row.split("|")[2:-1]] for row in body]


def test_the_worked_example_computes() -> None:
    R = torch.tensor(table("ladder"), dtype=torch.float64)
    increments = torch.tensor(table("increment"), dtype=torch.float64)
    steps, same = credit.turning_point(R), torch.zeros(4, dtype=torch.int64)
    torch.testing.assert_close(steps.increment, increments[:, :4])
    torch.testing.assert_close(R[:, -1] - R[:, 0], increments[:, 4])
    torch.testing.assert_close(
        steps.reward, torch.tensor(table("step reward"), dtype=torch.float64)
    )
    assert steps.turning.nonzero().tolist() == [[0, 1], [1, 1]], "bold in the page"
    assert re.findall(r"\*\*([+-]0\.\d\d)\*\*", PAGES["docs/method.md"]) == ["+0.40", "-0.30"]
    unbalanced = credit.turning_point(R, balance=False)
    assert unbalanced.turning.nonzero().tolist() == [[0, 1], [1, 1], [2, 2]]
    assert unbalanced.reward[2, 2].item() == pytest.approx(0.20)
    advantages = advantage.group_normalize(steps.reward, same)
    torch.testing.assert_close(
        advantages, torch.tensor(table("advantage"), dtype=torch.float64), rtol=0, atol=5.1e-3
    )
    flow = advantage.group_normalize(credit.terminal(R).reward, same)[:, 0].tolist()
    printed = re.search(
        r"a ([+-][\d.]+), b ([+-][\d.]+), c ([+-][\d.]+), d ([+-][\d.]+)\.", PAGES["docs/method.md"]
    )
    assert printed and [float(number) for number in printed.groups()] == pytest.approx(
        flow, abs=5.1e-3
    )


def strings() -> Iterator[str]:
    """Every string of the code, a "{}" for each value that is put into it."""
    for package in ("tp_grpo", "reward_models", "scripts", "config"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [
                        part.value if isinstance(part, ast.Constant) else "{}"
                        for part in node.values
                    ]
                    yield "".join(str(part) for part in parts)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_quoted_messages_are_those_of_the_code() -> None:
    quoted = re.findall(r"^> (.+)$", PAGES["docs/troubleshooting.md"], re.MULTILINE)
    known = list(strings())
    assert len(quoted) > 10
    for quote in quoted:
        pattern = ".*".join(re.escape(part.strip()) for part in quote.split("…") if part.strip())
        assert any(re.search(pattern, text, re.DOTALL) for text in known), quote


def test_every_alarm_and_every_field_named_in_troubleshooting_exists() -> None:
    page = PAGES["docs/troubleshooting.md"]
    names = {rule.name for rule in alarms.RULES}
    assert len(names) == 9
    assert all(f"| {name} |" in page for name in names), names
    fields = dict(flat(base.get_config().to_dict()))
    sections = "|".join(
        name for name, value in fields.items() if isinstance(value, dict) and "." not in name
    )
    for field in re.findall(rf"`((?:{sections})\.\w+)", page):
        assert field in fields, field


def slugs(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", PAGES[page]):
        if "://" in target:
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in slugs(file.read_text()), f"{target}#{anchor}"
