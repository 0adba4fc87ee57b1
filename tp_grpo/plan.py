"""Config and world size -> checked integers. No torch, nothing of ours: a plan can be made anywhere.

The config states global units; the plan derives what each rank does, or refuses with the numbers that would work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

Slot = tuple[int, int]  # (position of the group in the epoch, member of the group)
SMALL_SIGMA = 0.02  # below it a completion that saves evaluations makes none: v moves the image by sigma times its error


@dataclass(frozen=True)
class Plan:
    """What an epoch does. T = steps, K = len(window); images and evaluations are counted over all ranks."""

    world_size: int
    steps: int
    window: range
    branches: tuple[
        int, ...
    ]  # states of the window, by SDE steps before them, that are completed by the ODE; ascending
    groups: int  # an epoch
    group_size: int
    updates: int  # an epoch
    batch_size: int  # rows of a rollout call
    batches_per_update: int  # on each rank
    stacked: int = 1  # rollout batches, each at one step, in a training micro-batch
    completion: str = "euler"
    completion_steps: int = 1  # of `multistep`
    completion_stride: int = 1  # of `strided`
    same_latent: bool = False
    small: int | None = (
        None  # the first step that starts below SMALL_SIGMA; None until the schedule is known
    )

    @property
    def images(self) -> int:
        """Trajectories an epoch."""
        return self.groups * self.group_size

    @property
    def ladder(self) -> int:
        """Clean images a trajectory, the length J of its reward ladder: K + 1 with all branches, 1 with none."""
        return len(self.branches) + 1

    @property
    def states(self) -> tuple[int, ...]:
        """The states (J,) that the ladder's columns stand for, by the SDE steps before them; the last is K."""
        return (*self.branches, len(self.window))

    @property
    def solver(self) -> str:
        """Of the completions, as the sampler names it."""
        return "adams_bashforth" if self.completion == "multistep" else "euler"

    @property
    def completions(self) -> dict[int, tuple[int, ...]]:
        """For each of `states` the steps at which its completion evaluates the velocity, beside a branch's first."""
        return {state: self._evaluated(state) for state in self.states}

    @property
    def nfe(self) -> int:
        """Model evaluations a trajectory while sampling, a shared baseline counted for each.

        T + K (T - s - 1) - K (K - 1) / 2 with `euler` and all branches.
        """
        return self.window.stop + sum(map(len, self.completions.values()))

    @property
    def epoch_nfe(self) -> int:
        """Model evaluations of an epoch's sampling; the baseline of one latent is computed once a rollout batch."""
        return self.images * self.nfe - self._shared * len(self.completions.get(0, ()))

    @property
    def epoch_images(self) -> int:
        """Images decoded, and scored, an epoch."""
        return self.images * self.ladder - self._shared

    @property
    def _shared(self) -> int:
        """Baselines an epoch that another member of the group in the same rollout batch has made already."""
        if not (self.same_latent and 0 in self.branches):
            return 0
        batches = [batch for rank in range(self.world_size) for batch in self.batches(rank)]
        return sum(len(batch) - len({group for group, _ in batch}) for batch in batches)

    def _evaluated(self, state: int) -> tuple[int, ...]:
        start, end = self.window.start + state, state == len(self.window)
        stop = self.steps if self.small is None else self.small
        if self.completion == "reuse" and end and start >= stop:
            return ()  # the velocity of the last SDE step serves once more
        steps = self._visited(start, max(stop, start + 1))
        return tuple(steps if end else steps[1:])

    def _visited(self, start: int, stop: int) -> Sequence[int]:
        """The steps at which a completion from `start` needs the velocity; `stop`: the first that starts too low."""
        if self.completion == "tweedie":
            return [start]
        if self.completion == "strided":
            return range(start, stop, self.completion_stride)
        if self.completion == "multistep":
            count = min(self.completion_steps, stop - start)
            return [start + i * (stop - start) // count for i in range(count)]
        return range(start, self.steps if self.completion == "euler" else stop)

    def at(self, sigmas: Sequence[float]) -> Plan:
        """The plan for a model's own schedule (T+1,), on which it depends which steps a completion can spare."""
        return replace(self, small=next(i for i, sigma in enumerate(sigmas) if sigma < SMALL_SIGMA))

    @property
    def micro_batches(self) -> int:
        """Backward passes an update, on each rank, if no advantage is zero."""
        return -(-self.batches_per_update * len(self.window) // self.stacked)

    @property
    def train_rows(self) -> int:
        """Rows of a training micro-batch."""
        return self.batch_size * self.stacked

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The plan in words: a short name and what there is of it."""
        images = f"{self.images} an epoch: {self.groups} prompts x {self.group_size}"
        sampled = (
            f"{self.nfe} model evaluations an image, {self.epoch_nfe} an epoch; {self.steps} steps"
        )
        scored = f"{self.epoch_images} images an epoch in {self.images // self.batch_size} calls of each scorer"
        batches = f"{self.batches_per_update} rollout batches x {len(self.window)} steps"
        return [
            ("ranks", f"{self.world_size}"),
            ("images", images),
            ("sampling", sampled),
            ("scored", scored),
            ("update", f"{self.updates} an epoch, each of {self.images // self.updates} images"),
            (
                "",
                f"a rank: {self.micro_batches} micro-batches of {self.train_rows} accumulated ({batches})",
            ),
        ]

    def batches(self, rank: int) -> list[list[Slot]]:
        """The rank's samples, update by update, in batches. An update holds the same groups for any world size."""
        per_update = self.images // self.updates
        own = self.batch_size * self.batches_per_update
        starts = [
            update * per_update + rank * own + batch * self.batch_size
            for update in range(self.updates)
            for batch in range(self.batches_per_update)
        ]
        return [
            [divmod(start + i, self.group_size) for i in range(self.batch_size)] for start in starts
        ]


def make_plan(config: Any, world_size: int, *, branches: bool) -> Plan:
    """Raises ValueError with the numbers and the nearest that work, for what does not divide."""
    sample, train = config.sample, config.train
    _check_geometry(sample, train, world_size)
    per_rank = sample.groups_per_epoch * sample.group_size // train.updates_per_epoch // world_size
    return Plan(
        world_size=world_size,
        steps=sample.steps,
        window=range(sample.window_start, sample.window_start + sample.window_size),
        branches=tuple(range(sample.branch_from, sample.window_size, sample.branch_every))
        if branches
        else (),
        groups=sample.groups_per_epoch,
        group_size=sample.group_size,
        updates=train.updates_per_epoch,
        batch_size=sample.batch_size,
        batches_per_update=per_rank // sample.batch_size,
        stacked=max(1, train.batch_size // sample.batch_size),
        completion=sample.completion,
        completion_steps=sample.completion_steps,
        completion_stride=sample.completion_stride,
        same_latent=sample.same_latent,
    )


def _check_geometry(sample: Any, train: Any, world_size: int) -> None:
    groups, size, updates = sample.groups_per_epoch, sample.group_size, train.updates_per_epoch
    if groups % updates:
        raise ValueError(
            f"sample.groups_per_epoch = {groups} does not split into train.updates_per_epoch = {updates} updates of "
            f"whole groups; {_nearest(groups, lambda g: g % updates == 0)}"
        )
    images = groups * size
    if images // updates % world_size:
        raise ValueError(
            f"sample.group_size = {size}: groups_per_epoch x group_size = {groups} x {size} = {images} images in "
            f"{updates} updates do not split over {world_size} ranks; "
            f"{_nearest(size, lambda g: g > 1 and groups * g // updates % world_size == 0)}"
        )
    own = images // updates // world_size
    if own % sample.batch_size:
        raise ValueError(
            f"sample.batch_size = {sample.batch_size}: a rank's {own} images of an update ({images} images, {updates} "
            f"updates, {world_size} ranks) do not split into batches of it; "
            f"{_nearest(sample.batch_size, lambda b: b <= own and own % b == 0)}"
        )
    if train.batch_size % sample.batch_size:
        raise ValueError(
            f"train.batch_size = {train.batch_size}: a backward pass takes whole rollout batches of sample.batch_size "
            f"= {sample.batch_size}; {_nearest(train.batch_size, lambda b: b % sample.batch_size == 0)}, or 0 for one"
        )


def _nearest(value: int, works: Callable[[int], bool]) -> str:
    below = next((v for v in range(value - 1, 0, -1) if works(v)), None)
    above = next((v for v in range(value + 1, 64 * value + 64) if works(v)), None)
    found = [str(v) for v in (below, above) if v is not None]
    if not found:
        return "no value near it does"
    return (
        f"the nearest that do are {' and '.join(found)}"
        if len(found) == 2
        else f"the nearest that does is {found[0]}"
    )
