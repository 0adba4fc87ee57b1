"""Make the embedded model: `python -m tp_grpo.shapes.pretrain --out FOLDER` (half an hour).

First the VAE on rendered images, then the transformer with its text encoders by flow matching on
cached latents, then the figures of the model card. Everything follows from `--seed`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusion3Pipeline
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from tp_grpo.shapes import captions, card
from tp_grpo.shapes.model import T5_TOKENS, build_pipeline
from tp_grpo.shapes.muon import Muon
from tp_grpo.shapes.render import render

FAMILIES = {"single": 0.15, "counting": 0.25, "pair": 0.30, "position": 0.30}
GRAD_NORM = 1.0
EMPTY_CAPTIONS = (
    0.1  # share of captions dropped, so that classifier-free guidance has something to guide from
)


@dataclass(frozen=True)
class Schedule:
    """How long each part trains. The defaults make the shipped weights; tests make a miniature."""

    images: int = 40_000
    batch_size: int = 32
    vae_steps: int = 800
    flow_steps: int = 4_600
    card_images: int = 768  # per caption set and guidance scale


def pretrain(out: Path, *, seed: int, schedule: Schedule) -> None:
    """Train from scratch and save the pipeline, its card and its checksums under `out`."""
    start = time.perf_counter()
    rng = np.random.default_rng(seed)
    pipeline = build_pipeline(seed)
    images, prompts = draw(schedule.images, rng)
    train_vae(pipeline.vae, images, schedule, rng)
    latents = cache_latents(pipeline.vae, images)
    train_flow(pipeline, latents, prompts, schedule, rng)
    card.save(pipeline, out)
    figures = card.measure(out, images=schedule.card_images, seed=seed)
    card.write(
        out,
        figures,
        card.provenance(seed=seed, schedule=schedule, seconds=time.perf_counter() - start),
    )


def draw(n: int, rng: np.random.Generator) -> tuple[Tensor, list[str]]:
    """n rendered training captions: images (n, 3, 48, 48) uint8 and their prompts."""
    by_tag = {tag: [c for c in captions.train() if c[1]["tag"] == tag] for tag in FAMILIES}
    tags = rng.choice(list(FAMILIES), size=n, p=list(FAMILIES.values()))
    chosen = [by_tag[tag][rng.integers(len(by_tag[tag]))] for tag in tags]
    images = np.stack([render(metadata, rng) for _, metadata in tqdm(chosen, desc="draw")])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), [
        prompt for prompt, _ in chosen
    ]


def to_pixels(images: Tensor) -> Tensor:
    """uint8 to the VAE's range [-1, 1]."""
    return images.float() / 127.5 - 1


def train_vae(
    vae: AutoencoderKL, images: Tensor, schedule: Schedule, rng: np.random.Generator
) -> None:
    """L1 + MSE + 5e-4 KL (mean per latent value)."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: trapezoid(step, schedule.vae_steps)
    )
    bar = tqdm(range(schedule.vae_steps), desc="vae")
    for _ in bar:
        rows = rng.integers(len(images), size=schedule.batch_size)
        pixels = to_pixels(images[rows])
        posterior = vae.encode(pixels).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + 5e-4 * kl
        _descend(loss, list(vae.parameters()), [optimizer], [scheduler])
        bar.set_postfix(
            psnr=f"{-10 * F.mse_loss(decoded, pixels).div(4).log10().item():.1f} dB", refresh=False
        )


@torch.no_grad()
def cache_latents(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Posterior means (n, 8, 12, 12) in the VAE's scale; sets shift and scaling to standardise."""
    means = [vae.encode(to_pixels(chunk)).latent_dist.mean for chunk in images.split(256)]
    latents = torch.cat(means)
    vae.register_to_config(
        shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item()
    )
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def train_flow(
    pipeline: StableDiffusion3Pipeline,
    latents: Tensor,
    prompts: list[str],
    schedule: Schedule,
    rng: np.random.Generator,
) -> None:
    """Flow matching: x_sigma = (1 - sigma) x_0 + sigma eps, sigma = sigmoid(N(0, 1)), MSE on v."""
    modules = nn.ModuleList(
        [
            pipeline.transformer,
            pipeline.text_encoder,
            pipeline.text_encoder_2,
            pipeline.text_encoder_3,
        ]
    ).train()
    parameters = [p for p in modules.parameters() if p.requires_grad]
    optimizers = flow_optimizers(modules)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: trapezoid(step, schedule.flow_steps))
        for o in optimizers
    ]
    ema = EMAModel(parameters, decay=0.999)
    bar = tqdm(range(schedule.flow_steps), desc="flow")
    for _ in bar:
        rows = rng.integers(len(latents), size=schedule.batch_size)
        kept = rng.random(len(rows)) >= EMPTY_CAPTIONS
        texts = [prompts[row] if keep else "" for row, keep in zip(rows, kept, strict=True)]
        loss = flow_loss(pipeline, latents[rows], texts)
        _descend(loss, parameters, optimizers, schedulers)
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        ema.step(parameters)
    ema.copy_to(parameters)
    modules.eval()


def flow_loss(pipeline: StableDiffusion3Pipeline, x0: Tensor, texts: list[str]) -> Tensor:
    """The flow-matching loss of one batch of latents (B, 8, 12, 12)."""
    embeds, _, pooled, _ = pipeline.encode_prompt(
        texts, texts, texts, do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS
    )
    noise = torch.randn_like(x0)
    sigma = torch.randn(len(x0)).sigmoid()
    x = torch.lerp(x0, noise, sigma[:, None, None, None])
    velocity = pipeline.transformer(
        hidden_states=x,
        timestep=sigma * 1000,
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
    ).sample
    return F.mse_loss(velocity, noise - x0)


def flow_optimizers(modules: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformer's blocks, AdamW for everything else."""
    named = [(name, p) for name, p in modules.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if "transformer_blocks" in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in chosen]
    return [Muon(matrices, lr=4e-3), torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.98))]


def trapezoid(step: int, steps: int, *, warmup: int = 100, final: float = 0.02) -> float:
    """Learning-rate factor: linear warm-up, flat to the middle, then linear to `final`."""
    rise = (step + 1) / min(warmup, max(1, steps // 10))
    fall = 1 - (1 - final) * max(0.0, 2 * step / steps - 1)
    return min(rise, 1.0, fall)


def _descend(
    loss: Tensor,
    parameters: list[nn.Parameter],
    optimizers: list[torch.optim.Optimizer],
    schedulers: list[torch.optim.lr_scheduler.LambdaLR],
) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, GRAD_NORM)
    for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the pipeline")
    parser.add_argument("--seed", type=int, default=0)
    for name, default in vars(Schedule()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    arguments = vars(parser.parse_args())
    pretrain(arguments.pop("out"), seed=arguments.pop("seed"), schedule=Schedule(**arguments))


if __name__ == "__main__":
    main()
