"""Rules about the pictures."""

from __future__ import annotations

from collections.abc import Iterator

from trainable.config import TrialConfig
from trainable.errors import Problem
from trainable.rules.rule import Rule

_SINGLE = ("resized_crop", "rand_augment", "erase")
"""Augmentations of one picture at a time."""


def _root_where_needed(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    data = config.data
    if data.source == "digits" and data.root is not None:
        yield Problem("data.root", "digits needs no folder", "remove it", repr(data.root))
    elif data.source != "digits" and data.root is None:
        rule = f"{data.source} needs a folder"
        yield Problem("data.root", rule, "name where its files are", "nothing")


def _moments_fit_channels(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    data = config.data
    for name, values in (("mean", data.mean), ("std", data.std)):
        if values is not None and len(values) != data.channels:
            rule = f"must have {data.channels} value(s), one a channel"
            remedy = "give one value for each of data.channels"
            yield Problem(f"data.{name}", rule, remedy, str(list(values)))


def _moments_are_of_pixels(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    """A deviation is positive, as its field says; 1 is what leaves pixels as they are."""
    data, remedy = (
        config.data,
        "divide it by 255 if it is of pixels up to that, or remove it to measure it",
    )
    if data.mean is not None and not all(0 <= value <= 1 for value in data.mean):
        rule = "must be finite and in [0, 1], as pixels are"
        yield Problem("data.mean", rule, remedy, str(list(data.mean)))
    if data.std is not None and not all(value <= 1 for value in data.std):
        rule = "must be <= 1, as pixels are in [0, 1]"
        yield Problem("data.std", rule, remedy, str(list(data.std)))


def _resize_leaves_the_centre(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    data = config.data
    if data.resize is None:
        return
    if data.image_size is None:
        remedy = "give data.image_size the side to crop, or remove it"
        yield Problem("data.resize", "needs data.image_size", remedy, str(data.resize))
    elif data.resize < data.image_size:
        rule = f"must be >= data.image_size, which is {data.image_size}"
        yield Problem("data.resize", rule, "raise it, or lower data.image_size", str(data.resize))


def _crop_areas_are_in_order(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    areas = config.data.augment.resized_crop
    if areas is not None and areas[0] > areas[1]:
        rule, remedy = "must be the smallest and the largest share", "exchange them"
        yield Problem("data.augment.resized_crop", rule, remedy, str(list(areas)))


def _resident_pictures_change_together(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    augment = config.data.augment
    used = [name for name in _SINGLE if getattr(augment, name) not in (None, 0.0)]
    if used and config.data.loader == "resident":
        rule = f"data.augment.{used[0]} changes pictures one by one as they are decoded"
        yield Problem("data.loader", rule, "set it to auto or streamed", "'resident'")


RULES: tuple[Rule, ...] = (
    Rule(("data.source", "data.root"), _root_where_needed),
    Rule(("data.channels", "data.mean", "data.std"), _moments_fit_channels),
    Rule(("data.mean", "data.std"), _moments_are_of_pixels),
    Rule(("data.image_size", "data.resize"), _resize_leaves_the_centre),
    Rule(("data.augment.resized_crop",), _crop_areas_are_in_order),
    Rule(
        ("data.loader", *(f"data.augment.{name}" for name in _SINGLE)),
        _resident_pictures_change_together,
    ),
)
