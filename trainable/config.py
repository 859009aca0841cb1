"""Everything that one trial depends on, frozen and validated.

A trial is a function of its `TrialConfig`: two equal configs on the same device and versions give
the same student. Rules about single fields are stated on the fields; rules that need two fields,
or the networks' blocks, are in `rules.problems`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Config(BaseModel):
    """Base of every config section: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ColumnsConfig(Config):
    """Names of the columns of a Parquet data set."""

    image: str = "img"
    """Column of the encoded picture: bytes, or a struct with a field `bytes`."""
    label: str = "fine_label"
    """Column of the class: an integer from 0, or a string."""


class AugmentConfig(Config):
    """Random changes of a training picture, drawn from (seed, epoch, sample)."""

    crop: Annotated[int, Field(ge=0)] = 0
    """Pixels of zero padding on each side before a random crop to the original size; 0 is off."""
    flip: bool = False
    """Mirror left to right with probability 1/2."""


class DataConfig(Config):
    """Which pictures, how they are split, and how they reach the device."""

    source: Literal["digits", "cifar10", "cifar100", "fashion_mnist", "parquet", "image_folder"]
    """Where the pictures come from."""
    root: str | None = None
    """Folder of the data set; every source but `digits` needs it."""
    download: bool = False
    """Let torchvision download `cifar10`, `cifar100` or `fashion_mnist` into `root`."""
    columns: ColumnsConfig = ColumnsConfig()
    """Column names, for `parquet` only."""
    classes: tuple[str, ...] | None = None
    """Class names in the order of their labels; None reads them from the data set."""
    channels: Literal[1, 3] = 3
    """Channels that the networks take; grey pictures are repeated, coloured ones are turned grey."""
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Resize the shorter side to this many pixels and crop the centre; None takes pictures as they are."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of each class's training pictures held out for validation; 0 means no validation and no search."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the training/validation split: the same for every trial and replicate of a study."""
    batch_size: PositiveInt = 128
    """Pictures an optimizer update, over all workers and micro-batches."""
    augment: AugmentConfig = AugmentConfig()
    mean: tuple[float, ...] | None = None
    """Per-channel mean of pixels in [0, 1], subtracted; None measures the training split."""
    std: tuple[PositiveFloat, ...] | None = None
    """Per-channel standard deviation of pixels in [0, 1], divided by; None measures the training split."""
    loader: Literal["auto", "resident", "streamed"] = "auto"
    """`resident` decodes once and keeps the pictures on the device, `streamed` decodes as it goes; `auto`
    is `resident` for sets within `cache_budget_gib`."""
    cache_budget_gib: PositiveFloat = 4.0
    """Largest decoded set, in GiB of uint8 pixels, that is decoded once and kept."""
    decode_workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode streamed pictures, for each worker; 0 decodes in the worker itself."""


class OptimConfig(Config):
    """The optimizer and its learning rate over time."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.1
    """Peak learning rate (of the first stage, where there are several)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD; AdamW's β₁."""
    nesterov: bool = True
    """Nesterov's momentum, for SGD."""
    weight_decay: NonNegativeFloat = 5e-4
    schedule: Literal["auto", "triangle", "onecycle"] = "auto"
    """`triangle`: one up and down a stage; `onecycle`: Smith and Topin's over all epochs; `auto`:
    `triangle` for stablekd, `onecycle` for the others."""
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of a cycle in which the learning rate rises."""
    peak_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Each stage's peak over the one before (`triangle`); 0.5 is the paper's triangular2."""


class TeacherTrainConfig(Config):
    """How the teacher is trained, where no checkpoint is given."""

    epochs: PositiveInt
    batch_size: PositiveInt = 128
    optim: OptimConfig = OptimConfig()
    seed: Annotated[int, Field(ge=0)] = 0


class TeacherConfig(Config):
    """The network that the student learns from."""

    model: str
    """A name that the zoo knows, e.g. `resnet34`."""
    checkpoint: str | None = None
    """A `.safetensors` file or a state dict saved by `torch.save`; loaded with weights only."""
    train: TeacherTrainConfig | None = None
    """Train the teacher as the study's first phase, once for each distinct config."""


class StudentConfig(Config):
    """The network that is trained."""

    model: str
    """A name that the zoo knows, e.g. `resnet18`."""
    cuts: tuple[str, ...] | None = None
    """Modules after which the networks are cut into blocks, in order; None takes the network's own."""


class DistillConfig(Config):
    """What the student learns from the teacher."""

    method: Literal["none", "kd", "kd_mse", "stablekd"] = "kd"
    alpha: Fraction | None = None
    """Weight of the distillation term: (1 − α)·CE + α·T²·KL."""
    lam: NonNegativeFloat | None = None
    """StableKD's λ (eq. 8): CE + λ·T²·KL, in place of `alpha`."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature T of both networks in the KL term."""
    decomposition: Annotated[str, Field(pattern=r"^\d+/\d+$")] | None = None
    """StableKD's k/n: k groups at first, n recompositions."""
    feature_weights: dict[str, NonNegativeFloat] | None = None
    """Weight of the feature MSE at each cut, for `kd_mse`; None weighs every cut 1."""


class BatchNormConfig(Config):
    """How BatchNorm is trained and watched."""

    sync: bool = False
    """Batch statistics over all workers (SyncBatchNorm); GPUs only."""
    batch_stats_accuracy: bool = True
    """Also validate with the statistics of the validation batches, and report how far the running ones drifted."""


class TrainConfig(Config):
    """The loop around the step."""

    epochs: PositiveInt = 20
    launcher: Literal["auto", "inline", "torch_trainer"] = "auto"
    """`inline` runs the loop in Tune's own process, `torch_trainer` under Ray Train; `auto` is `inline`
    for one worker."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast type of the forward pass; fp16 scales its loss (GradScaler)."""
    accumulate: PositiveInt = 1
    """Micro-batches an update."""
    clip: PositiveFloat | None = None
    """Largest global 2-norm of the gradient; None does not clip."""
    batchnorm: BatchNormConfig = BatchNormConfig()
    workers: PositiveInt = 1
    """Processes a trial, each with a share of the batch (DDP)."""
    deterministic: bool = False
    """Only deterministic algorithms on GPUs, at a cost in speed; CPUs always are."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial weights, the order of the pictures and their augmentation."""
    observe_every: PositiveInt = 10
    """Steps between two measurements of the distance that parameters travel."""


class ResourcesConfig(Config):
    """What one worker of a trial holds."""

    gpus_per_worker: NonNegativeFloat | None = None
    """GPUs, or a fraction of one; None is 1 where the cluster has GPUs and 0 elsewhere."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores, and the number of threads that torch uses."""


class TrialConfig(Config):
    """One set of hyperparameters, trained once."""

    data: DataConfig
    teacher: TeacherConfig | None = None
    student: StudentConfig
    distill: DistillConfig = DistillConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    resources: ResourcesConfig = ResourcesConfig()
