"""Everything that one trial depends on, frozen and validated.

A trial is a function of its `TrialConfig`: two equal configs on the same device and versions give
the same student. Rules about single fields are stated on the fields; rules that need two fields,
or the networks' blocks, are in `rules.problems`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from trainable.methods import MethodName

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=2**62)]
PrecisionName = Literal["fp32", "tf32", "bf16", "fp16"]
NUMBER, WORD = "a number", "a word"
"""How pydantic's errors name the two kinds of `Gpus`."""
Gpus = Annotated[
    Annotated[NonNegativeFloat, Tag(NUMBER)] | Annotated[Literal["auto"], Tag(WORD)],
    Discriminator(lambda given: WORD if isinstance(given, str) else NUMBER),
]


class Config(BaseModel):
    """Base of every config section: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ColumnsConfig(Config):
    """Names of the columns of a Parquet data set."""

    image: str = "img"
    """Column of the encoded picture: bytes, or a struct with a field `bytes`."""
    label: str = "fine_label"
    """Column of the class: an integer from 0, or a string."""


class RandAugmentConfig(Config):
    """RandAugment of a training picture (Cubuk et al. 2020), as torchvision has it."""

    operations: PositiveInt = 2
    """Operations that are applied one after the other, drawn of 14."""
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of each operation, of 30."""


