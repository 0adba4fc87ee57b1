"""Sentences from templates: "{person} {doing} {where}", every slot filled from its list."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Grammar:
    """templates: sentences with {slots}; slots: name -> phrases, which may contain slots."""

    templates: list[str]
    slots: dict[str, list[str]]

    def sentence(self, rng: random.Random, **fixed: str) -> str:
        """A random template, its slots filled with `fixed` or at random, no phrase used twice."""
        text = rng.choice(self.templates)
        used: set[str] = set()
        while slot := SLOT.search(text):
            phrase = fixed.get(slot[1]) or self._pick(slot[1], used, rng)
            text = text[: slot.start()] + phrase + text[slot.end() :]
        return text

    def _pick(self, slot: str, used: set[str], rng: random.Random) -> str:
        phrase = rng.choice([phrase for phrase in self.slots[slot] if phrase not in used])
        if not SLOT.search(phrase):
            used.add(phrase)
        return phrase


def shipped(name: str) -> dict[str, Any]:
    """NAME.json in this folder: templates, slots, and what else that set needs."""
    file = resources.files(__package__).joinpath(f"{name}.json")
    lists: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return lists
