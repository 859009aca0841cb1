"""Rules about the networks, the method and its stages."""

from __future__ import annotations

from collections.abc import Iterator

from trainable.config import TrialConfig
from trainable.errors import Problem
from trainable.methods import METHODS, MethodName, readers
from trainable.plan import Decomposition, largest_n
from trainable.rules.rule import Rule


def _teacher_is_named(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    if config.teacher is None and METHODS[config.distill.method].teacher:
        yield Problem(
            "teacher",
            f"distill.method {config.distill.method} needs a teacher",
            "name teacher.model, with teacher.checkpoint or teacher.train",
        )


def _teacher_has_weights(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    teacher = config.teacher
    if teacher is None or (teacher.checkpoint is None) != (teacher.train is None):
        return
    both = teacher.checkpoint is not None
    yield Problem(
        "teacher",
        "must have exactly one of checkpoint and train",
        "remove one" if both else "give a file to load, or epochs to train for",
        "both" if both else "neither",
    )


_DRAWN = ("resized_crop", "rand_augment", "erase", "mixup", "cutmix")
"""Augmentations that hardly ever make the same picture twice."""


def _cached_teacher_says_the_same(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    traits, augment = METHODS[config.distill.method], config.data.augment
    if config.teacher is None or not config.teacher.cache or not traits.teacher:
        return
    remedy = "remove it, or set teacher.cache to false"
    if traits.slope:
        rule = f"{config.distill.method} asks for slopes along directions drawn anew each time"
        yield Problem("teacher.cache", rule, "set it to false, or choose another method", "true")
    for name in _DRAWN:
        if (value := getattr(augment, name)) not in (None, 0.0):
            rule = (
                "makes other pictures in each epoch, and teacher.cache keeps what was said of one"
            )
            yield Problem(f"data.augment.{name}", rule, remedy, str(value))


def _alpha_is_that_of_the_method(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    method, alpha = config.distill.method, config.distill.alpha
    yield from _weight_problems("alpha", alpha, method, "a number from 0 to 1, e.g. 0.5")


def _lam_is_that_of_the_method(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    method, lam = config.distill.method, config.distill.lam
    yield from _weight_problems("lam", lam, method, "a number >= 0, e.g. 1.0")


def _weight_problems(
    key: str, value: float | None, method: MethodName, example: str
) -> Iterator[Problem]:
    traits = METHODS[method]
    if key in traits.needs and value is None:
        yield Problem(
            f"distill.{key}", f"{method} needs it: {traits.loss}", f"give {example}", "nothing"
        )
    elif traits.teacher and key not in traits.weights and value is not None:
        remedy = "remove it, or set distill.method to one of them"
        yield Problem(f"distill.{key}", _belongs(key, method), remedy, str(value))


def _belongs(key: str, method: MethodName) -> str:
    *others, last = readers(key)
    return f"belongs to {', '.join(others)} and {last}, not to {method}"


def _feature_weights_have_features(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    distill = config.distill
    if distill.feature_weights is not None and distill.method not in readers("feature_weights"):
        rule = _belongs("feature_weights", distill.method)
        remedy = "remove it, or set distill.method to one of them"
        yield Problem("distill.feature_weights", rule, remedy)
    elif distill.feature_weights is not None and not any(distill.feature_weights.values()):
        rule, remedy = (
            "must weigh a cut above 0",
            "raise a weight, or set distill.method to kd or none",
        )
        yield Problem("distill.feature_weights", rule, remedy, str(distill.feature_weights))


def _stablekd_has_one_weight(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    distill = config.distill
    if distill.method == "stablekd" and (distill.alpha is None) == (distill.lam is None):
        both = distill.alpha is not None
        yield Problem(
            "distill",
            "stablekd needs exactly one of lam (CE + λ·T²·KL) and alpha ((1 − α)·CE + α·T²·KL)",
            "remove one" if both else "set one, e.g. lam: 1.0",
            "both" if both else "neither",
        )


def _decomposition_is_possible(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    path, text = "distill.decomposition", config.distill.decomposition
    if config.distill.method != "stablekd":
        return
    if text is None:
        yield Problem(path, "stablekd needs it", "write k/n, e.g. 5/2", "nothing")
        return
    part = Decomposition.parse(text)
    if part.k < 1:
        yield Problem(path, "k >= 1 must hold", "k = 1 is one group, which is vanilla KD", text)
    elif part.n > (largest := largest_n(part.k)):
        rule = f"n <= {largest} must hold for k = {part.k}, since ⌈log₂ k⌉ recompositions leave one group"
        yield Problem(path, rule, f"write {part.k}/{largest} or a smaller n", text)


def _groups_have_blocks(config: TrialConfig, blocks: int | None) -> Iterator[Problem]:
    text = config.distill.decomposition
    if config.distill.method != "stablekd" or text is None or blocks is None:
        return
    if Decomposition.parse(text).k > blocks:
        rule = (
            f"k <= {blocks} must hold for {config.student.model}, which is cut into {blocks} blocks"
        )
        remedy = "choose a smaller k, or cut the networks at more places (student.cuts)"
        yield Problem("distill.decomposition", rule, remedy, text)


def _stages_have_epochs(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    distill, epochs, path = config.distill, config.train.epochs, "distill.stage_epochs"
    if distill.method != "stablekd" or distill.decomposition is None:
        return
    part, given = Decomposition.parse(distill.decomposition), distill.stage_epochs
    if part.k < 1 or part.n > largest_n(part.k):
        return  # no stages to speak of
    if given is None and epochs <= part.n:
        rule = f"must be >= {part.n + 1}, one for each stage of {part}"
        yield Problem("train.epochs", rule, "train longer, or recompose less often", str(epochs))
    elif given is not None and len(given) != part.n + 1:
        rule = f"must have {part.n + 1} number(s), one for each stage of {part}"
        remedy = "give each stage its epochs, choose a k/n with as many stages, or remove it"
        yield Problem(path, rule, remedy, str(list(given)))
    elif given is not None and sum(given) != epochs:
        rule, got = f"must add up to {epochs}, which is train.epochs", f"{list(given)}"
        yield Problem(path, rule, "change one of the two, or remove it", f"{got} = {sum(given)}")


def _stages_are_told_once(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    distill = config.distill
    if distill.stage_split is not None and distill.stage_epochs is not None:
        rule = "says what distill.stage_epochs says as well"
        yield Problem(
            "distill.stage_split", rule, "remove one of the two", f"{distill.stage_split:g}"
        )


def _projectors_have_a_teacher(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    projectors = config.student.projectors
    if projectors != "none" and config.teacher is None:
        rule = "needs a teacher, whose widths they lead to"
        remedy = "name teacher.model, or remove it"
        yield Problem("student.projectors", rule, remedy, repr(projectors))


def _margin_has_its_head(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    heads = {"student": config.student.head}
    if config.teacher is not None:
        heads["teacher"] = config.teacher.head
    for network, head in heads.items():
        for name, value in (("margin", head.margin), ("scale", head.scale)):
            if head.name != "am_softmax" and value is not None:
                rule = f"belongs to am_softmax, not to {head.name}"
                remedy = f"remove it, or set {network}.head.name to am_softmax"
                yield Problem(f"{network}.head.{name}", rule, remedy, f"{value:g}")


def _mixed_labels_can_be_learnt(config: TrialConfig, _: int | None) -> Iterator[Problem]:
    augment, teacher = config.data.augment, config.teacher
    networks = {"student": config.student.head}
    if teacher is not None and teacher.train is not None:
        networks["teacher"] = teacher.head
    for name, alpha in (("mixup", augment.mixup), ("cutmix", augment.cutmix)):
        if alpha is None:
            continue
        path, rule = f"data.augment.{name}", "gives a picture the labels of two,"
        if METHODS[config.distill.method].one_class:
            need = f"{rule} and {config.distill.method} needs one"
            yield Problem(path, need, "remove it, or choose another method", f"{alpha:g}")
        for network, head in networks.items():
            if head.name == "am_softmax":
                need = f"{rule} and the margin of {network}.head needs one"
                remedy = f"remove it, or set {network}.head.name to linear"
                yield Problem(path, need, remedy, f"{alpha:g}")


_METHOD = "distill.method"
_DECOMPOSITION = "distill.decomposition"
_HEADS = ("student.head.name", "teacher", "teacher.head.name", "teacher.train")
_MARGINS = tuple(
    f"{network}.head.{key}"
    for network in ("student", "teacher")
    for key in ("name", "margin", "scale")
)

RULES: tuple[Rule, ...] = (
    Rule((_METHOD, "teacher"), _teacher_is_named),
    Rule(("teacher", "teacher.checkpoint", "teacher.train"), _teacher_has_weights),
    Rule(
        (_METHOD, "teacher", "teacher.cache", *(f"data.augment.{name}" for name in _DRAWN)),
        _cached_teacher_says_the_same,
    ),
    Rule((_METHOD, "distill.alpha"), _alpha_is_that_of_the_method),
    Rule((_METHOD, "distill.lam"), _lam_is_that_of_the_method),
    Rule((_METHOD, "distill.feature_weights"), _feature_weights_have_features),
    Rule((_METHOD, "distill.alpha", "distill.lam"), _stablekd_has_one_weight),
    Rule((_METHOD, _DECOMPOSITION), _decomposition_is_possible),
    Rule((_METHOD, _DECOMPOSITION, "student.model", "student.cuts"), _groups_have_blocks),
    Rule(
        (_METHOD, _DECOMPOSITION, "distill.stage_epochs", "train.epochs"),
        _stages_have_epochs,
    ),
    Rule(("distill.stage_epochs", "distill.stage_split"), _stages_are_told_once),
    Rule(("teacher", "student.projectors"), _projectors_have_a_teacher),
    Rule(("teacher", *_MARGINS), _margin_has_its_head),
    Rule(
        (_METHOD, "data.augment.mixup", "data.augment.cutmix", *_HEADS), _mixed_labels_can_be_learnt
    ),
)