class AugmentConfig(Config):
    """Random changes of training pictures, drawn from (seed, epoch, sample).

    `crop`, `flip`, `mixup` and `cutmix` change whole micro-batches on the device. The others change single
    pictures as they are decoded, so that the set is streamed. The order is `resized_crop`, `rand_augment`,
    `erase`, `crop`, `flip`, then `mixup` or `cutmix`.
    """

    crop: Annotated[int, Field(ge=0)] = 0
    """Pixels of zero padding on each side before a random crop to the original size; 0 is off."""
    flip: bool = False
    """Mirror left to right with probability 1/2."""
    resized_crop: tuple[PositiveFraction, PositiveFraction] | None = None
    """Smallest and largest share of a picture's area that is cut out at random, of an aspect ratio of 3/4 to
    4/3, and resized (Szegedy et al. 2015: [0.08, 1]); it replaces the training pictures' `data.resize` and
    centre crop."""
    rand_augment: RandAugmentConfig | None = None
    """Geometric and colour operations drawn at random; `{}` takes the usual two of magnitude 9."""
    erase: Fraction = 0.0
    """Probability that a rectangle of 2 to 33 % of the area becomes the mean colour (Zhong et al. 2020)."""
    mixup: PositiveFloat | None = None
    """α: each picture is λ of itself and 1 − λ of another of its micro-batch, λ ~ Beta(α, α), and so is its
    label (Zhang et al. 2018)."""
    cutmix: PositiveFloat | None = None
    """α: a rectangle of area 1 − λ comes from another picture of the micro-batch, λ ~ Beta(α, α), and that share
    of the label with it (Yun et al. 2019). With `mixup` as well, each micro-batch gets one of them, either with
    probability 1/2."""

    @property
    def changes_single_pictures(self) -> bool:
        """Whether pictures are changed as they are decoded."""
        crops, operates = self.resized_crop is not None, self.rand_augment is not None
        return crops or operates or self.erase > 0

    @property
    def mixes(self) -> bool:
        """Whether a picture's label is a distribution over classes."""
        return self.mixup is not None or self.cutmix is not None


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
    resize: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Pixels that the shorter side is resized to before the centre of `image_size` is cropped, where that is
    not `image_size` itself (ImageNet's usual are 256 and 224)."""
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of each class's training pictures held out for validation; 0 means no validation and no search."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the training/validation split: the same for every trial and replicate of a study."""
    subset: PositiveFraction = 1.0
    """Share of each class's training pictures, without those held out, that students are trained on, drawn by
    `split_seed`; a smaller share is part of every larger one. A teacher trained by `teacher.train` has them all."""
    unseen_classes: tuple[str, ...] | None = None
    """Classes that no network is trained on: pairs of their pictures are verified by their embeddings
    (equal error rate), those of the training split as validation and those of the test split as test."""
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    """What an epoch trains on: `shuffled` every training picture once, `balanced` every class equally often
    in as many draws. There a rare class's pictures are repeated, within an epoch with the same changes
    (`augment`), and a frequent class has others left out in each epoch. Validation and test keep their mix."""
    batch_size: PositiveInt = 128
    """Pictures an optimizer update, over all workers and micro-batches."""
    drop_last: bool = False
    """Leave out an epoch's last update where it has fewer than `batch_size` pictures (others each epoch)."""
    augment: AugmentConfig = AugmentConfig()
    mean: tuple[float, ...] | None = None
    """Per-channel mean of pixels in [0, 1], subtracted; None measures the training split."""
    std: tuple[PositiveFloat, ...] | None = None
    """Per-channel standard deviation of pixels in [0, 1], divided by; None measures the training split."""
    loader: Literal["auto", "resident", "streamed"] = "auto"
    """`resident` decodes once and keeps the pictures on the device, `streamed` decodes as it goes; `auto`
    is `resident` for sets within `cache_budget_gib` whose pictures are not changed one by one (`augment`)."""
    cache_budget_gib: PositiveFloat = 4.0
    """Largest decoded set, in GiB of uint8 pixels, that is decoded once and kept; also the most that `teacher.cache`
    keeps."""
    decode_workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode streamed pictures, for each worker; 0 decodes in the worker itself."""


class OptimConfig(Config):
    """The optimizer and its learning rate over time."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW (Loshchilov and Hutter 2019)."""
    lr: PositiveFloat = 0.1
    """Peak learning rate (of the first stage, where there are several); with `lr_batch_size` that of such a batch."""
    lr_batch_size: PositiveInt | None = None
    """Batch size B₀ that `lr` is meant for: of batches of B pictures the peak is lr·B/B₀ for `sgd` (Goyal et al. 2017,
    §2.1) and lr·√(B/B₀) for `adamw` (Malladi et al. 2022, whose rule for β₁, β₂ and ε is not applied); None takes `lr`
    as it is written."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD; AdamW's β₁."""
    nesterov: bool = True
    """Nesterov's momentum, for SGD."""
    weight_decay: NonNegativeFloat = 5e-4
    """Factor λ of the decay of all parameters w: for `sgd` λ·w is added to the gradient, for `adamw` lr·λ·w is taken
    from w."""
    schedule: Literal["auto", "triangle", "onecycle", "cosine", "multistep"] = "auto"
    """`triangle`: one up and down a stage. The others span all stages: `onecycle`, Smith and Topin's;
    `cosine`, a linear warm-up and half a cosine down to 0; `multistep`, lower after each of `milestones`.
    `auto` is `triangle` for stablekd and `onecycle` for the other methods."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of a stage's updates (`triangle`), or of all, in which the learning rate rises; None is 0.3 for
    `triangle` and `onecycle`, which need one above 0, 0.05 for `cosine` and 0 for `multistep`."""
    peak_decay: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Each stage's peak over the one before (`triangle`); 0.5 is the paper's triangular2, 1 keeps it."""
    milestones: tuple[PositiveInt, ...] | None = None
    """Epochs after which `multistep` lowers the learning rate, in their order."""
    milestone_decay: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Learning rate after a milestone over that before it."""
    reset_at_stages: bool = False
    """Begin every stage with the optimizer as it was built: no momentum, no moments, no updates counted."""


class TeacherTrainConfig(Config):
    """How the teacher is trained, where no checkpoint is given.

    All else is as for the student, but for `data.subset`, `train.gradient_noise` and the policies of
    `train.batchnorm`, which are the student's alone.
    """

    epochs: PositiveInt
    """Passes over its training pictures."""
    batch_size: PositiveInt = 128
    """Pictures an optimizer update, as `data.batch_size`."""
    optim: OptimConfig = OptimConfig()
    seed: Seed = 0
    """As `train.seed`."""


class HeadConfig(Config):
    """The last layer: embedding → logits."""

    name: Literal["linear", "am_softmax"] = "linear"
    """`am_softmax`: logits s·cos θ, trained with s·(cos θ − m) at the label (Wang et al. 2018, eq. 6). The
    margin enters the cross-entropy of training alone: KL and every evaluation see the plain s·cos θ."""
    margin: NonNegativeFloat | None = None
    """AM-Softmax's m; None is 0.2."""
    scale: PositiveFloat | None = None
    """AM-Softmax's s; None is 30."""


class TeacherConfig(Config):
    """The network that the student learns from."""

    model: str
    """As `student.model`."""
    cuts: tuple[str, ...] | None = None
    """As `student.cuts`, where the modules have other names in this network; None takes the student's."""
    head: HeadConfig = HeadConfig()
    checkpoint: str | None = None
    """A `.safetensors` file or a state dict saved by `torch.save`; loaded with weights only."""
    train: TeacherTrainConfig | None = None
    """Train the teacher as the study's first phase, once for each distinct config."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Type of the teacher's forward pass, as `train.precision` is of the student's; None is the same. From another one
    its answers are handed to the student in fp32, with that type's rounding in them."""
    cache: bool = False
    """Ask the teacher once a node, not in every epoch of every trial, and keep what it says of each training picture
    in the cache folder; needs a fixed set of views of each, so of `data.augment` no more than `crop` and `flip`:
    (2·crop + 1)² views, with `flip` twice as many, all of which it is asked for."""


class StudentConfig(Config):
    """The network that is trained."""

    model: str
    """A name that the zoo knows, e.g. `resnet18`, or `torchvision:NAME`, `timm:NAME`, or `package.module:factory`,
    a callable that returns a network and is given those of `num_classes`, `in_channels` and `image_size`
    (height, width) that it names."""
    cuts: tuple[str, ...] | None = None
    """Submodules (dotted names) after which the networks are cut into blocks, in order; None takes the network's
    own, which networks from elsewhere have none of."""
    projectors: Literal["none", "keep", "fold"] = "none"
    """Where its features are of another width than the teacher's: 1×1 layers to the teacher's width and back, as part
    of the student. `keep` keeps both for inference, `fold` keeps their product, one layer."""
    head: HeadConfig = HeadConfig()


class DistillConfig(Config):
    """What the student learns from the teacher."""

    method: MethodName = "kd"
    """What each minimises is in the file of its name in `distill`."""
    alpha: Fraction | None = None
    """Weight of the distillation term: (1 − α)·CE + α·T²·KL (for `mse`: α·Σ w·MSE; for `deit`: α·the
    distillation token's loss)."""
    lam: NonNegativeFloat | None = None
    """λ, the weight of a term that is added: CE + λ·term for `at`, `nst` and `reviewkd`, the term of the input
    gradients for `sobolev`, and StableKD's (eq. 8) CE + λ·T²·KL, in place of `alpha`."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature T of both networks in the KL term."""
    decomposition: Annotated[str, Field(pattern=r"^\d+/\d+$")] | None = None
    """StableKD's k/n: k groups at first, n recompositions."""
    stage_epochs: tuple[PositiveInt, ...] | None = None
    """Epochs of each of the n + 1 stages, `train.epochs` in all; None is the paper's: the same for each, what
    is left over to the last."""
    stage_split: PositiveFloat | None = None
    """Epochs of each stage over those of the one before, in place of `stage_epochs`: r > 1 trains the later stages
    longer. Of e epochs stage i = 0 … n − 1 has 1 + ⌊(e − n − 1)·rⁱ/(1 + r + … + rⁿ)⌋, and the last the rest; None is
    1, the paper's."""
    feature_weights: dict[str, NonNegativeFloat] | None = None
    """Weight of the feature MSE at each cut, for `mse` and `kd_mse`; None weighs every cut 1."""
    feature_scale: PositiveFloat = 1.0
    """Factor of all of `feature_weights`: one number to search."""
    target_weight: NonNegativeFloat = 1.0
    """DKD's α: weight of what the teacher says of the label's class against all others."""
    nontarget_weight: NonNegativeFloat = 8.0
    """DKD's β: weight of what the teacher says of the other classes among themselves."""
    hard: bool = True
    """For `deit`: the distillation token learns the teacher's first choice; false: its whole answer (T²·KL)."""


class BatchNormConfig(Config):
    """How the student's BatchNorm is trained and watched."""

    sync: bool = False
    """Batch statistics over all workers, as if each micro-batch were on one (SyncBatchNorm)."""
    momentum: Annotated[float, Field(gt=0, le=1)] | None = None
    """Weight of the newest batch in the running statistics; None leaves each layer its own (mostly 0.1)."""
    eps: PositiveFloat | None = None
    """Added to variances before the root; None leaves each layer its own (mostly 1e-5)."""
    freeze_after: PositiveInt | None = None
    """Epoch after which training normalises by the running statistics, and no more changes them."""
    recalibrate: Annotated[int, Field(ge=0)] = 0
    """Updates' worth of training pictures, an epoch's at most, on which the composed student's running
    statistics are measured anew before a validation, every micro-batch weighing the same (Wu and Johnson
    2021, PreciseBN); 0 is off. Each picture counts once, whatever `data.sampling`."""
    recalibrate_at: Literal["epoch", "stage"] = "epoch"
    """Before which validations: that of each epoch, or those of each stage's last epoch and of `freeze_after`.
    In between, a group's blocks have the statistics of what they train on, the teacher's features."""
    group_norm: PositiveInt | None = None
    """Replace every BatchNorm by GroupNorm of so many groups (Wu and He 2018: 32), or of the most that divide
    a layer's channels; None keeps BatchNorm."""
    batch_stats_accuracy: bool = True
    """Also validate with the statistics of the validation batches, and report how far the running ones drifted."""


class LossScaleConfig(Config):
    """GradScaler's, for fp16."""

    initial: Annotated[float, Field(gt=0, le=1e30)] = 65536.0
    """Factor of the loss in the first update; halved after each that overflows."""
    growth_interval: PositiveInt = 2000
    """Good updates in a row after which it is doubled."""
    floor: PositiveFloat = 1.0
    """A scale below this fails the trial: then it is not the scale that overflows."""


class CheckpointConfig(Config):
    """What a trial keeps to go on from. Its best student is kept beside."""

    every: PositiveInt | None = None
    """Updates between two checkpoints within an epoch; None keeps one at each epoch's end only."""
    keep: PositiveInt = 2
    """Newest checkpoints kept: where one is damaged, the one before it serves."""


class TrainConfig(Config):
    """The loop around the step."""

    epochs: PositiveInt = 20
    """Passes over the training pictures, in all stages together."""
    launcher: Literal["auto", "inline", "torch_trainer"] = "auto"
    """`inline` runs the loop in Tune's own process, `torch_trainer` under Ray Train; `auto` is `inline`
    for one worker."""
    precision: PrecisionName = "fp32"
    """Type of the forward pass: `tf32` rounds the inputs of fp32 products to 10 bits, `bf16` and `fp16` are
    autocast's, and `fp16` scales its loss (GradScaler). Losses, gradients and parameters are fp32."""
    loss_scale: LossScaleConfig = LossScaleConfig()
    max_skipped: PositiveInt = 25
    """Updates in a row that may be skipped because something in them was not finite; one more fails the trial."""
    accumulate: PositiveInt = 1
    """Micro-batches an update."""
    clip: PositiveFloat | None = None
    """Bound of the gradient after unscaling, once an update; None does not clip."""
    clip_by: Literal["norm", "layer", "value"] = "norm"
    """What `clip` bounds: the 2-norm of the whole gradient, of each layer's, or each element's size."""
    gradient_noise: NonNegativeFloat = 0.0
    """Standard deviation of Gaussian noise added to the gradient before clipping, drawn from (seed, update)."""
    activation_checkpointing: bool = False
    """Keep only the blocks' inputs for the backward pass and compute the rest again: less memory, more time."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    batchnorm: BatchNormConfig = BatchNormConfig()
    workers: PositiveInt = 1
    """Processes a trial, each with a share of the batch; they sum their gradients once an update."""
    deterministic: bool = False
    """Only deterministic algorithms on GPUs, at a cost in speed; CPUs always are."""
    cuda_graph: bool = True
    """On CUDA devices, launch each update's kernels at once, as a CUDA graph, whose memory stays reserved beside
    what validation and an epoch's short last update take. A network must then decide nothing on the host in its
    forward; one that waits for the device or draws there is seen, and a line in the worker's log says so."""
    compile: bool = False
    """Have torch.compile make the kernels of the student's blocks and of its feature errors, for micro-batches of the
    usual size. They round differently and take a while to make, once for a batch size in each process: its later
    stages and trials find them made. Methods that differentiate twice do without, and so do blocks under
    `activation_checkpointing`."""
    seed: Seed = 0
    """Seed of the initial weights, the order of the pictures and their augmentation."""
    observe_every: PositiveInt = 10
    """Every how many updates gradients and the distance that parameters travel are measured (docs/statistics.md)."""


class ResourcesConfig(Config):
    """What one worker of a trial holds."""

    gpus_per_worker: Gpus | None = None
    """GPUs, or a fraction of one; None is 1 where the cluster has GPUs and 0 elsewhere. `auto` has a study measure
    one trial before the first, and lets as many share a GPU as fit and gain by it (docs/gpus.md)."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores, and the number of threads that torch uses."""

    @property
    def gpus(self) -> float | None:
        """`gpus_per_worker` where it is a number; None where a study has yet to settle it."""
        return None if self.gpus_per_worker == "auto" else self.gpus_per_worker


class TrialConfig(Config):
    """One set of hyperparameters, trained once."""

    data: DataConfig
    teacher: TeacherConfig | None = None
    student: StudentConfig
    distill: DistillConfig = DistillConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @property
    def teacher_precision(self) -> PrecisionName:
        """Of the teacher's forward pass: its own, or else the student's."""
        own = None if self.teacher is None else self.teacher.precision
        return self.train.precision if own is None else own
