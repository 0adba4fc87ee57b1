"""HPS v2.1: human preference by a finetuned CLIP ViT-H/14 (Wu et al. 2023, arXiv 2306.09341)."""

from reward_models.check import Check, matching_cases
from reward_models.clip import OpenClip
from reward_models.loading import Source


class HPSv2(OpenClip):
    """score = 100 cosine, about 20 to 35, as the benchmark's tables print it."""

    # In 16 bits; in fp32 the model takes twice as much memory.
    weights = Source("hpsv2", "xswu/HPSv2", "2.0 GB", ("HPS_v2.1_compressed.pt",))
    architecture = "ViT-H-14"
    resize_mode = "longest"  # HPS shows its model the whole image, where CLIP crops the sides
    scale = 100.0
    doctor = Check(("open_clip",), extra="geneval", weights=(weights,), cases=matching_cases)
