"""Rules about how the pictures reach the step."""

from __future__ import annotations

from trainable import records
from trainable.statistics.diagnosis.history import History, Told
from trainable.statistics.diagnosis.wording import either, in_epochs, percent

WAITING = 0.5
"""Share of the training time from which more of it is spent on waiting than on training."""
AT_LEAST = 2
"""Epochs: the first alone opens files and starts processes."""


def data_bound(history: History) -> Told | None:
    """Most epochs are spent on waiting for pictures."""
    waits = history.series(records.TRAIN_DATA_WAIT)
    waiting = [point for point in waits if point.value > WAITING]
    if len(waits) < AT_LEAST or 2 * len(waiting) <= len(waits):
        return None
    worst = max(point.value for point in waiting)
    return Told(
        "The step waits for pictures for more than half of the time.",
        f"train/data_wait was up to {percent(worst)} in {in_epochs(p.epoch for p in waiting)}",
        _feed(history),
    )


def _feed(history: History) -> str:
    data = history.config.data
    remedies = [f"raise data.decode_workers (now {data.decode_workers})"]
    if data.augment.changes_single_pictures:
        remedies.append(
            "leave resized_crop, rand_augment and erase out of data.augment, so that pictures are "
            "decoded once and kept"
        )
    elif data.loader == "streamed":
        remedies.append("set data.loader: auto, so that pictures are decoded once and kept")
    else:
        budget = f"{data.cache_budget_gib:g}"
        remedies.append(f"raise data.cache_budget_gib (now {budget}), so that pictures are kept")
    return either(remedies)
