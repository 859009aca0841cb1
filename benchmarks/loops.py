"""A distillation step as one writes it with torch alone, and what all forms of a step train."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp import GradScaler, autocast
from torch.nn import functional as F

from trainable.data.augment import Normalizer, Viewer, Views, augmentation_key
from trainable.data.loaders import Batch
from trainable.networks.zoo import Pictures

CLASSES, CLIP, ALPHA, LR = 100, 5.0, 0.5, 0.01
SGD = {"lr": LR, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
PICTURES = Pictures(CLASSES, 3, (32, 32))
AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}
Update = Callable[[], None]


class Pixels:
    """Stands for the trial's data: pictures of noise on the device, changed as the product does it."""

    def __init__(self, batch: int, device: torch.device) -> None:
        images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, device=device)
        labels = torch.randint(0, CLASSES, (batch,), device=device)
        self.batch = Batch(images, labels, torch.arange(batch, device=device), first=0)
        views = Views(crop=4, flip=True)
        self._drawn = views.drawn(self.batch.indices, augmentation_key(0, 1))
        self._show = Viewer(views, (32, 32), device)
        self._normalize = Normalizer([0.5] * 3, [0.25] * 3, device)

    def augmented(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """As Feed has it."""
        images = self._show(batch.images, self._drawn[batch.indices])
        return self._normalize(images).contiguous(memory_format=torch.channels_last), batch.labels


@dataclass(frozen=True)
class Case:
    """What all forms train."""

    device: torch.device
    precision: str
    student: nn.Module
    teacher: nn.Module
    cuts: tuple[str, ...]
    pixels: Pixels


Form = Callable[[Case], Update]


def plain(case: Case, *, passes: int, channels_last: bool) -> Update:
    """The loop of torch alone; the student is run in so many passes for the two terms, with 0 for its CE alone."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    student = copy.deepcopy(case.student).to(case.device).to(memory_format=layout).train()
    teacher = copy.deepcopy(case.teacher).to(case.device).to(memory_format=layout).eval()
    optimizer = torch.optim.SGD(student.parameters(), **SGD)
    kind, half = case.device.type, AUTOCAST.get(case.precision)
    scaler = GradScaler(kind, enabled=case.precision == "fp16")

    def update() -> None:
        images, labels = case.pixels.augmented(case.pixels.batch)
        images = images.contiguous(memory_format=layout)
        with autocast(kind, half, enabled=half is not None):
            logits = student(images)
            again = student(images) if passes == 2 else logits
        loss = F.cross_entropy(logits.float(), labels)
        if passes:
            with torch.no_grad(), autocast(kind, half, enabled=half is not None):
                theirs = teacher(images)
            log_p, log_q = (F.log_softmax(x.float(), 1) for x in (again, theirs))
            kl = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
            loss = (1 - ALPHA) * loss + ALPHA * kl
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()

    return update


def teacher_alone(case: Case) -> Update:
    """The teacher's forward in channels_last, of pictures that are there."""
    teacher = copy.deepcopy(case.teacher).to(case.device).to(memory_format=torch.channels_last)
    teacher.eval()
    images, _ = case.pixels.augmented(case.pixels.batch)
    kind, half = case.device.type, AUTOCAST.get(case.precision)

    def update() -> None:
        with torch.no_grad(), autocast(kind, half, enabled=half is not None):
            teacher(images)

    return update
