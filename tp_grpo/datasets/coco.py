"""The words of GenEval (arXiv 2310.11513): COCO's 80 classes in index order, numbers, colours, relations, plurals."""

from __future__ import annotations

# COCO's names, but for three that GenEval says differently: 64 "mouse", 65 "remote", 66 "keyboard".
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
    *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book"),
    *("clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {"two": 2, "three": 3, "four": 4}

# What is counted in pairs or heads; the detector's instance is the pair, the head.
UNITS = {"skis": "pair", "scissors": "pair", "broccoli": "head"}
IRREGULAR = {"person": "people", "sheep": "sheep", "knife": "knives", "computer mouse": "computer mice"}


def one(name: str, color: str = "") -> str:
    """A class with its article: "an apple", "a red apple", "a pair of red skis"."""
    colored = f"{color} {name}".strip()
    words = f"{UNITS[name]} of {colored}" if name in UNITS else colored
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def many(number: str, name: str) -> str:
    """A class counted: "two apples", "three people", "four pairs of skis"."""
    return f"{number} {UNITS[name]}s of {name}" if name in UNITS else f"{number} {plural(name)}"


def plural(name: str) -> str:
    if name in IRREGULAR:
        return IRREGULAR[name]
    return name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s")
