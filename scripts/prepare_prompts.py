"""Make prompt files for training and evaluation: dataset/NAME/train.* and test.*

    python scripts/prepare_prompts.py geneval        objects, numbers, colors, positions (GenEval)
    python scripts/prepare_prompts.py general_ocr    pictures with a text in them (OCR)
    python scripts/prepare_prompts.py pickscore      what people ask image models for (PickScore)
    python scripts/prepare_prompts.py text FILE --name NAME    an evaluation set from your own list

The same command makes the same files again. Then train with --config.prompts.train=dataset/NAME
--config.prompts.eval=dataset/NAME. `COMMAND --help` explains each. Formats: docs/prompts.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reward_models import terminal
from tp_grpo.data import lines
from tp_grpo.data.sets import files, general_ocr, geneval, pickscore, text
from tp_grpo.store.files import expanded

Files = dict[Path, files.Prompts]  # of a set, by their names in its folder
EXAMPLES = {
    "geneval": (
        "geneval",
        "geneval --train position=5000 color_attr=2000 --seed 7 --out my_data",
        "geneval --keep-out evaluation_metadata.jsonl",
    ),
    "general_ocr": ("general_ocr", "general_ocr --train 5000 --test 200"),
    "pickscore": (
        "pickscore",
        "pickscore --source grammar --train 10000",
        "pickscore --source yuvalkirstain/pickapic_v1_no_images",
    ),
    "text": ("text drawbench.csv --name drawbench", "text my_prompts.txt --name mine"),
}


def main(arguments: list[str] | None = None) -> int:
    terminal.accept_any_text()
    options = _parser().parse_args(arguments)
    try:
        sets = {options.out / options.name / name: p for name, p in options.make(options).items()}
        report = files.write(sets, force=options.force)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, make: Callable[[Namespace], Files], doc: str) -> argparse.ArgumentParser:
        examples = [f"    python scripts/prepare_prompts.py {line}" for line in EXAMPLES[name]]
        command = commands.add_parser(
            name,
            help=doc.splitlines()[0],
            description=doc,
            epilog="\n".join(["Examples:", *examples]),
            formatter_class=raw,
        )
        command.set_defaults(make=make, name=name)
        about = "folder of the sets (default: dataset)"
        command.add_argument("--out", type=expanded, default=Path("dataset"), help=about)
        command.add_argument("--force", action="store_true", help="replace files that differ")
        if name != "text":
            about = "another seed, other prompts (default: 42)"
            command.add_argument("--seed", type=int, default=42, help=about)
        return command

    command = add("geneval", _geneval, str(geneval.__doc__))
    for split, sizes in (("train", geneval.TRAIN_SIZES), ("test", geneval.TEST_SIZES)):
        default = " ".join(f"{tag}={count}" for tag, count in sizes.items())
        about = f"prompts of a tag; tags not named keep {default}"
        command.add_argument(
            f"--{split}", type=_tag_count, nargs="+", default=[], metavar="TAG=N", help=about
        )
    about = "leave out the scenes of these files, such as the official evaluation_metadata.jsonl"
    command.add_argument(
        "--keep-out", type=expanded, nargs="+", default=[], metavar="FILE.jsonl", help=about
    )
    for module, make in ((general_ocr, _general_ocr), (pickscore, _pickscore)):
        command = add(module.__name__.rpartition(".")[2], make, str(module.__doc__))
        for split, size in (("train", module.TRAIN_SIZE), ("test", module.TEST_SIZE)):
            about = f"prompts (default: {size})"
            command.add_argument(f"--{split}", type=_count, default=size, metavar="N", help=about)
    about = (
        f"hub: {pickscore.HUB}; grammar: our own, offline; auto (default): the hub, or the "
        "grammar if the hub cannot be reached; anything else: a hub data set or a folder with a "
        "column caption"
    )
    command.add_argument("--source", default="auto", help=about)
    command = add("text", _text, str(text.__doc__))
    command.add_argument(
        "file", type=expanded, metavar="FILE", help="a .txt, .csv or .tsv in UTF-8"
    )
    command.add_argument("--name", required=True, help="of the folder, such as drawbench")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of prompts")
    return int(text)


def _tag_count(text: str) -> tuple[str, int]:
    tag, equals, count = text.partition("=")
    if not equals or tag not in geneval.TAGS:
        tags = ", ".join(geneval.TAGS)
        raise argparse.ArgumentTypeError(f"{text!r} is not TAG=N with TAG one of {tags}")
    return tag, _count(count)


def _geneval(options: Namespace) -> Files:
    train, test = geneval.build(
        seed=options.seed,
        train={**geneval.TRAIN_SIZES, **dict(options.train)},
        test={**geneval.TEST_SIZES, **dict(options.test)},
        keep_out={scene for path in options.keep_out for scene in _scenes(path)},
        shrink=set(geneval.TAGS) - dict(options.train + options.test).keys(),
    )
    _say_what_shrank("training", train, geneval.TRAIN_SIZES, dict(options.train))
    _say_what_shrank("test", test, geneval.TEST_SIZES, dict(options.test))
    return {Path("train.jsonl"): train, Path("test.jsonl"): test}


def _say_what_shrank(
    kind: str, entries: list[dict], sizes: Mapping[str, int], asked: Mapping[str, int]
) -> None:
    counts = Counter(entry["tag"] for entry in entries)
    for tag, usual in sizes.items():
        if tag not in asked and counts[tag] < usual:
            print(f"{tag}: {counts[tag]} {kind} prompts, not {usual}: --keep-out leaves no more")


def _scenes(path: Path) -> list[tuple]:
    scenes = []
    for number, line in enumerate(lines.read(path).splitlines(), start=1):
        try:
            scenes += [geneval.scene(json.loads(line))] if line.strip() else []
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            message = f"{path}:{number}: not a line of GenEval metadata ({reason})"
            raise ValueError(message) from error
    return scenes


def _general_ocr(options: Namespace) -> Files:
    train, test = general_ocr.build(seed=options.seed, train=options.train, test=options.test)
    return {Path("train.txt"): train, Path("test.txt"): test}


def _pickscore(options: Namespace) -> Files:
    sizes = {"seed": options.seed, "train": options.train, "test": options.test}
    source = str(expanded(options.source))
    if source in ("auto", "hub"):
        source = pickscore.HUB
    prompts = None
    if source != "grammar":
        try:
            prompts = pickscore.from_hub(source, **sizes)
        except pickscore.Unreachable as error:
            if options.source != "auto":
                message = f"{error}\n--source grammar makes prompts without the hub"
                raise ValueError(message) from error
            print(f"{error}\nUsing our own grammar instead (--source grammar).", file=sys.stderr)
    train, test = prompts or pickscore.from_grammar(**sizes)
    return {Path("train.txt"): train, Path("test.txt"): test}


def _text(options: Namespace) -> Files:
    if not re.fullmatch(r"\w[\w.-]*", options.name) or options.name in EXAMPLES:
        names = ", ".join(EXAMPLES)
        raise ValueError(f"--name {options.name!r}: letters, digits, . _ - only, and not {names}")
    cleaned = text.read(options.file)
    for what, numbers in (
        ("duplicates dropped", cleaned.repeated),
        ("empty prompts dropped", cleaned.empty),
        (f"kept with more than {lines.CLIP_WORDS} words, which CLIP cuts", cleaned.long),
    ):
        if numbers:
            print(f"{options.file}: {what}: {len(numbers)} ({lines.name(numbers)})")
    if any(len(entry) > 1 for entry in cleaned.entries):
        return {Path("test.jsonl"): cleaned.entries}
    return {Path("test.txt"): [entry["prompt"] for entry in cleaned.entries]}


if __name__ == "__main__":
    sys.exit(main())
