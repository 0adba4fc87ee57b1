"""The objectives: what each looks at, and its loss. A new one is a file here and a line below.

An objective names the points that it can look at, the targets and predictions that it needs of
them, and its options, each a setting `objective.NAME` (or `train.clip_range`, `train.beta`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tp_grpo.method.objectives.awm import awm
from tp_grpo.method.objectives.dgpo import dgpo
from tp_grpo.method.objectives.dppo import dppo
from tp_grpo.method.objectives.elbo_pg import elbo_pg
from tp_grpo.method.objectives.grpo import grpo
from tp_grpo.method.objectives.guard import guard
from tp_grpo.method.objectives.matching import matching
from tp_grpo.method.objectives.nft import nft
from tp_grpo.types import Loss


@dataclass(frozen=True)
class Objective:
    """A loss of `Points` and `Predictions`, and what the update must prepare for it.

    noised: it looks at clean images noised afresh; else at the states that sampling visited.
    clean: its targets are the clean images; else the next states.
    options: the names of its keyword arguments, which are settings.
    silent: no gradient comes from a point whose advantage is 0, so that it can be left out.
    reference: it needs the frozen model whatever `train.beta` is. lagging: the option that weights
    its pull towards a policy of its own, which follows by `objective.old_*` in the place of the one
    that samples. bounded: its metric `moved` is mean |D|, see `matching`. groups: the images of a
    prompt are compared: they share their noise, and a rollout batch holds whole groups.
    no_guidance: its source trains without guidance.
    """

    loss: Callable[..., Loss]
    options: frozenset[str]
    noised: bool = False
    clean: bool = False
    silent: bool = False
    reference: bool = False
    lagging: str = ""
    bounded: bool = False
    groups: bool = False
    no_guidance: bool = False


def _next(loss: Callable[..., Loss], *options: str) -> Objective:
    return Objective(loss, frozenset({*options, "beta"}), silent=True)


def _noised(loss: Callable[..., Loss], *options: str, **needs: Any) -> Objective:
    return Objective(loss, frozenset(options), noised=True, clean=True, no_guidance=True, **needs)


OBJECTIVES = {
    "grpo": _next(grpo, "clip_range"),
    "guard": _next(guard, "clip_range"),
    "dppo": _next(dppo, "dppo_limit"),
    "matching": Objective(matching, frozenset({"trust", "beta"}), clean=True, bounded=True),
    "nft": _noised(nft, "nft_mix", "beta"),
    "elbo_pg": _noised(elbo_pg, "elbo_form", "beta", bounded=True),
    "awm": _noised(awm, "awm_power", "awm_clip", "awm_pull", "beta", lagging="awm_pull"),
    "dgpo": _noised(dgpo, "dgpo_sharpness", "dgpo_clip", "beta", reference=True, groups=True),
}
