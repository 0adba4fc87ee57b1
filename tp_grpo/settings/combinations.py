"""Settings that are each in range but do not go together, and those that have no effect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tp_grpo.method.credit import needs_branches
from tp_grpo.method.objectives import OBJECTIVES, names

if TYPE_CHECKING:
    from tp_grpo.settings import Settings


def mistakes(settings: Settings) -> Iterator[str]:
    """What is refused, each with what to change."""
    yield from _groups(settings)
    yield from _window(settings)
    yield from _objective(settings)
    yield from _advantages(settings)
    yield from _best(settings)


def _groups(settings: Settings) -> Iterator[str]:
    sample, credit, name = settings.sample, settings.credit.name, settings.objective.name
    noised, points = settings.points == "noised", settings.points
    if noised and sample.groups != "trajectories":
        yield (
            f"objective.name = {name!r} looks at clean images that are noised afresh, but "
            f"sample.groups = {sample.groups!r} samples next states of one state; set "
            f"sample.groups = 'trajectories', or an objective of the states: "
            f"{either(names(noised=False))}"
        )
    elif points != "trajectories" and needs_branches(credit):
        who = f"objective.name = {name!r}" if noised else "shared_state"
        yield (
            f"credit.name = {credit!r} tells the steps of a trajectory apart, but with {who} "
            "an image has one score and no steps to compare; set credit.name = 'terminal'"
        )
    if noised and sample.same_latent:
        yield (
            f"sample.same_latent = True: with objective.name = {name!r} the noise of the start is "
            "all that tells the images of a prompt apart, so that they would be one image; leave "
            "it False"
        )
    if points == "shared_state" and sample.window != "fixed":
        yield (
            f"sample.window = {sample.window!r} moves the window of trajectories, but "
            "shared_state groups fork anywhere in theirs; set sample.window = 'fixed', and "
            "sample.window_size to all steps to fork at"
        )


def _window(settings: Settings) -> Iterator[str]:
    if settings.points == "noised":  # it takes no stochastic step
        return
    sample = settings.sample
    start, size, last = sample.window_start, sample.window_size, sample.steps - 1
    if start + size > last:
        yield (
            f"sample.window_start = {start} and sample.window_size = {size}: the window covers "
            f"steps {start} to {start + size - 1} of {sample.steps}, but the last step ({last}) "
            "ends at sigma 0, where no noise is left to act on; the largest window_size from "
            f"there is {max(0, last - start)}"
        )
    stop = sample.window_stop or last
    if sample.window != "fixed" and not start + size <= stop <= last:
        yield (
            f"sample.window_stop = {sample.window_stop}: a window of {size} steps from step "
            f"{start} must fit before it, and it is at most {last}, the last of {sample.steps} "
            f"steps; {start + size} to {last} work, or 0 for {last}"
        )


def _objective(settings: Settings) -> Iterator[str]:
    name, o = settings.objective.name, settings.objective
    sampled, trained = settings.sample.guidance_scale, settings.train.guidance_scale
    noised = settings.points == "noised"
    if not noised and trained not in (0, sampled):
        yield (
            f"train.guidance_scale = {trained:g}: {name} trains the velocity that sampled, "
            f"with sample.guidance_scale = {sampled:g}; set 0"
        )
    if not noised and o.lags:
        yield (
            f"objective.old_ramp = {o.old_ramp:g}: {name} compares the policy with what it "
            "was when it sampled, so that it must sample itself; set objective.old_ramp = 0, "
            f"or an objective that noises clean images: {either(names(noised=True))}"
        )


def _advantages(settings: Settings) -> Iterator[str]:
    norm = settings.advantage
    if norm.combine == "gdpo" and norm.scale:
        yield (
            f"advantage.scale = {norm.scale:g}: gdpo divides each score by its own group's std "
            "and whitens the sum; set advantage.scale = 0, or advantage.combine = 'sum'"
        )
    if norm.combine == "gdpo" and norm.over == "joint":
        yield (
            "advantage.over = 'joint': gdpo compares each step on its own; set "
            "advantage.over = 'step', or advantage.combine = 'sum'"
        )


def _best(settings: Settings) -> Iterator[str]:
    best, scorers = settings.checkpoint.best, settings.rewards.scorers
    if best and best != "total" and best.partition("/")[0] not in scorers:
        yield (
            f"checkpoint.best = {best!r}: no evaluation has this score; it is 'total', a scorer "
            f"({', '.join(scorers)}), one of its extras as 'scorer/extra', or '' for none"
        )


def unpublished(settings: Settings, *, classifier_free: bool) -> Iterator[str]:
    """What works, but not as the objective's source has it."""
    name = settings.objective.name
    sampled = settings.sample.guidance_scale
    trained = settings.train.guidance_scale or sampled
    if not (OBJECTIVES[name].no_guidance and classifier_free) or trained <= 1:
        return
    yield (
        f"sample.guidance_scale = {sampled:g}: {name} was published without guidance (1). With it "
        "every evaluation is paid twice, and the loss compares a guided velocity with images that "
        "no single model makes; train.guidance_scale = 1 leaves it out of the updates"
    )


def without_effect(settings: Settings) -> Iterator[str]:
    """Settings that differ from their default and change nothing, each with the reason."""
    sample, norm, o = settings.sample, settings.advantage, settings.objective
    points = settings.points
    if sample.fork != "spread" and points != "shared_state":
        yield f"sample.fork = {sample.fork!r}: only sample.groups = 'shared_state' forks"
    if sample.window != "fixed" and points == "noised":
        yield f"sample.window = {sample.window!r}: {o.name} takes no stochastic steps"
    if sample.window == "fixed" and sample.window_stop:
        yield f"sample.window_stop = {sample.window_stop}: the window is fixed"
    if o.old_flat and not o.lags:
        yield f"objective.old_flat = {o.old_flat}: old_ramp or old_max is 0, so that nothing lags"
    if norm.over == "joint" and points != "trajectories":
        yield "advantage.over = 'joint': there is one reward an image, and no steps"
    if norm.global_std and norm.scale:
        yield f"advantage.global_std = True: advantage.scale = {norm.scale:g} divides by no std"
    if norm.global_std and norm.combine == "gdpo":
        yield "advantage.global_std = True: gdpo divides each score by its own group's std"
    if settings.step_weight != settings.train.step_weight:
        yield f"train.step_weight = {settings.train.step_weight!r}: {o.name} weights no steps so"


def either(names: list[str]) -> str:
    """`a, b or c`."""
    return f"{', '.join(names[:-1])} or {names[-1]}"
