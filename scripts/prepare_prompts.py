"""Make prompt files for training and evaluation, into one folder a set: dataset/NAME/train.* and test.*

    python scripts/prepare_prompts.py geneval        objects, numbers, colors and positions, for the GenEval reward
    python scripts/prepare_prompts.py general_ocr    pictures with a text in them, for the OCR reward
    python scripts/prepare_prompts.py pickscore      what people ask image models for, for the PickScore reward
    python scripts/prepare_prompts.py text FILE --name NAME    an evaluation set from a list of prompts of your own

The same command makes the same files again. Then train with --config.prompts.train=dataset/NAME
--config.prompts.eval=dataset/NAME, or name a file. `COMMAND --help` explains each. Formats: docs/prompts.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tp_grpo.data.sets import files, general_ocr, geneval, pickscore, text

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
    options = _parser().parse_args(arguments)
    try:
        make: Callable[[argparse.Namespace], dict[Path, files.Prompts]] = options.make
        told = files.write(make(options), force=options.force)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(told))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_geneval(commands)
    ocr = _add(commands, "general_ocr", _general_ocr, general_ocr.__doc__)
    _add_sizes(ocr, general_ocr.TRAIN_SIZE, general_ocr.TEST_SIZE)
    _add_pickscore(commands)
    own = _add(commands, "text", _text, text.__doc__)
    own.add_argument("file", type=Path, metavar="FILE", help="a .txt, .csv or .tsv in UTF-8")
    own.add_argument("--name", required=True, help="of the folder below --out, such as drawbench")
    return parser


def _add(commands, name: str, make: Callable, about: str | None) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    examples = "\n".join(
        ["Examples:", *(f"    python scripts/prepare_prompts.py {line}" for line in EXAMPLES[name])]
    )
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=(about or "").strip().split("\n")[0],
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(make=make)
    command.add_argument(
        "--out", type=Path, default=Path("dataset"), help="folder of the sets (default: dataset)"
    )
    command.add_argument(
        "--force", action="store_true", help="replace files that are there with other content"
    )
    return command


def _add_sizes(command: argparse.ArgumentParser, train: int, test: int) -> None:
    command.add_argument(
        "--train", type=_count, default=train, metavar="N", help=f"prompts (default: {train})"
    )
    command.add_argument(
        "--test", type=_count, default=test, metavar="N", help=f"prompts (default: {test})"
    )
    _add_seed(command)


def _add_seed(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--seed", type=int, default=42, help="another seed, other prompts (default: 42)"
    )


def _add_geneval(commands) -> None:  # type: ignore[no-untyped-def]
    command = _add(commands, "geneval", _geneval, geneval.__doc__)
    for split, sizes in (("train", geneval.TRAIN_SIZES), ("test", geneval.TEST_SIZES)):
        default = " ".join(f"{tag}={count}" for tag, count in sizes.items())
        command.add_argument(
            f"--{split}",
            type=_tag_count,
            nargs="+",
            default=[],
            metavar="TAG=N",
            help=f"prompts of a tag; the tags not named keep the default: {default}",
        )
    command.add_argument(
        "--keep-out",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE.jsonl",
        help="leave out what these files ask to see, such as the official evaluation_metadata.jsonl",
    )
    _add_seed(command)


def _add_pickscore(commands) -> None:  # type: ignore[no-untyped-def]
    command = _add(commands, "pickscore", _pickscore, pickscore.__doc__)
    command.add_argument(
        "--source",
        default="auto",
        help=f"hub: {pickscore.HUB}; grammar: our own, offline; auto (default): the hub, and the grammar where it "
        "cannot be reached; anything else: a hub data set or a folder with a column named caption",
    )
    _add_sizes(command, pickscore.TRAIN_SIZE, pickscore.TEST_SIZE)


def _count(said: str) -> int:
    if not said.isdecimal():
        raise argparse.ArgumentTypeError(f"{said!r} is not a number of prompts")
    return int(said)


def _tag_count(said: str) -> tuple[str, int]:
    tag, equals, count = said.partition("=")
    if not equals or tag not in geneval.TAGS:
        raise argparse.ArgumentTypeError(
            f"{said!r} is not TAG=N with TAG one of {', '.join(geneval.TAGS)}"
        )
    return tag, _count(count)


def _geneval(options: argparse.Namespace) -> dict[Path, files.Prompts]:
    train, test = geneval.build(
        seed=options.seed,
        train={**geneval.TRAIN_SIZES, **dict(options.train)},
        test={**geneval.TEST_SIZES, **dict(options.test)},
        keep_out={scene for path in options.keep_out for scene in _scenes(path)},
    )
    folder = options.out / "geneval"
    return {folder / "train.jsonl": train, folder / "test.jsonl": test}


def _scenes(path: Path) -> list[tuple]:
    scenes = []
    try:
        content = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            scenes += [geneval.scene(json.loads(line))] if line.strip() else []
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{path}:{number}: not a line of GenEval metadata ({error!r})"
            ) from error
    return scenes


def _general_ocr(options: argparse.Namespace) -> dict[Path, files.Prompts]:
    train, test = general_ocr.build(seed=options.seed, train=options.train, test=options.test)
    folder = options.out / "general_ocr"
    return {folder / "train.txt": train, folder / "test.txt": test}


def _pickscore(options: argparse.Namespace) -> dict[Path, files.Prompts]:
    sizes = {"seed": options.seed, "train": options.train, "test": options.test}
    if options.source == "grammar":
        train, test = pickscore.from_grammar(**sizes)
    else:
        source = pickscore.HUB if options.source in ("auto", "hub") else options.source
        try:
            train, test = pickscore.from_hub(source, **sizes)
        except pickscore.Unreachable as error:
            if options.source != "auto":
                raise ValueError(
                    f"{error}\n--source grammar makes prompts without the hub"
                ) from error
            print(
                f"{error}\nSo these prompts are made by our own grammar (--source grammar).",
                file=sys.stderr,
            )
            train, test = pickscore.from_grammar(**sizes)
    folder = options.out / "pickscore"
    return {folder / "train.txt": train, folder / "test.txt": test}


def _tell(file: Path, what: str, numbers: list[int]) -> None:
    if numbers:
        shown = ", ".join(map(str, numbers[: text.SHOWN]))
        print(
            f"{file}: {what}: {len(numbers)} (line {shown}{', ...' if len(numbers) > text.SHOWN else ''})"
        )


def _text(options: argparse.Namespace) -> dict[Path, files.Prompts]:
    if not re.fullmatch(r"\w[\w.-]*", options.name) or options.name in EXAMPLES:
        raise ValueError(
            f"--name {options.name!r}: letters, digits, . _ - only, and not {', '.join(EXAMPLES)}"
        )
    cleaned = text.read(options.file)
    _tell(options.file, "left out as repeats", cleaned.repeated)
    _tell(options.file, "left out, for the prompt is empty", cleaned.empty)
    _tell(
        options.file,
        f"kept, but of more than {text.LONG_WORDS} words, of which CLIP reads the first",
        cleaned.long,
    )
    folder = options.out / options.name
    if cleaned.tagged:
        return {folder / "test.jsonl": cleaned.entries}
    return {folder / "test.txt": [entry["prompt"] for entry in cleaned.entries]}


if __name__ == "__main__":
    sys.exit(main())
