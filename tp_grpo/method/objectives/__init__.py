"""The objectives: what each looks at, and its loss. A new one is a file here and a line below.

An objective names the points that it can look at, and the targets and predictions that it needs
of them. Its loss's keyword arguments are settings: `objective.NAME`, or `train.clip_range` and
`train.beta`.
"""

from __future__ import annotations

import inspect
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

    title: its name in words, with its paper. noised: it looks at clean images noised afresh; else
    at the states that sampling visited. clean: its targets are the clean images; else the next
    states. step_weights: the kinds of `train.step_weight`, besides uniform, that it has a use for.
    silent: no gradient comes from a point whose advantage is 0, so that it can be left out.
    reference: it needs the frozen model whatever `train.beta` is. lagging: the option that weights
    its pull towards a policy of its own, which follows by `objective.old_*` in the place of the one
    that samples. bounded: its metric `moved` is mean |D|, see `matching`. groups: the images of a
    prompt are compared: they share their noise, and a rollout batch holds whole groups.
    no_guidance: its source trains without guidance.
    """

    loss: Callable[..., Loss]
    title: str
    noised: bool = False
    clean: bool = False
    step_weights: tuple[str, ...] = ()
    silent: bool = False
    reference: bool = False
    lagging: str = ""
    bounded: bool = False
    groups: bool = False
    no_guidance: bool = False

    @property
    def options(self) -> frozenset[str]:
        """The names of the loss's keyword arguments without a default, which are settings."""
        keywords = [
            p for p in inspect.signature(self.loss).parameters.values() if p.kind is p.KEYWORD_ONLY
        ]
        return frozenset(p.name for p in keywords if p.default is p.empty)


def _next(loss: Callable[..., Loss], title: str, *weights: str) -> Objective:
    return Objective(loss, title, silent=True, step_weights=weights)


def _noised(loss: Callable[..., Loss], title: str, **needs: Any) -> Objective:
    return Objective(loss, title, noised=True, clean=True, no_guidance=True, **needs)


OBJECTIVES = {
    "grpo": _next(grpo, "GRPO", "velocity", "noise"),
    "guard": _next(guard, "GRPO-Guard (arXiv 2510.22319)"),
    "dppo": _next(dppo, "Flow-DPPO (arXiv 2606.11025)", "velocity", "noise"),
    "matching": Objective(
        matching, "matching of clean images", clean=True, step_weights=("noise",), bounded=True
    ),
    "nft": _noised(nft, "DiffusionNFT (arXiv 2509.16117)"),
    "elbo_pg": _noised(elbo_pg, "ELBO-PG (arXiv 2602.04663)", bounded=True),
    "awm": _noised(awm, "AWM, advantage-weighted matching (arXiv 2509.25050)", lagging="awm_pull"),
    "dgpo": _noised(dgpo, "DGPO (arXiv 2510.08425)", reference=True, groups=True),
}


def names(**traits: bool) -> list[str]:
    """Of the objectives with these values, such as `noised=True`."""
    return [
        name
        for name, objective in OBJECTIVES.items()
        if all(getattr(objective, trait) == value for trait, value in traits.items())
    ]
