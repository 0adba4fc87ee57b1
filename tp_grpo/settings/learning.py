"""The sections that say how a run learns: sampling, credit, advantages, objective, updates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tp_grpo.method.completion import COMPLETIONS
from tp_grpo.method.credit import METHODS
from tp_grpo.method.flow import KINDS
from tp_grpo.method.objectives import OBJECTIVES, names
from tp_grpo.method.objectives.elbo_pg import FORMS
from tp_grpo.settings.setting import Section, setting

NOISED = ", ".join(names(noised=True))
NEXT_STATES, VISITED = ", ".join(names(clean=False)), ", ".join(names(clean=True, noised=False))


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
    groups: str = setting(
        "What the images of a prompt share: trajectories (the prompt alone) or shared_state (all "
        "steps up to a state of the window, where the policy draws group_size next states).",
        choices=("trajectories", "shared_state"),
    )
    fork: str = setting(
        "shared_state: the window's step at which a group forks: spread (in proportion to how much "
        "the rewards of a group have differed there), uniform or first.",
        choices=("spread", "uniform", "first"),
    )
    window: str = setting(
        "Place of the window: fixed (window_start), random (drawn for each epoch, Flow-GRPO-Fast) "
        "or sliding (a step later every window_every epochs, then from the start; MixGRPO).",
        choices=("fixed", "random", "sliding"),
    )
    window_start: int = setting("First stochastic step; of random and sliding the least.", low=0)
    window_size: int = setting(
        "K, stochastic steps; all of them are trained. shared_state: the steps to fork at.",
        "steps",
        low=1,
    )
    window_stop: int = setting(
        "random, sliding: the step that the window ends before at the latest; 0: the last.", low=0
    )
    window_every: int = setting("sliding: epochs at one place.", "epochs", low=1)
    groups_per_epoch: int = setting("Prompts per epoch, over all ranks.", "prompts", low=1)
    group_size: int = setting(
        "Images per prompt.",
        "images",
        low=2,
        why="an advantage compares at least 2 images of a prompt",
    )
    batch_size: int = setting(
        "Rows of a model call on the trajectories: images; of shared_state groups.", "images", low=1
    )
    max_rows: int = setting(
        "ODE branches, or candidates of shared states, per model call.", "branches", low=1
    )
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
        if self.groups == "shared_state" and self.same_latent:
            yield (
                "sample.same_latent = True: shared_state groups share their start already; leave "
                "it False"
            )
        size = self.window_size
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
        "Credit of each step: terminal is Flow-GRPO's, turning_point TP-GRPO's.", choices=METHODS
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
    global_std: bool = setting(
        "Divide by the std of the epoch's column (of the groups with the same fork step), not of "
        "the group."
    )
    clip: float = setting("Advantages are clamped to +- this.", above=0)
    scale: float = setting(
        "Multiply the difference from the group's mean by this; 0: divide it by the std.", low=0
    )
    over: str = setting(
        "Mean and std of each step, or joint ones of all of a group's steps (Stepwise).",
        choices=("step", "joint"),
    )
    combine: str = setting(
        "Several scores: sum (advantages of the weighted sum) or gdpo (the weighted sum of each "
        "score's own group advantages, whitened over the epoch).",
        choices=("sum", "gdpo"),
    )


@dataclass(frozen=True)
class ObjectiveSettings(Section):
    name: str = setting(
        f"Loss of an update. On the next states: {NEXT_STATES}. On clean images: {VISITED} (at the "
        f"states that sampling visited), {NOISED} (noised afresh).",
        choices=OBJECTIVES,
    )
    timesteps: int = setting(f"{NOISED}: times at which each image is noised.", "times", low=1)
    noisiest: float = setting(
        f"{NOISED}: share of the rollout's times, from sigma = 1, to draw from.", above=0, high=1
    )
    dppo_limit: float = setting("dppo: KL of a step at which its trust region ends.", above=0)
    trust: float = setting("matching: weight of the pull towards the policy that sampled.", low=0)
    nft_mix: float = setting(
        "nft: its beta, the share of the policy in the velocities v+ and v-.", above=0
    )
    elbo_form: str = setting("elbo_pg: form of the loss.", choices=FORMS)
    awm_power: float = setting("awm: power of the matching error in the log-prob.", above=0)
    awm_clip: float = setting("awm: clip range of the ratio.", above=0)
    awm_pull: float = setting("awm: weight of the distance from the lagging policy.", low=0)
    dgpo_sharpness: float = setting("dgpo: its beta, how sharply a group is compared.", above=0)
    dgpo_clip: float = setting(
        "dgpo: range of the ratio beyond which an image gives no gradient.", above=0
    )
    old_flat: int = setting(
        "Updates before the old policy, which samples, lags: after each epoch old = eta old + "
        "(1 - eta) policy, with eta 0 until then. awm: of the lagging policy, which does not "
        "sample.",
        "updates",
        low=0,
    )
    old_ramp: float = setting(
        "How much eta rises with each update; 0: the old policy is always the newest.",
        low=0,
        high=1,
    )
    old_max: float = setting("Largest eta.", low=0, high=1)

    @property
    def lags(self) -> bool:
        """Whether a policy follows from afar."""
        return self.old_ramp > 0 and self.old_max > 0


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
    guidance_scale: float = setting(
        f"{NOISED}: guidance of the trained velocity, 1 without; 0: as in sampling.", low=0
    )
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
        "Loss weight of a step, of mean 1: uniform, velocity (std / |d mean / d v|; grpo, dppo) or "
        "noise (std, TempFlow; grpo, dppo, matching).",
        choices=("uniform", "velocity", "noise"),
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
