"""The loss terms, each a sum over the samples of a micro-batch.

Sums, not means: the step divides once by the samples of the whole update on all ranks, so that unequal
micro-batches and ranks weigh every sample alike. Inputs of any float type are computed in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from trainable import records
from trainable.compiled import compilable

LOSS = records.TRAIN_LOSS
CE = records.TRAIN_CE
KL = records.TRAIN_KL
FEATURE = records.TRAIN_FEATURE

Terms = dict[str, Tensor]
"""Scalar tensors by metric name; `LOSS` is the weighted sum that is minimised, the others come without α or λ."""


@compilable
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Σ over samples of −log softmax(logits)[label], in nats; (batch, classes), (batch,) → ().

    Labels that are distributions over classes, (batch, classes), give −Σ_c label_c·log softmax(logits)_c.
    """
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def kd_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Σ over samples of T²·KL(teacher ‖ student), in nats (Hinton et al. 2015, §2).

    Both (batch, classes) → (). T² keeps the gradient's size independent of T.
    """
    if temperature != 1:
        student, teacher = student.float() / temperature, teacher.float() / temperature
    return temperature**2 * _divergence(student, teacher)


@compilable
def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Without the temperature, for each of which it would be compiled anew."""
    log_student = F.log_softmax(student.float(), dim=1)
    log_teacher = F.log_softmax(teacher.float(), dim=1)
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True)


def _own_feature_error(student: Tensor, teacher: Tensor) -> Tensor:
    # The kernels need Triton, which is there where they are asked for.
    from trainable.distill import error_kernels

    if error_kernels.takes(student, teacher):
        return error_kernels.squared_error(student, teacher)
    return squared_error(student, teacher)


@partial(compilable, own=_own_feature_error)
def feature_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ over samples of the mean squared difference of a sample's features (StableKD, eq. 6 and 7).

    Both (batch, …) of equal shape → ().
    """
    return squared_error(student, teacher)


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """`feature_error`, for what is compiled as a whole."""
    per_sample = student[0].numel()
    return F.mse_loss(student.float(), teacher.float(), reduction="sum") / per_sample


def with_features(terms: Terms, errors: Sequence[Tensor], weight: float = 1.0) -> Terms:
    """`terms` and FEATURE = Σ errors, which enters LOSS with `weight`; 0 where there are no errors."""
    feature = torch.stack(list(errors)).sum() if errors else torch.zeros_like(terms[LOSS])
    return {**terms, LOSS: terms[LOSS] + weight * feature, FEATURE: feature}
