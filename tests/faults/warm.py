"""What a training process imports, imported once: the fork server loads this before it forks."""

from __future__ import annotations

import diffusers
import torch
import transformers

import config.tp_grpo
import reward_models.shapes
import tp_grpo.shapes.captions
import tp_grpo.trainer

# Classes that the libraries import when they are first asked for.
WARM = (
    config.tp_grpo,
    reward_models.shapes,
    tp_grpo.shapes.captions,
    tp_grpo.trainer,
    diffusers.StableDiffusion3Pipeline,
    transformers.CLIPTextModelWithProjection,
    transformers.T5EncoderModel,
)
torch.set_num_threads(1)
