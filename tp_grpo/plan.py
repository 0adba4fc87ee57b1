"""Config and world size -> checked integers.

The config states global units; the plan derives what each rank does, or refuses with the numbers
that would work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tp_grpo.method.completion import Completion
from tp_grpo.method.credit import needs_branches
from tp_grpo.method.objectives import OBJECTIVES
from tp_grpo.settings import points_of
from tp_grpo.settings.batches import check_batches

if TYPE_CHECKING:
    from tp_grpo.settings import SampleSettings, Settings

Slot = tuple[int, int]  # (position of the group in the epoch, member of the group)
WINDOW = 3  # key of the windows' draws


@dataclass(frozen=True)
class Plan:
    """What an epoch does. T = steps, K = len(window); images and evaluations are over all ranks.

    A row of a rollout call is an image, or with shared states a group.
    """

    world_size: int
    completion: Completion  # of a rollout: its steps, its SDE window, the states it completes
    groups: int  # an epoch
    group_size: int
    updates: int  # an epoch
    batch_size: int  # rows of a rollout call
    batches_per_update: int  # on each rank
    stacked: int = 1  # rollout batches, each at one step, in a training micro-batch
    same_latent: bool = False
    points: str = "trajectories"  # or shared_state, noised: see `Settings.points`
    times: int = 1  # noised: points of an image
    forks: tuple[int, ...] = ()  # shared states: the steps that a group may fork at, ascending
    starts: tuple[int, ...] = ()  # the window's first steps to choose among, ascending
    slides_every: int = 0  # epochs; 0: the window is drawn for each

    @property
    def facts(self) -> dict[str, object]:
        """Its numbers by name, which all ranks must share."""
        parts = vars(self) | vars(self.completion)
        return {f"plan.{name}": value for name, value in parts.items() if name != "completion"}

    @property
    def members(self) -> int:
        """Images a row of a rollout call."""
        return self.group_size if self.points == "shared_state" else 1

    @property
    def columns(self) -> int:
        """Points a row that an update looks at."""
        return {"trajectories": len(self.window), "shared_state": 1, "noised": self.times}[
            self.points
        ]

    @property
    def credited(self) -> int:
        """Steps an image that are given a reward each."""
        return len(self.window) if self.points == "trajectories" else 1

    def in_epoch(self, epoch: int, seed: int) -> Plan:
        """The plan with the window of that epoch, the same on every rank."""
        if len(self.starts) < 2:
            return self
        if self.slides_every:
            start = self.starts[epoch // self.slides_every % len(self.starts)]
        else:
            start = int(np.random.default_rng([WINDOW, seed, epoch]).choice(self.starts))
        return self._from(start)

    @property
    def steps(self) -> int:
        """T."""
        return self.completion.steps

    @property
    def window(self) -> range:
        """The K SDE steps."""
        return self.completion.window

    @property
    def images(self) -> int:
        """Trajectories an epoch."""
        return self.groups * self.group_size

    @property
    def ladder(self) -> int:
        """Clean images a trajectory, the length J of its reward ladder: 1 without branches."""
        return len(self.completion.states)

    @property
    def batch_images(self) -> int:
        """Images of a rollout batch that are decoded, branches included."""
        return self.batch_size * self.members * self.ladder

    @property
    def nfe(self) -> int:
        """Model evaluations a trajectory while sampling, a shared baseline counted for each."""
        return self.completion.nfe

    def group_nfe(self, fork: int) -> int:
        """Model evaluations of a shared-state group that forks at that step: s + 1 + G c."""
        return fork + 1 + self.group_size * len(self.completion.forked(fork).evaluated[1])

    def evaluations(self, forks: Sequence[int] = ()) -> int:
        """Model evaluations of the sampling of an epoch with this window; see `epoch_nfe`.

        forks: the step of each shared-state group. A baseline that images share counts once.
        """
        if self.points == "shared_state":
            return sum(map(self.group_nfe, forks))
        baseline = self.completion.evaluated.get(0, ())
        return self.images * self.nfe - self._shared * len(baseline)

    @property
    def epoch_nfe(self) -> int:
        """Model evaluations of an epoch's sampling, rounded: the mean over the steps to fork at,
        or over the window's places.
        """
        if self.points == "shared_state":
            counts = [self.groups * self.group_nfe(step) for step in self.forks]
        elif len(self.starts) > 1:
            counts = [self._from(start).evaluations() for start in self.starts]
        else:
            counts = [self.evaluations()]
        return round(sum(counts) / len(counts))

    def _from(self, start: int) -> Plan:
        """The plan with the window from there."""
        window = range(start, start + len(self.window))
        return replace(self, completion=replace(self.completion, window=window))

    @property
    def epoch_images(self) -> int:
        """Images decoded, and scored, an epoch."""
        return self.images * self.ladder - self._shared

    @property
    def shares_baseline(self) -> bool:
        """Whether all ladders of a group begin with one image, made once in each rollout batch."""
        branched = self.points == "trajectories" and 0 in self.completion.states[:-1]
        return self.same_latent and branched

    @property
    def _shared(self) -> int:
        """Baselines an epoch that another member of the group in the same batch has made."""
        if not self.shares_baseline:
            return 0
        batches = [batch for rank in range(self.world_size) for batch in self.batches(rank)]
        return sum(len(batch) - len({group for group, _ in batch}) for batch in batches)

    def at(self, sigmas: Sequence[float]) -> Plan:
        """The plan on a model's own schedule (T+1,); see `Completion.at`."""
        return replace(self, completion=self.completion.at(sigmas))

    @property
    def micro_batches(self) -> int:
        """Backward passes an update, on each rank, if no advantage is zero."""
        return -(-self.batches_per_update * self.columns // self.stacked)

    @property
    def train_rows(self) -> int:
        """Rows of a training micro-batch."""
        return self.batch_size * self.stacked

    @property
    def summary(self) -> list[tuple[str, str]]:
        """The plan in words: rows of a name and a sentence."""
        unit = "times" if self.points == "noised" else "steps"
        batches = f"{self.batches_per_update} rollout batches x {self.columns} {unit}"
        if self.points == "shared_state":
            batches = f"{self.batches_per_update} rollout batches, a row a group"
        calls = self.images // self.batch_size // self.members
        return [
            ("ranks", f"{self.world_size}"),
            ("images", f"{self.images} an epoch: {self.groups} prompts x {self.group_size}"),
            ("sampling", self._sampling),
            ("scored", f"{self.epoch_images} images an epoch in {calls} calls of each scorer"),
            ("update", f"{self.updates} an epoch, each of {self.images // self.updates} images"),
            (
                "",
                f"a rank: {self.micro_batches} micro-batches of {self.train_rows} accumulated "
                f"({batches})",
            ),
        ]

    @property
    def _sampling(self) -> str:
        steps, nfe = f"{self.steps} steps", self.epoch_nfe
        if self.points == "shared_state":
            counts = [self.group_nfe(step) for step in self.forks]
            few, most = min(counts), max(counts)
            first, last = self.forks[0], self.forks[-1]
            each = f"{few} to {most}" if few < most else f"{few}"
            where = f"{first} to {last}" if first < last else f"{first}"
            about = f"{nfe} an epoch" if few == most else f"{nfe} an epoch if each is as likely"
            return f"{each} model evaluations a group, forked at step {where} of {steps}; {about}"
        if len(self.starts) < 2:
            return f"{self.nfe} model evaluations an image, {nfe} an epoch; {steps}"
        counts = [self._from(start).nfe for start in self.starts]
        few, most = min(counts), max(counts)
        images = f"{few} to {most}" if few < most else f"{few}"
        return (
            f"{images} model evaluations an image, {nfe} an epoch on the average; {steps}, "
            f"{len(self.window)} of them in a moving window"
        )

    def rows(self, rank: int) -> list[range]:
        """The rank's samples by batch, update by update, as rows of all samples in order.

        Row `group * group_size + member`. An update holds the same groups for any world size.
        """
        per_update = self.images // self.updates
        in_batch = self.batch_size * self.members
        on_rank = in_batch * self.batches_per_update
        starts = [
            update * per_update + rank * on_rank + batch * in_batch
            for update in range(self.updates)
            for batch in range(self.batches_per_update)
        ]
        return [range(start, start + in_batch) for start in starts]

    def batches(self, rank: int) -> list[list[Slot]]:
        """The rank's samples by batch, as `rows`, each by its group and member."""
        return [[divmod(row, self.group_size) for row in rows] for rows in self.rows(rank)]


def make_plan(config: Settings, world_size: int, *, branches: bool | None = None) -> Plan:
    """Raises ValueError with the numbers and the nearest that work, for what does not divide.

    branches: whether states are completed; None: where the credit needs them.
    """
    sample, train = config.sample, config.train
    points = points_of(config.objective.name, sample.groups)
    shared = points == "shared_state"
    whole = "shared_state groups stay whole" if shared else ""
    if OBJECTIVES[config.objective.name].groups:
        whole = f"{config.objective.name} compares the images of a prompt, which stay together"
    members = 1 if shared else sample.group_size
    check_batches(sample, train, world_size, whole_group=whole, rows=members)
    rows = sample.groups_per_epoch * members
    window = _window(sample)
    if branches is None:
        branches = needs_branches(config.credit.name)
    completed = range(sample.branch_from, sample.window_size, sample.branch_every)
    moving = sample.window != "fixed" and points == "trajectories"
    last = (sample.window_stop or sample.steps - 1) - sample.window_size
    completion = Completion(
        steps=sample.steps,
        window=range(0) if points == "noised" else window,
        branches=tuple(completed) if branches else (),
        name=sample.completion,
        evaluations=sample.completion_steps,
        stride=sample.completion_stride,
    )
    return Plan(
        world_size=world_size,
        completion=completion,
        groups=sample.groups_per_epoch,
        group_size=sample.group_size,
        updates=train.updates_per_epoch,
        batch_size=sample.batch_size,
        batches_per_update=rows // train.updates_per_epoch // world_size // sample.batch_size,
        stacked=max(1, train.batch_size // sample.batch_size),
        same_latent=sample.same_latent,
        points=points,
        times=config.objective.timesteps,
        forks=tuple(window[:1] if sample.fork == "first" else window) if shared else (),
        starts=tuple(range(sample.window_start, last + 1)) if moving else (window.start,),
        slides_every=sample.window_every if sample.window == "sliding" else 0,
    )


def _window(sample: SampleSettings) -> range:
    return range(sample.window_start, sample.window_start + sample.window_size)
