"""Screening: a shorter training, or one on fewer pictures, that says which trials are trained at all.

Its learning rate has a whole schedule of its own, so that nothing of it can be gone on with: what is trained
further begins again. (`study.halving`'s pieces are the other kind of cheap look, which is gone on with.)
"""

from __future__ import annotations

from study.schema import StudyConfig


def screening_search(config: StudyConfig) -> StudyConfig:
    """The study as its trials are screened; only of a config that screens them."""
    screening = config.study.screening
    if screening is None:
        raise ValueError("the study screens no trials")
    subset = config.data.subset * screening.subset
    epochs = config.train.epochs if screening.epochs is None else screening.epochs
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"subset": subset}),
            "train": config.train.model_copy(update={"epochs": epochs}),
        }
    )
