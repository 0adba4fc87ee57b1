"""The sections of `Settings` that say what a run works with, and where; see also `learning`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tp_grpo.settings.setting import Section, setting


@dataclass(frozen=True)
class ModelSettings(Section):
    type: str = setting(
        "Model family, whose adapter reads the checkpoint; docs/models.md lists them."
    )
    path: str = setting("Folder of the checkpoint, or its id on the hub.", path=True)
    revision: str = setting("Revision of a hub id; empty: the newest.")
    adapter: str = setting(
        "LoRA merged into the frozen weights as they load: a folder or file of peft, diffusers or "
        "kohya; empty: none.",
        path=True,
    )
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
        "Folder of prompt embeddings, shared by runs, 1-2 MB per prompt; empty: none.", path=True
    )
    gradient_checkpointing: bool = setting("Recompute activations in the backward pass.")
    attention_backend: str = setting(
        'Kernel by diffusers\' name, as "flash" or "_native_cudnn"; empty: PyTorch\'s.'
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
    init: str = setting(
        "LoRA of the same rank that the trained one begins as: a folder or file of peft, diffusers "
        "or kohya; empty: none. The KL stays to the model without it.",
        path=True,
    )

    def mistakes(self) -> Iterator[str]:
        if self.init and not self.rank:
            yield (
                f"lora.init = {self.init!r}: with lora.rank = 0 the whole transformer is trained; "
                "merge it with model.adapter"
            )


@dataclass(frozen=True)
class PromptsSettings(Section):
    train: str = setting(
        'Training prompts: a .txt (a prompt per line), a .jsonl ({"prompt": ..., metadata}), '
        '"module:function", or a folder with train.jsonl, train_metadata.jsonl or train.txt.',
        path=True,
    )
    eval: str = setting(
        "Held-out prompts; as train, but of a folder test.jsonl, test_metadata.jsonl or test.txt.",
        path=True,
    )


@dataclass(frozen=True)
class RewardsSettings(Section):
    scorers: Mapping[str, Any] = setting(
        'Scorers, {name or "module:callable": {"weight": 1.0, options}}; weight 0: evaluations '
        "alone. Every scorer takes batch_size (images per call, 0: all at once), placement (cuda, "
        "offload, cpu, remote), remote (URL of a reward server, or of several) and patience "
        "(seconds of retries while it is out of reach, 600)."
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
        "optimizer must stay; the rest may change.",
        path=True,
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
    share_gpus: bool = setting("Several ranks on one GPU. They communicate by gloo, which is slow.")


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
