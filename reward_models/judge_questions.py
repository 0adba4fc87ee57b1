"""What the judges ask, by name.

`quality` and `alignment` are this project's, for any instruction-tuned vision-language model.
`unifiedreward` is the question of UnifiedReward's authors (arXiv 2503.05236; the point score of an
image in github.com/CodeGoat24/UnifiedReward), and `unifiedreward_flow_grpo` the shorter one of
Flow-GRPO's scorer of that name. Both are quoted word for word: the models know these words, and
others would give other marks.

In each, "{prompt}" stands for the prompt of the image.
"""

from __future__ import annotations

ASKS_FOR = "final score"  # what a question of the user's own must contain, in any case

_SCALE = "1 = very poor, 2 = poor, 3 = fair, 4 = good, 5 = excellent"
_TENTHS = "; steps of a tenth are allowed"
# Other words, or other line breaks, would give other marks.
_ENDING = """Give your reasons in two sentences at most. Then end with one line of exactly this \
form, with your own number:
Final Score: """

_QUALITY = """You judge the technical quality of pictures. What the picture shows does not matter, \
nor does taste.
Look for blur, noise, compression blocks, banding, wrong exposure, garish or dull colours, and for \
broken or melted
detail such as a generated picture may have. Give one mark from 1 to 5: """

_ALIGNMENT = """A picture was generated for the prompt between the lines of dashes.
-----
{prompt}
-----
Judge two things with equal weight. Faithfulness: is everything there that the prompt asks for, in \
the number,
colours, places, actions and style it asks for, and nothing that contradicts it? Quality: is the \
picture sharp, coherent
and free of distorted shapes? Give one mark from 1 to 5 for both together: """

_CRITERIA = """You are given a text caption and a generated image based on that caption. Your task \
is to evaluate this image based on two key criteria:
1. Alignment with the Caption: Assess how well this image aligns with the provided caption. \
Consider the accuracy of depicted objects, their relationships, and attributes as described in the \
caption.
2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail \
preservation, color accuracy, and overall aesthetic appeal.
"""
_CAPTION = """
Your task is provided as follows:
Text Caption: [{prompt}]"""

PUBLISHED = {
    "unifiedreward": f"""{_CRITERIA}Extract key elements from the provided text caption, evaluate \
their presence in the generated image using the format: 'element (type): value' (where value=0 \
means not generated, and value=1 means generated), and assign a score from 1 to 5 after \
'Final Score:'.{_CAPTION}""",
    "unifiedreward_flow_grpo": f"""{_CRITERIA}Based on the above criteria, assign a score from 1 \
to 5 after 'Final Score:'.{_CAPTION}""",
}
OURS = {"quality": _QUALITY, "alignment": _ALIGNMENT}


def question(name: str, *, whole: bool = False) -> str:
    """The question called `name`, or `name` itself where it is a text that asks for a mark.

    whole: ask for a whole mark, where the question is this project's.
    Raises ValueError for a text that does not ask for a mark after 'Final Score:'.
    """
    if name in OURS:
        return (
            OURS[name]
            + _SCALE
            + ("." if whole else f"{_TENTHS}.")
            + f"\n{_ENDING}"
            + ("3" if whole else "3.5")
        )
    if name in PUBLISHED:
        return PUBLISHED[name]
    if ASKS_FOR not in name.lower():
        known = ", ".join([*OURS, *PUBLISHED])
        raise ValueError(
            f"question = {name!r} is none of {known}, and no text that asks for a mark from 1 to 5 "
            "after 'Final Score:'"
        )
    return name
