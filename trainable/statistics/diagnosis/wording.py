"""How findings write numbers, epochs, stages and choices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trainable.plan import Stage


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def rounded(value: float) -> str:
    """One significant digit: a number to try."""
    return f"{float(f'{value:.1g}'):g}"


def percent(share: float) -> str:
    """A share in [0, 1], in per cent."""
    return f"{100 * share:.3g} %"


def in_epochs(epochs: Iterable[int]) -> str:
    """`epoch 3`, or `epochs 1–4, 7`."""
    spans: list[list[int]] = []
    for epoch in sorted(set(epochs)):
        if spans and epoch == spans[-1][1] + 1:
            spans[-1][1] = epoch
        else:
            spans.append([epoch, epoch])
    parts = [f"{a}" if a == b else f"{a}–{b}" for a, b in spans]
    alone = len(spans) == 1 and spans[0][0] == spans[0][1]
    return f"{'epoch' if alone else 'epochs'} {', '.join(parts)}"


def in_stage(stage: Stage, stages: Sequence[Stage]) -> str:
    """`stage 2 of 3 (epochs 5–8)`, or `the trial` where there is one stage."""
    if len(stages) == 1:
        return "the trial"
    epochs = in_epochs(range(stage.first_epoch, stage.last_epoch + 1))
    return f"stage {stage.number} of {len(stages)} ({epochs})"


def either(remedies: Sequence[str]) -> str:
    """Several things to do, one of which may be enough."""
    return ", or ".join(remedies)
