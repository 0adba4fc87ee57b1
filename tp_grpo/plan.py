"""Config and world size -> checked integers.

The config states global units; the plan derives what each rank does, or refuses with the numbers
that would work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tp_grpo.method.completion import Completion

if TYPE_CHECKING:
    from tp_grpo.settings import SampleSettings, Settings, TrainSettings

Slot = tuple[int, int]  # (position of the group in the epoch, member of the group)


@dataclass(frozen=True)
class Plan:
    """What an epoch does. T = steps, K = len(window); images and evaluations are over all ranks."""

    world_size: int
    completion: Completion  # of a rollout: its steps, its SDE window, the states it completes
    groups: int  # an epoch
    group_size: int
    updates: int  # an epoch
    batch_size: int  # rows of a rollout call
    batches_per_update: int  # on each rank
    stacked: int = 1  # rollout batches, each at one step, in a training micro-batch
    same_latent: bool = False

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
    def nfe(self) -> int:
        """Model evaluations a trajectory while sampling, a shared baseline counted for each."""
        return self.completion.nfe

    @property
    def epoch_nfe(self) -> int:
        """Model evaluations of an epoch's sampling; a baseline that is shared counts once."""
        baseline = self.completion.evaluated.get(0, ())
        return self.images * self.nfe - self._shared * len(baseline)

    @property
    def epoch_images(self) -> int:
        """Images decoded, and scored, an epoch."""
        return self.images * self.ladder - self._shared

    @property
    def _shared(self) -> int:
        """Baselines an epoch that another member of the group in the same batch has made."""
        if not (self.same_latent and 0 in self.completion.states[:-1]):
            return 0
        batches = [batch for rank in range(self.world_size) for batch in self.batches(rank)]
        return sum(len(batch) - len({group for group, _ in batch}) for batch in batches)

    def at(self, sigmas: Sequence[float]) -> Plan:
        """The plan on a model's own schedule (T+1,); see `Completion.at`."""
        return replace(self, completion=self.completion.at(sigmas))

    @property
    def micro_batches(self) -> int:
        """Backward passes an update, on each rank, if no advantage is zero."""
        return -(-self.batches_per_update * len(self.window) // self.stacked)

    @property
    def train_rows(self) -> int:
        """Rows of a training micro-batch."""
        return self.batch_size * self.stacked

    @property
    def summary(self) -> list[tuple[str, str]]:
        """The plan in words: rows of a name and a sentence."""
        batches = f"{self.batches_per_update} rollout batches x {len(self.window)} steps"
        calls = self.images // self.batch_size
        return [
            ("ranks", f"{self.world_size}"),
            ("images", f"{self.images} an epoch: {self.groups} prompts x {self.group_size}"),
            (
                "sampling",
                f"{self.nfe} model evaluations an image, {self.epoch_nfe} an epoch; "
                f"{self.steps} steps",
            ),
            ("scored", f"{self.epoch_images} images an epoch in {calls} calls of each scorer"),
            ("update", f"{self.updates} an epoch, each of {self.images // self.updates} images"),
            (
                "",
                f"a rank: {self.micro_batches} micro-batches of {self.train_rows} accumulated "
                f"({batches})",
            ),
        ]

    def rows(self, rank: int) -> list[range]:
        """The rank's samples by batch, update by update, as rows of all samples in order.

        Row `group * group_size + member`. An update holds the same groups for any world size.
        """
        per_update = self.images // self.updates
        on_rank = self.batch_size * self.batches_per_update
        starts = [
            update * per_update + rank * on_rank + batch * self.batch_size
            for update in range(self.updates)
            for batch in range(self.batches_per_update)
        ]
        return [range(start, start + self.batch_size) for start in starts]

    def batches(self, rank: int) -> list[list[Slot]]:
        """The rank's samples by batch, as `rows`, each by its group and member."""
        return [[divmod(row, self.group_size) for row in rows] for rows in self.rows(rank)]


def make_plan(config: Settings, world_size: int, *, branches: bool) -> Plan:
    """Raises ValueError with the numbers and the nearest that work, for what does not divide."""
    sample, train = config.sample, config.train
    _check_geometry(sample, train, world_size)
    per_rank = sample.groups_per_epoch * sample.group_size // train.updates_per_epoch // world_size
    start, size = sample.window_start, sample.window_size
    completion = Completion(
        steps=sample.steps,
        window=range(start, start + size),
        branches=tuple(range(sample.branch_from, size, sample.branch_every)) if branches else (),
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
        batches_per_update=per_rank // sample.batch_size,
        stacked=max(1, train.batch_size // sample.batch_size),
        same_latent=sample.same_latent,
    )


def _check_geometry(sample: SampleSettings, train: TrainSettings, world_size: int) -> None:
    groups, size, updates = sample.groups_per_epoch, sample.group_size, train.updates_per_epoch
    batch, images = sample.batch_size, groups * size
    share = images // updates // world_size
    if groups % updates:
        raise ValueError(
            f"sample.groups_per_epoch = {groups} does not split into train.updates_per_epoch = "
            f"{updates} updates of whole groups; {_nearest(groups, lambda g: g % updates == 0)}"
        )
    if images // updates % world_size:
        raise ValueError(
            f"sample.group_size = {size}: groups_per_epoch x group_size = {groups} x {size} = "
            f"{images} images in {updates} updates do not split over {world_size} ranks; "
            f"{_nearest(size, lambda g: g > 1 and groups * g // updates % world_size == 0)}"
        )
    if share % batch:
        raise ValueError(
            f"sample.batch_size = {batch}: a rank's {share} images of an update ({images} images, "
            f"{updates} updates, {world_size} ranks) do not split into batches of it; "
            f"{_nearest(batch, lambda b: b <= share and share % b == 0)}"
        )
    if train.batch_size % batch:
        raise ValueError(
            f"train.batch_size = {train.batch_size}: a backward pass takes whole rollout batches "
            f"of sample.batch_size = {batch}; "
            f"{_nearest(train.batch_size, lambda b: b % batch == 0)}, or 0 for one"
        )


def _nearest(value: int, works: Callable[[int], bool]) -> str:
    below = next((v for v in range(value - 1, 0, -1) if works(v)), None)
    above = next((v for v in range(value + 1, 64 * value + 64) if works(v)), None)
    near = [str(v) for v in (below, above) if v is not None]
    if not near:
        return "no nearby value works"
    return f"the nearest that {'work are' if len(near) == 2 else 'works is'} {' and '.join(near)}"
