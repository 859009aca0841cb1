"""A distillation step of other libraries, and the product's, on the same networks and pictures.

    python benchmarks/peers.py                           on a GPU, ResNet34 → ResNet18 in fp16, batches of 128 and 512
    python benchmarks/peers.py --device cpu              on CPUs, WRN-40-2 → WRN-16-2, nothing compiled

The update of benchmarks/step.py, as far as each library has it. `timm` is timm's LogitDistillationTask in the loop of
its train.py, with its own scaler and clipping, which reads the loss of every update: in the usual layout, with
--channels-last, which lays the student and the pictures so and not the teacher, and that compiled in the modes of
torch.compile which its task takes. `torchdistill` is its DistillationBox with KDLoss; it knows no GradScaler, and
goes without in fp16. Their losses are the product's, none of them looks at what is not finite or measures gradients.
Libraries that are not installed are left out: pip install timm torchdistill.

Times are medians over rounds in turns, ratios those of the rounds' pairs; `of_last` is to the last of the product's
forms. Written to benchmarks/results/peers-<device>.json.
"""

from __future__ import annotations

import copy
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import step
import torch
from loops import ALPHA, AUTOCAST, CLIP, SGD, Case, Form, Update
from step import FORMS
from torch import nn
from torch.amp import autocast

COMPILED = {
    "timm compiled": "default",
    "timm reduce-overhead": "reduce-overhead",
    "timm max-autotune": "max-autotune",
}
NORMALIZED = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
"""timm asks both networks for it, and changes the pictures for a teacher of another."""


def timm(case: Case, *, channels_last: bool = True, mode: str | None = None) -> Update:
    """timm's task in its loop, compiled in a mode of torch.compile; the loop is train.py's of timm 1.0.29."""
    from timm.task import DistillationTeacher, LogitDistillationTask
    from timm.utils import NativeScaler, dispatch_clip_grad

    layout = torch.channels_last if channels_last else torch.contiguous_format
    student, teacher = (
        copy.deepcopy(network).to(case.device) for network in (case.student, case.teacher)
    )
    student.to(memory_format=layout)
    student.pretrained_cfg = teacher.pretrained_cfg = NORMALIZED
    task = LogitDistillationTask(
        student,
        DistillationTeacher(teacher, device=case.device),
        nn.CrossEntropyLoss(),
        task_loss_weight=1 - ALPHA,
        device=case.device,
        verbose=False,
    ).train()
    if mode is not None:
        task.compile(mode=mode, dynamic=False)
    optimizer = torch.optim.SGD(student.parameters(), **SGD)
    scaler = NativeScaler(case.device.type) if case.precision == "fp16" else None
    kind, half = case.device.type, AUTOCAST.get(case.precision)

    def update() -> None:
        if mode is not None:
            torch.compiler.cudagraph_mark_step_begin()
        images, labels = case.pixels.augmented(case.pixels.batch)
        images = images.contiguous(memory_format=layout)
        with autocast(kind, half, enabled=half is not None):
            loss = task(images, labels)["loss"]
        if scaler is not None:
            scaler(loss, optimizer, clip_grad=CLIP, parameters=task.get_clip_parameters())
        else:
            loss.backward()
            dispatch_clip_grad(task.get_clip_parameters(), CLIP)
            optimizer.step()
        loss.item()
        optimizer.zero_grad()

    return update


def torchdistill(case: Case) -> Update:
    """torchdistill's box with its processes of an update."""
    from torchdistill.core.distillation import get_distillation_box

    student, teacher = (
        copy.deepcopy(network).to(case.device) for network in (case.student, case.teacher)
    )
    teacher.eval()
    kd = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
        "temperature": 1.0,
        "alpha": 1 - ALPHA,
    }
    term = {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}
    settings = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": dict(SGD), "max_grad_norm": CLIP},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": term}}},
    }
    box = get_distillation_box(teacher, student, {}, settings, case.device, None, False, 1)
    box.pre_epoch_process(epoch=0)
    kind, half = case.device.type, AUTOCAST.get(case.precision)

    def update() -> None:
        images, labels = case.pixels.augmented(case.pixels.batch)
        images = images.contiguous()
        with autocast(kind, half, enabled=half is not None):
            loss = box.forward_process(images, labels, None)
        box.post_forward_process(loss=loss)

    return update


PEERS: dict[str, Form] = {
    "torchdistill": torchdistill,
    "timm": partial(timm, channels_last=False),
    "timm channels_last": timm,
    **{name: partial(timm, mode=mode) for name, mode in COMPILED.items()},
}
OURS = list(FORMS)[list(FORMS).index("eager") :]


def forms() -> dict[str, Form]:
    """The plainest loop, the libraries that are here, and the product."""
    peers = {name: form for name, form in PEERS.items() if library_of(name) in libraries()}
    return {"two passes": FORMS["two passes"], **peers, **{name: FORMS[name] for name in OURS}}


def libraries() -> dict[str, str]:
    """Those that are installed, and their versions."""
    names = dict.fromkeys(library_of(name) for name in PEERS)
    return {name: version(name) for name in names if find_spec(name) is not None}


def library_of(form: str) -> str:
    """Its first word."""
    return form.split()[0]


def main() -> None:
    """Measure, print, write."""
    command, here = step.parser(__doc__), libraries()
    command.set_defaults(libraries=here)
    for name in PEERS:
        if library_of(name) not in here:
            print(f"{name} is left out: {library_of(name)} is not installed")
    # Each mode compiles both networks for each batch size: more than torch.compile expects of one piece of code.
    torch._dynamo.config.recompile_limit = 64
    step.run("peers", forms(), command, but_on_cpus=("graph", "compiled", *COMPILED))


if __name__ == "__main__":
    main()
