"""Config and world size -> checked integers.

The config states global units; the plan derives what each rank does, or refuses with the numbers
that would work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tp_grpo.method.completion import COMPLETIONS, Completion

Slot = tuple[int, int]  # (position of the group in the epoch, member of the group)
CHOICES = (
    ("model", "text_encoders", ("offload", "resident", "drop")),
    ("model", "vae_dtype", ("fp32", "bf16")),
    ("sample", "kind", ("sde", "cps")),
    ("sample", "completion", COMPLETIONS),
    ("train", "optimizer", ("adamw", "adamw_8bit")),
    ("train", "step_weight", ("uniform", "velocity")),
    ("tracking", "alarms", ("warn", "stop", "rollback", "off")),
)


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


def make_plan(config: Any, world_size: int, *, branches: bool) -> Plan:
    """Raises ValueError with the numbers and the nearest that work, for what does not fit together."""
    sample, train = config.sample, config.train
    _positive(
        sample,
        "sample",
        ("steps", "window_size", "groups_per_epoch", "group_size", "batch_size", "max_rows"),
    )
    _positive(sample, "sample", ("branch_every", "completion_steps", "completion_stride"))
    _within(config.credit, "credit", "lam", 0, 1)
    _positive(config.advantage, "advantage", ("clip",))
    _within(train, "train", "beta", 0, float("inf"))
    _within(train, "train", "batch_size", 0, float("inf"))
    _within(config.ema, "ema", "decay", 0, 1)
    _within(config.rewards, "rewards", "max_failed", 0, 1)
    _positive(
        train,
        "train",
        ("updates_per_epoch", "inner_epochs", "clip_range", "learning_rate", "max_grad_norm"),
    )
    _positive(config, "config", ("epochs",))
    _positive(config.eval, "eval", ("every",))
    check_sampling(config)
    _positive(config.ema, "ema", ("every",))
    _within(config.lora, "lora", "rank", 0, float("inf"))
    _positive(config.tracking, "tracking", ("images_every",))
    _positive(config.runtime, "runtime", ("timeout_s",))
    _positive(config.checkpoint, "checkpoint", ("keep", "keep_every"))
    _within(config.checkpoint, "checkpoint", "grace", 0, float("inf"))
    _within(train, "train", "max_skipped", 0, float("inf"))
    for section, field, choices in CHOICES:
        if config[section][field] not in choices:
            raise ValueError(
                f"{section}.{field} = {config[section][field]!r} is not one of {', '.join(choices)}"
            )
    _check_window(sample)
    _check_noise(sample)
    if sample.group_size < 2:
        raise ValueError(
            f"sample.group_size = {sample.group_size}: an advantage compares at least 2 images of a prompt"
        )
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


def check_sampling(config: Any) -> None:
    """What drawing images takes, without training. Raises ValueError."""
    _positive(
        config.model, "model", ("height", "width", "max_sequence_length", "decode_batch_size")
    )
    _positive(config.eval, "eval", ("steps", "members", "batch_size"))
    _within(config.eval, "eval", "prompts", 0, float("inf"))
    _within(config, "config", "seed", 0, 2**63 - 1)


def _positive(section: Any, name: str, fields: Iterable[str]) -> None:
    for field in fields:
        if not section[field] > 0:
            raise ValueError(f"{name}.{field} = {section[field]} must be above 0")


def _within(section: Any, name: str, field: str, low: float, high: float) -> None:
    if not low <= section[field] <= high:
        raise ValueError(f"{name}.{field} = {section[field]} must lie between {low:g} and {high:g}")


def _check_window(sample: Any) -> None:
    stop = sample.window_start + sample.window_size
    if sample.window_start < 0 or stop > sample.steps - 1:
        raise ValueError(
            f"sample.window_start = {sample.window_start} and sample.window_size = {sample.window_size}: the window "
            f"covers steps {sample.window_start} to {stop - 1} of {sample.steps}, but the last step "
            f"({sample.steps - 1}) ends at sigma 0, where no noise is left to act on; the largest window_size "
            f"from there is {max(0, sample.steps - 1 - max(0, sample.window_start))}"
        )
    if not 0 <= sample.branch_from < sample.window_size:
        raise ValueError(
            f"sample.branch_from = {sample.branch_from}: the first state to be completed must be one of the window's, "
            f"0 to {sample.window_size - 1} (window_size = {sample.window_size})"
        )


def _check_noise(sample: Any) -> None:
    if sample.noise_level <= 0:
        raise ValueError(
            f"sample.noise_level = {sample.noise_level}: a policy needs noise above 0; published: 0.7"
        )
    if sample.kind == "cps" and sample.noise_level > 1:
        raise ValueError(
            f"sample.noise_level = {sample.noise_level}: cps turns by noise_level x 90 degrees; at most 1"
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
