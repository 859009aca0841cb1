"""Rules about numbers that are not finite, and the loss scale that they bring down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from trainable import records
from trainable.records import EpochRecord
from trainable.statistics.diagnosis.history import History, Told
from trainable.statistics.diagnosis.wording import either, in_epochs, number

COLLAPSED = 16.0
"""Loss scale over its floor at which five more overflows in a row end the trial; fp16 trains at 2⁸ and more."""
_BEFORE_THE_SCALE = ("input", "label", "ce", "kl", "feature", "loss", "batchnorm")
"""Places of `records.skipped_at` that the loss scale does not reach: all but the gradients of blocks."""


class _Skips(NamedTuple):
    epoch: int
    place: str
    """Empty where it is not known."""
    updates: float


def non_finite(history: History) -> Told | None:
    """Updates were skipped for something else than the loss scale's own search."""
    skips = [skip for record in history.records for skip in _unexplained(history, record)]
    if not skips:
        return None
    first = max((s for s in skips if s.epoch == skips[0].epoch), key=lambda skip: skip.updates)
    by_place: dict[str, float] = {}
    for skip in skips:
        by_place[skip.place] = by_place.get(skip.place, 0.0) + skip.updates
    counts = ", ".join(f"{place} {number(n)}×" for place, n in by_place.items() if place)
    where = f", first in {first.place}" if first.place else ""
    return Told(
        f"Updates were skipped because something in them was not finite{where}.",
        f"{number(sum(by_place.values()))} update(s) in {in_epochs(skip.epoch for skip in skips)}"
        + (f"; first not finite: {counts}" if counts else ""),
        _make_finite(history, first.place),
    )


def scale_collapse(history: History) -> Told | None:
    """The loss scale of fp16 falls towards its floor: it is not the scale that overflows."""
    train, scales = history.config.train, history.series(records.AMP_SCALE)
    low = COLLAPSED * train.loss_scale.floor
    if train.precision != "fp16" or not scales or train.loss_scale.initial <= low:
        return None
    epoch, scale = scales[-1]
    if scale > low:
        return None
    return Told(
        "The loss scale collapsed: something overflows at any scale.",
        f"amp/scale was {number(scale)} in epoch {epoch}, from {number(train.loss_scale.initial)} at "
        f"first and with a floor of {number(train.loss_scale.floor)}",
        either(["use train.precision: bf16", *_calm(history)]),
    )


def _unexplained(history: History, record: EpochRecord) -> Iterator[_Skips]:
    """Under fp16 gradients may overflow: so the scaler finds its scale, and tries a larger one at times."""
    is_scaled = history.config.train.precision == "fp16"
    known = 0.0
    for place in history.suffixes(records.AMP_SKIPPED):
        updates = record.metrics.get(records.skipped_at(place), 0.0)
        known += updates
        if updates > 0 and (place in _BEFORE_THE_SCALE or not is_scaled):
            yield _Skips(record.epoch, place, updates)
    total = record.metrics.get(records.AMP_SKIPPED, 0.0)
    if total > 0 and known <= 0 and not is_scaled:
        yield _Skips(record.epoch, "", total)


def _make_finite(history: History, place: str) -> str:
    if place in ("input", "label"):
        return "check the pictures, data.mean and data.std"
    remedies, head = _calm(history), history.config.student.head
    if place == "ce" and head.scale is not None:
        remedies.append(f"lower student.head.scale (now {number(head.scale)})")
    if history.config.train.precision == "fp16":
        remedies.append("use train.precision: bf16")
    return either(remedies)


def _calm(history: History) -> list[str]:
    remedies = [f"lower optim.lr (now {number(history.config.optim.lr)})"]
    if history.config.train.clip is None:
        remedies.append("set train.clip")
    return remedies
