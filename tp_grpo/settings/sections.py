"""The sections of `Settings`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tp_grpo.method.completion import COMPLETIONS
from tp_grpo.method.credit import METHODS
from tp_grpo.method.flow import KINDS
from tp_grpo.settings.setting import Section, setting


@dataclass(frozen=True)
class ModelSettings(Section):
    type: str = setting("Backbone adapter that reads the checkpoint.", choices=("sd3", "flux"))
    path: str = setting("Folder of the checkpoint, or its id on the hub.")
    revision: str = setting("Revision of a hub id; empty: the newest.")
    dtype: str = setting(
        "Precision of frozen weights and forward pass (fp16 needs CUDA); LoRA stays fp32.",
        choices=("fp32", "bf16", "fp16"),
    )
    height: int = setting("Height of the images.", "pixels", low=1)
    width: int = setting("Width of the images.", "pixels", low=1)
    max_sequence_length: int = setting("Length of a prompt for T5.", "tokens", low=1)
    decode_batch_size: int = setting("Images per call of the VAE.", "images", low=1)
    vae_dtype: str = setting("Precision of the VAE.", choices=("fp32", "bf16"))
    text_encoders: str = setting(
        "Place between uses: offload (host memory), resident (the device) or drop (freed).",
        choices=("offload", "resident", "drop"),
    )
    embeddings_cache: str = setting(
        "Folder of prompt embeddings, shared by runs, 1-2 MB per prompt; empty: none."
    )
    gradient_checkpointing: bool = setting("Recompute activations in the backward pass.")
    attention_backend: str = setting(
        'Kernel by diffusers\' name, as "flash" or "_native_cudnn"; FLUX only; empty: PyTorch\'s.'
    )
    compile: str = setting(
        'torch.compile backend of the transformer\'s blocks, such as "inductor"; empty: eager.'
    )

    def mistakes(self) -> Iterator[str]:
        if self.text_encoders == "drop" and not self.embeddings_cache:
            yield (
                "model.text_encoders = 'drop' frees the encoders once every prompt is encoded, and "
                "their output needs a place: set model.embeddings_cache to a folder, or use "
                "model.text_encoders = 'offload'"
            )


@dataclass(frozen=True)
class LoraSettings(Section):
    rank: int = setting("Rank of the adapter; 0: none, the whole transformer is trained.", low=0)
    alpha: int = setting("The adapter's output is scaled by alpha / rank.")
    targets: tuple[str, ...] = setting("Modules to adapt; empty: the backbone's published ones.")


@dataclass(frozen=True)
class PromptsSettings(Section):
    train: str = setting(
        'Training prompts: a .txt (a prompt per line), a .jsonl ({"prompt": ..., metadata}), '
        '"module:function", or a folder with train.jsonl, train_metadata.jsonl or train.txt.'
    )
    eval: str = setting(
        "Held-out prompts; as train, but of a folder test.jsonl, test_metadata.jsonl or test.txt."
    )


@dataclass(frozen=True)
class RewardsSettings(Section):
    scorers: Mapping[str, Any] = setting(
        'Scorers, {name or "module:callable": {"weight": 1.0, options}}; weight 0: evaluations '
        "alone. Every scorer takes batch_size (images per call, 0: all at once), placement (cuda, "
        "offload, cpu, remote), remote (URL of a reward server) and patience (seconds of retries "
        "while it is out of reach, 600)."
    )
    max_failed: float = setting(
        "Share of an epoch's images that may lack a score before the run stops.", low=0, high=1
    )

    def mistakes(self) -> Iterator[str]:
        if self.scorers and not any(map(weight, self.scorers.values())):
            yield (
                "rewards.scorers: every weight is 0, so there is nothing to train on; give one a "
                "weight"
            )


def weight(scorer: Any) -> Any:
    """The weight in an entry of `rewards.scorers`; `RewardSet` refuses one that is not a number."""
    return scorer.get("weight", 1.0) if hasattr(scorer, "get") else scorer


@dataclass(frozen=True)
class SampleSettings(Section):
    steps: int = setting("T, denoising steps of a training rollout.", "steps", low=1)
    guidance_scale: float = setting("Strength of the guidance; 1: no classifier-free guidance.")
    kind: str = setting("Stochastic step: sde (Flow-GRPO) or cps (Flow-CPS).", choices=KINDS)
    noise_level: float = setting(
        "Noise of the stochastic steps; at most 1 for cps.",
        above=0,
        why="a policy needs noise above 0; published: 0.7",
    )
    window_start: int = setting("First stochastic step.", low=0)
    window_size: int = setting("K, stochastic steps; all of them are trained.", "steps", low=1)
    groups_per_epoch: int = setting("Prompts per epoch, over all ranks.", "prompts", low=1)
    group_size: int = setting(
        "Images per prompt.",
        "images",
        low=2,
        why="an advantage compares at least 2 images of a prompt",
    )
    batch_size: int = setting("Images per model call.", "images", low=1)
    max_rows: int = setting("ODE branches per model call.", "branches", low=1)
    completion: str = setting(
        "How states are completed: euler (every step), reuse (euler, but below sigma 0.02 the last "
        "velocity serves again), multistep (second order), strided (every completion_stride-th "
        "step) or tweedie (the x_0 that the state predicts).",
        choices=COMPLETIONS,
    )
    completion_steps: int = setting(
        "multistep: evaluations per completion, a branch's own included.", "evaluations", low=1
    )
    completion_stride: int = setting("strided: steps per evaluation.", "steps", low=1)
    branch_from: int = setting(
        "First state of the window to complete; 0: the ladder begins with the pure ODE.", low=0
    )
    branch_every: int = setting(
        "Steps from one completed state to the next; they share their credit.", "steps", low=1
    )
    same_latent: bool = setting("Start a prompt's images from one noise: they share a baseline.")
    store_on_cpu: bool = setting("Keep an epoch's rollouts in host memory until the update.")

    def mistakes(self) -> Iterator[str]:
        start, size, last = self.window_start, self.window_size, self.steps - 1
        if start + size > last:
            yield (
                f"sample.window_start = {start} and sample.window_size = {size}: the window covers "
                f"steps {start} to {start + size - 1} of {self.steps}, but the last step ({last}) "
                "ends at sigma 0, where no noise is left to act on; the largest window_size from "
                f"there is {max(0, last - start)}"
            )
        if self.branch_from >= size:
            yield (
                f"sample.branch_from = {self.branch_from}: the first state to be completed must be "
                f"one of the window's, 0 to {size - 1} (window_size = {size})"
            )
        if self.kind == "cps" and self.noise_level > 1:
            yield (
                f"sample.noise_level = {self.noise_level}: cps turns by noise_level x 90 degrees; "
                "at most 1"
            )


@dataclass(frozen=True)
class CreditSettings(Section):
    name: str = setting(
        "Credit of each step: terminal is Flow-GRPO's, turning_point TP-GRPO's.",
        choices=tuple(METHODS),
    )
    constraint: bool = setting(
        "turning_point: the step must also agree in sign with what follows it."
    )
    balance: bool = setting("turning_point: keep as many positive as negative turning points.")
    lam: float = setting(
        "value: from 0 (what the step itself added; biased) to 1 (all that follows; unbiased).",
        low=0,
        high=1,
    )


@dataclass(frozen=True)
class AdvantageSettings(Section):
    global_std: bool = setting("Divide by the std of the epoch's column, not of the group.")
    clip: float = setting("Advantages are clamped to +- this.", above=0)


@dataclass(frozen=True)
class TrainSettings(Section):
    updates_per_epoch: int = setting(
        "Updates per epoch, each on equally many whole groups.", "updates", low=1
    )
    inner_epochs: int = setting("Passes over an epoch's samples.", "passes", low=1)
    batch_size: int = setting(
        "(image, step) pairs per backward pass: whole rollout batches, at several steps where more "
        "than one fits; 0: one. More is faster where a batch does not fill the device, but no "
        "longer repeats sampling's rounding bit for bit.",
        "pairs",
        low=0,
    )
    learning_rate: float = setting("Learning rate, constant.", above=0)
    optimizer: str = setting(
        "Optimizer; adamw_8bit needs bitsandbytes.", choices=("adamw", "adamw_8bit")
    )
    adam_betas: tuple[float, float] = setting(
        "Decay of the averages of the gradient and of its square.", low=0, high=1
    )
    weight_decay: float = setting("Weight decay of AdamW, times the learning rate.", low=0)
    adam_eps: float = setting("Added to the root of the mean square.", low=0)
    max_grad_norm: float = setting("Larger gradients are scaled down to this norm.", above=0)
    clip_range: float = setting(
        "Clip range of the ratio, which moves little: log-probs are means over the latent.", above=0
    )
    beta: float = setting("Weight of the KL to the frozen model; 0 leaves it out.", low=0)
    step_weight: str = setting(
        "Loss weight of a step: uniform or velocity (1 / (|d mean / d v| / std), mean 1).",
        choices=("uniform", "velocity"),
    )
    max_ratio_dev: float = setting(
        "The run stops if an epoch's first ratios, of the unmoved policy, are further from 1.",
        low=0,
    )
    max_skipped: int = setting(
        "Updates with a NaN or infinite gradient are skipped; more than this in a row stop the "
        "run. The loss scaler of fp16 skips a few until it has found its scale.",
        "updates",
        low=0,
    )


@dataclass(frozen=True)
class EmaSettings(Section):
    decay: float = setting(
        "Upper limit of the decay, warmed up as (1 + i) / (10 + i).", low=0, high=1
    )
    every: int = setting("Updates between two averages.", "updates", low=1)


@dataclass(frozen=True)
class EvalSettings(Section):
    every: int = setting(
        "Epochs between evaluations; also before the first and after the last.", "epochs", low=1
    )
    steps: int = setting("ODE steps of an evaluation.", "steps", low=1)
    members: int = setting("Images per prompt.", "images", low=1)
    prompts: int = setting("Only the first N evaluation prompts; 0: all.", "prompts", low=0)
    batch_size: int = setting("Images per model call.", "images", low=1)
    images: int = setting(
        "Images kept for the report, before and after side by side.", "images", low=0
    )


@dataclass(frozen=True)
class CheckpointSettings(Section):
    resume: str = setting(
        "auto: resume where run_name stopped; never: refuse if it holds a run; the folder of a "
        "checkpoint, this run's or another's: begin there and remove what run_name has of later "
        "epochs; the same command, given again, resumes. With another's the model, LoRA, EMA and "
        "optimizer must stay; the rest may change."
    )
    keep: int = setting(
        "Newest checkpoints that stay; an older one replaces a damaged one.", "checkpoints", low=1
    )
    keep_every: int = setting("Epochs between checkpoints that stay for good.", "epochs", low=1)
    best: str = setting(
        "The checkpoint with the highest evaluation of this score also stays, as checkpoints/best: "
        '"total", a scorer\'s name or "scorer/extra"; empty: none.'
    )
    grace: float = setting(
        "Seconds that an epoch may still take to its checkpoint after SIGTERM or SIGUSR1 on any "
        "rank; a longer one stops at the next batch and is repeated on resume. Schedulers, and "
        "torch's launcher, often kill 30 seconds after SIGTERM.",
        "seconds",
        low=0,
    )


@dataclass(frozen=True)
class RuntimeSettings(Section):
    timeout_s: float = setting(
        "Seconds that a rank waits for the others before the run stops.", "seconds", above=0
    )


@dataclass(frozen=True)
class TrackingSettings(Section):
    trackers: tuple[str, ...] = setting(
        "Trackers besides metrics.jsonl.", choices=("tensorboard", "wandb")
    )
    project: str = setting("Name under which the trackers file the run.")
    images_every: int = setting("Epochs between ladders kept with thumbnails.", "epochs", low=1)
    groups: int = setting("Prompt groups whose images are kept then.", "groups", low=0)
    alarms: str = setting(
        "On signs of a wasted run: warn, stop, rollback (stop, export the best) or off.",
        choices=("warn", "stop", "rollback", "off"),
    )
