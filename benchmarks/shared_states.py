"""A group of G images as trajectories and from a shared state: seconds to sample and to update.

Part of speed.py; alone: python benchmarks/shared_states.py [--quick]. One thread. Both have the
same random SD3-class transformer, T and K, and take turns; Flow-GRPO trains K steps of each image,
the shared state is one row. Decoding and scoring, G images for both, are not included.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import random_models
from timing import interleaved

from tp_grpo.method import sampler, shared_state
from tp_grpo.plan import Plan, make_plan
from tp_grpo.ranks.runtime import Runtime
from tp_grpo.train.learner import Learner
from tp_grpo.train.rollout import velocity_of
from tp_grpo.train.update import Updater
from tp_grpo.types import Rollout, SharedStates, Trajectories

GROUP = 24  # images, as published
FIELDS = {"credit.name": "terminal", "sample.group_size": GROUP}


class Group:
    """A group's rollout and update, with a transformer of its own."""

    def __init__(self, size: random_models.Size, steps: int, window: int, **fields: Any) -> None:
        rows = fields.pop("rows")
        config = random_models.settings(
            size,
            steps=steps,
            window=window,
            batch=rows,
            max_rows=GROUP,
            fields={**FIELDS, **{name.replace("__", "."): v for name, v in fields.items()}},
        )
        self.backbone, self.cond = random_models.build(size, config)
        runtime = Runtime("fp32", (), ".")
        self.learner = Learner(runtime, self.backbone, config)
        self.sigmas, self.sample = self.backbone.sigmas(steps), config.sample
        self.plan: Plan = make_plan(config, 1).at(self.sigmas.tolist())
        self.updater = Updater(runtime.accelerator, self.learner, self.plan, config)
        self.velocity = velocity_of(self.backbone, self.sigmas, self.cond, 1.0)
        self.noise = torch.randn(rows, self._draws, *self.backbone.latent_shape)
        self.start = torch.randn(rows, *self.backbone.latent_shape)
        self.advantages = torch.randn(GROUP, self.plan.credited)
        self.rollout: Rollout

    @property
    def _draws(self) -> int:
        shared = self.plan.points == "shared_state"
        return GROUP if shared else len(self.plan.window)

    def roll_out(self, fork: int = 0) -> None:
        options = {"kind": self.sample.kind, "noise_level": self.sample.noise_level}
        options |= {"completion": self.plan.completion, "max_rows": GROUP}
        if self.plan.points == "shared_state":
            steps = torch.tensor([fork])
            forked = shared_state.shared_states(
                self.velocity, self.start, self.sigmas, self.noise, steps=steps, **options
            )
            self.rollout = SharedStates(
                self.cond, forked.state, steps, forked.velocity, forked.candidates, forked.clean
            )
            return
        states, velocities, _ = sampler.staircase(
            self.velocity, self.start, self.sigmas, self.noise, **options
        )
        self.rollout = Trajectories(self.cond, states, velocities, states[:, :0])

    def update(self) -> None:
        self.updater.step([self.rollout], [self.advantages], fresh=False)


def measure(size: random_models.Size, steps: int, window: int, repeats: int) -> dict[str, float]:
    """Median seconds by what was done."""
    flow = Group(size, steps, window, rows=GROUP)
    shared = Group(
        size, steps, window, rows=1, sample__groups="shared_state", objective__name="matching"
    )
    late = functools.partial(shared.roll_out, window - 1)
    sampling = {"flow": flow.roll_out, "late": late, "shared": shared.roll_out}
    updates = {"flow update": flow.update, "shared update": shared.update}
    for work in (sampling | updates).values():
        work()
    seconds = interleaved(sampling, repeats)
    return seconds | interleaved(updates, repeats)


def report(*, quick: bool, say: Callable[[str], None] = lambda text: None) -> list[str]:
    """A Markdown table: milliseconds, and how many times as fast as Flow-GRPO's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    head = ["transformer", "schedule", "Flow-GRPO rollout, ms", "forked at step 0"]
    head += ["at the last step", "Flow-GRPO update, ms", "update"]
    lines = ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    sizes = ("small",) if quick else tuple(random_models.SIZES)
    for name in sizes:
        for steps, window in ((10, 9), (6, 5)):
            s = measure(random_models.SIZES[name], steps, window, 3 if quick else 5)
            cells = [name, f"T = {steps}, K = {window}", f"{1000 * s['flow']:.0f}"]
            cells += [f"{1000 * s[k]:.0f} ({s['flow'] / s[k]:.2f} x)" for k in ("shared", "late")]
            gain = s["flow update"] / s["shared update"]
            cells += [f"{1000 * s['flow update']:.0f}"]
            cells += [f"{1000 * s['shared update']:.0f} ({gain:.1f} x)"]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"A group of {GROUP} images, one thread, medians.", ""]
    torch.set_num_threads(threads)
    say("\n".join(lines))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the small transformer alone")
    print("\n".join(report(quick=parser.parse_args().quick)))


if __name__ == "__main__":
    main()
