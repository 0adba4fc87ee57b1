"""What a training process imports, imported once: the fork server loads this before it forks."""

from __future__ import annotations

import importlib

import diffusers
import torch
import transformers

MODULES = (
    "config.tp_grpo",
    "matplotlib.backends.backend_svg",
    "networkx",
    "reward_models.shapes",
    "torch._inductor.codecache",
    "tp_grpo.models.export",
    "tp_grpo.models.sd3",
    "tp_grpo.shapes.captions",
    "tp_grpo.trainer",
)
for module in MODULES:
    importlib.import_module(module)
# These the libraries import when they are first asked for.
CLASSES = (
    diffusers.StableDiffusion3Pipeline,
    transformers.CLIPTextModelWithProjection,
    transformers.T5EncoderModel,
)
torch.set_num_threads(1)
