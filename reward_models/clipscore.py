"""CLIPScore: how well image and prompt agree (Hessel et al. 2021, arXiv 2104.08718)."""

from reward_models.check import Check, matching_cases
from reward_models.clip import TransformersClip, openai_clip


class ClipScore(TransformersClip):
    """score = 100 cosine / 30 by OpenAI's CLIP ViT-L/14: about 0.7 to 1.1 for generated images."""

    weights = openai_clip("clipscore")
    scale = 100 / 30  # the logit over 30, as Flow-GRPO reports it
    doctor = Check(weights=(weights,), cases=matching_cases)
