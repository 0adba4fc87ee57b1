"""Configurations: the file is the algorithm, the function's argument the recipe."""

from pathlib import Path


def algorithms() -> list[str]:
    """The files here whose `get_config` takes a recipe."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [file.stem for file in files if "\ndef get_config(recipe" in file.read_text()]
