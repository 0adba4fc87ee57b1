"""How groups and images divide into updates, ranks and batches; what does not divide is refused."""

from __future__ import annotations

from collections.abc import Callable

from tp_grpo.settings.learning import SampleSettings, TrainSettings


def check_batches(
    sample: SampleSettings, train: TrainSettings, world_size: int, *, whole_group: str, rows: int
) -> None:
    """Raises ValueError with the numbers and the nearest that work.

    whole_group: what keeps a prompt's images on one rank, in words, with `rows` rows of a rollout
    call for a group; empty: nothing does.
    """
    groups, updates, batch = sample.groups_per_epoch, train.updates_per_epoch, sample.batch_size
    if groups % updates:
        raise ValueError(
            f"sample.groups_per_epoch = {groups} does not split into train.updates_per_epoch = "
            f"{updates} updates of whole groups; {_nearest(groups, lambda g: g % updates == 0)}"
        )
    if train.batch_size % batch:
        raise ValueError(
            f"train.batch_size = {train.batch_size}: a backward pass takes whole rollout batches "
            f"of sample.batch_size = {batch}; "
            f"{_nearest(train.batch_size, lambda b: b % batch == 0)}, or 0 for one"
        )
    if whole_group:
        _check_groups(sample, train, world_size, whole_group, rows)
    else:
        _check_images(sample, train, world_size)


def _check_groups(
    sample: SampleSettings, train: TrainSettings, world_size: int, whole_group: str, rows: int
) -> None:
    """A rank trains whole groups, of so many rows."""
    groups, updates, batch = sample.groups_per_epoch, train.updates_per_epoch, sample.batch_size
    unit = updates * world_size
    if groups % unit:
        raise ValueError(
            f"sample.groups_per_epoch = {groups}: {whole_group}, and {groups} in {updates} updates "
            f"do not split over {world_size} ranks; {_nearest(groups, lambda g: g % unit == 0)}"
        )
    share = groups // unit * rows

    def works(size: int) -> bool:
        return size <= share and share % size == 0 and size % rows == 0

    if not works(batch):
        what = "groups" if rows == 1 else f"images, {share // rows} whole groups,"
        raise ValueError(
            f"sample.batch_size = {batch}: a rank's {share} {what} of an update ({groups} groups, "
            f"{updates} updates, {world_size} ranks) do not split into batches of it; "
            f"{_nearest(batch, works)}"
        )


def _check_images(sample: SampleSettings, train: TrainSettings, world_size: int) -> None:
    groups, size, updates = sample.groups_per_epoch, sample.group_size, train.updates_per_epoch
    batch, images = sample.batch_size, groups * size
    share = images // updates // world_size
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


def _nearest(value: int, works: Callable[[int], bool]) -> str:
    below = next((v for v in range(value - 1, 0, -1) if works(v)), None)
    above = next((v for v in range(value + 1, 64 * value + 64) if works(v)), None)
    near = [str(v) for v in (below, above) if v is not None]
    if not near:
        return "no nearby value works"
    return f"the nearest that {'work are' if len(near) == 2 else 'works is'} {' and '.join(near)}"
