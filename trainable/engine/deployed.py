"""What a student costs where it is used: its parameters, and the time that it takes for a picture.

The layers are those of the weights that a trial keeps, so projectors are folded where they can be; the weights
themselves do not matter here, and are fresh ones.
"""

from __future__ import annotations

import time
from statistics import median

import torch

from trainable import records
from trainable.config import TrialConfig
from trainable.networks.build import Pictures, build_student

WARM_UP, REPETITIONS = 10, 50
"""Forward passes before the first that counts, and those that count."""


def deployment(
    config: TrialConfig, pictures: Pictures, device: torch.device, *, timed: bool
) -> dict[str, float]:
    """Metrics of the student as it is used; the latency only if it is to be `timed`."""
    found = {records.STUDENT_PARAMETERS: float(parameters_in_use(config, pictures))}
    if timed:
        found[records.STUDENT_LATENCY] = latency_ms(config, pictures, device)
    return found


def parameters_in_use(config: TrialConfig, pictures: Pictures) -> int:
    """Parameters of the student as it is used; no weights are made."""
    with torch.device("meta"):
        student = build_student(config, pictures, for_inference=True)
    return sum(parameter.numel() for parameter in student.parameters())


def latency_ms(config: TrialConfig, pictures: Pictures, device: torch.device) -> float:
    """Median milliseconds of a forward pass of one picture that lies on the device, in eval mode.

    In the precision of validation (fp32, or TF32 where that is the process's), channels last, with the process's
    threads; on a GPU until it has ended. The global generator of random numbers stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        student = build_student(config, pictures, for_inference=True).eval()
    student.to(device).to(memory_format=torch.channels_last)
    shape = (1, pictures.channels, *pictures.image_size)
    picture = torch.zeros(shape, device=device).to(memory_format=torch.channels_last)
    taken: list[float] = []
    with torch.inference_mode():
        for _ in range(WARM_UP + REPETITIONS):
            started = time.perf_counter()
            student(picture)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - started)
    return 1000 * median(taken[WARM_UP:])
