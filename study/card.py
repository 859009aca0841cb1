"""The model card of an exported student: what the ledger, the config and the written files tell, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from study.choice import Choice
from study.replicates import baselines_of, test_accuracies
from study.report.front import value_of
from study.report.text import percent, size, value_text
from study.report.trust import BASELINES
from study.results import TrialRow
from study.yaml import dump_yaml
from trainable import tasks
from trainable.config import TeacherConfig

_SHOWN_CLASSES = 100
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_SECTIONS = ("data", "teacher", "student", "distill", "optim", "train")


def model_card(choice: Choice, facts: tasks.Exported, sizes: Mapping[str, int]) -> str:
    """Markdown; `sizes` are those of the written files, in bytes. What is not known is left out."""
    config, row, teacher = choice.trial, choice.row, choice.teacher
    taught = "trained without a teacher"
    if teacher is not None:
        taught = f"distilled from `{teacher.model}` with `{config.distill.method}`"
    parts = [
        f"# {choice.results.name}, {row.label}",
        f"A `{config.student.model}` {taught} on `{config.data.source}`, for {len(facts.classes)} classes. It takes "
        f"uint8 pictures of {_shape(facts)} and gives one logit a class.",
        "## How good it is",
        *_accuracies(choice, facts),
        "## What these numbers do not say",
        _list(_unsaid(choice, facts)),
        "## How it was trained",
        *_training(choice),
        "## Data",
        *_data(choice, facts),
        "## Files",
        *_files(facts, sizes),
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracies(choice: Choice, facts: tasks.Exported) -> Iterator[str]:
    row = choice.row
    lines = [("**this student**", _share(row.value), _share(row.test_accuracy))]
    if row.role == "replicate":
        searched = choice.searched
        lines.append((f"{searched.label}, which it repeats", _share(searched.value), ""))
    if len(replicates := _replicates(choice)) > 1:
        tested = _spread(one.test_accuracy for one in replicates)
        lines.append((f"its hyperparameters over {len(replicates)} seeds, mean ± sd", "", tested))
    lines += _compared(choice)
    yield _table(("accuracy", "validation", "test"), lines)
    yield " ".join(_measured(choice, facts))
    if row.val_eer is not None or row.test_eer is not None:
        eers = [("this student", _share(row.val_eer), _share(row.test_eer))]
        yield _table(("equal error rate of unseen classes", "validation", "test"), eers)


def _compared(choice: Choice) -> Iterator[tuple[str, str, str]]:
    """The baselines, over seeds where they have replicates, and its teacher."""
    results, teacher = choice.results, choice.teacher
    named = [(BASELINES[row.of], row) for row in baselines_of(results)]
    if teacher is not None:
        named += [(f"the teacher, {_told(teacher)}", row) for row in results.of("teacher")]
    for name, row in named:
        if row.state == "complete":
            yield name, _share(row.value), _spread(test_accuracies(results, row))


def _measured(choice: Choice, facts: tasks.Exported) -> Iterator[str]:
    row = choice.row
    if row.role == "replicate":
        yield (
            f"It has the hyperparameters of {choice.searched.label}, which by its validation accuracy is number "
            f"{_rank(choice)} of {len(choice.results.of('trial'))}, and another seed. {_trained_on(choice)}. It is "
            "its last epoch's student: nothing was selected by its own accuracy."
        )
    elif row.value is not None:
        epoch = f", which was epoch {row.best_epoch} of {row.epochs}" if row.best_epoch else ""
        yield (
            f"Validation accuracy is that of the trial's best epoch{epoch}, on {facts.splits['val']:,} pictures held "
            f"out of training. By it the trial is number {_rank(choice)} of {len(choice.results.of('trial'))}."
        )
    if row.test_accuracy is None:
        yield "The test split was not read for this trial."
    else:
        yield (
            f"The test split, {facts.splits['test']:,} pictures, was read once, at the study's end, when its winner "
            "was chosen."
        )
    if (latency := row.costs.get("latency")) is not None:
        yield (
            f"It took {value_of('latency', latency)} ms for one picture, as the median of forward passes on the device "
            "that it was trained on."
        )


def _trained_on(choice: Choice) -> str:
    share = choice.trial.data.subset
    if share < 1:
        return f"No picture was held out, and it was trained on {100 * share:.3g} % of each class's"
    return "It was trained on all training pictures"


def _unsaid(choice: Choice, facts: tasks.Exported) -> Iterator[str]:
    if choice.row.value is not None:
        yield (
            "The validation accuracy is the best of several epochs and trials, picked by that very number: on new "
            "pictures expect less. The test split had no part in any choice."
        )
    if len(_replicates(choice)) < 2:
        yield "All are of one seed each: another gives other numbers, and small differences can be within noise."
    elsewhere = " on other devices" if "latency" in choice.row.costs else ""
    yield (
        "Validation and test pictures come from the same source as those of training: how it does on others, how "
        f"well its probabilities are calibrated and how fast it runs{elsewhere} were not measured."
    )
    yield (
        f"The written files were compared with the trained student on {facts.compared} pictures, on a CPU in fp32 "
        "alone: not on GPUs, not in half precision."
    )


def _training(choice: Choice) -> Iterator[str]:
    searched = [(f"`{path}`", value_text(value)) for path, value in choice.row.params.items()]
    if searched:
        yield _table(("searched hyperparameter", "value"), searched)
    yield (
        f"Seed {choice.trial.train.seed}; the search's own is {choice.config.study.seed}. All settings that are not "
        "kd-study's defaults, folders left out:"
    )
    yield f"```yaml\n{dump_yaml(_settings(choice)).strip()}\n```"


def _settings(choice: Choice) -> dict[str, Any]:
    """A card goes to others, whom the places of files tell nothing, or too much."""
    config, teacher = choice.trial, choice.teacher
    if teacher is not None and teacher.checkpoint is not None:
        teacher = teacher.model_copy(update={"checkpoint": Path(teacher.checkpoint).name})
    config = config.model_copy(update={"teacher": teacher})
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": None})})
    settings = config.model_dump(
        mode="json", include=set(_SECTIONS), exclude_defaults=True, exclude_none=True
    )
    return {section: settings[section] for section in _SECTIONS if settings.get(section)}


def _data(choice: Choice, facts: tasks.Exported) -> Iterator[str]:
    counts = [(_SPLITS[split], f"{count:,}") for split, count in facts.splits.items() if count]
    yield _table(("split", "pictures"), counts)
    shown = facts.preprocessing
    resized = "taken as they are"
    if shown.resize is not None:
        resized = f"resized to {shown.resize} pixels (shorter side, bilinear), the centre cropped"
    numbers = (", ".join(f"{value:.4f}" for value in values) for values in (shown.mean, shown.std))
    means, deviations = numbers
    yield (
        f"Pictures are {resized}, {_shape(facts)}, and divided by {shown.pixel_range[1]}; then "
        f"their mean {means} is subtracted and they are divided by their deviation {deviations}, a channel each. The "
        "program and the ONNX model do what comes after the cropping themselves."
    )
    classes = ", ".join(facts.classes[:_SHOWN_CLASSES])
    more = len(facts.classes) - _SHOWN_CLASSES
    yield f"Classes: {classes}" + (f", and {more} more in `config.json`." if more > 0 else ".")


def _files(facts: tasks.Exported, sizes: Mapping[str, int]) -> Iterator[str]:
    forms = {tasks.FILES[form]: found for form, found in facts.differences.items()}
    lines = [
        (f"`{name}`", size(count), f"{forms[name]:.2g}" if name in forms else "")
        for name, count in sizes.items()
    ]
    yield _table(("file", "size", "largest difference of a logit"), lines)
    yield (
        f"{facts.parameters:,} parameters, {facts.flops:,} floating-point operations a picture (a multiply-add is "
        f"two){_folded(facts)}. Differences are from the trained student on {facts.compared} pictures of the "
        f"{_SPLITS[facts.compared_split]} split, where its logits reach {facts.largest_logit:.3g}; more than "
        f"{tasks.AGREEMENT:g} of that is refused."
    )


def _folded(facts: tasks.Exported) -> str:
    if not facts.folded:
        return ""
    return f"; {facts.folded} of {facts.norms} BatchNorm layers are folded into convolutions"


def _replicates(choice: Choice) -> list[TrialRow]:
    """Of this trial, complete."""
    rows = choice.results.of("replicate", choice.searched.label)
    return [row for row in rows if row.state == "complete"]


def _rank(choice: Choice) -> int:
    """By validation accuracy, from 1, among the trials that ran to their end; equals share theirs."""
    complete = [row for row in choice.results.of("trial") if row.state == "complete"]
    return 1 + sum((row.value or 0.0) > (choice.searched.value or 0.0) for row in complete)


def _told(teacher: TeacherConfig) -> str:
    if teacher.train is None:
        return f"`{teacher.model}` from a checkpoint"
    return f"`{teacher.model}` trained for {teacher.train.epochs} epochs"


def _spread(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return _share(known[0]) if known else ""
    return f"{percent(mean(known))} ± {percent(stdev(known))} %"


def _share(value: float | None) -> str:
    return "" if value is None else f"{percent(value)} %"


def _shape(facts: tasks.Exported) -> str:
    shown = facts.preprocessing
    return f"{shown.channels}×{shown.size[0]}×{shown.size[1]}"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _list(points: Iterable[str]) -> str:
    return "\n".join(f"- {point}" for point in points)
