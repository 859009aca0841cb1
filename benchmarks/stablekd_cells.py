"""The figures of the StableKD paper's tables, and what each is trained by.

A cell is a row and a column of a table: a config of configs/ and what differs from it. Figures 3, 4 and 5 are curves,
whose points have no number in the paper. Those of figure 3 are epochs of one training: its cells hold a tenth of the
training pictures out, on which each epoch is validated, and want a teacher that has not seen these.

The cells of `searched` are ours: what a search of configs/cifar100_stablekd.yaml found, trained as table 5 is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

Settings = Mapping[str, str | float | None]
"""Dotted paths and values; None is `null`."""


@dataclass(frozen=True)
class Cell:
    """What one figure of the paper is trained by."""

    table: str
    scheme: str
    epochs: int
    paper: float | None
    """Per cent; None where the paper has no figure, or only a curve."""
    config: str
    """File name in configs/."""
    settings: Settings = field(default_factory=dict)
    """What differs from the config."""

    @property
    def name(self) -> str:
        """Unlike any other cell's, and fit for a folder."""
        shown = (self.settings.get(key) for key in _SHOWN)
        parts = (self.table, self.scheme, *(str(value) for value in shown if value is not None))
        text = "-".join((*parts, str(self.epochs)))
        return "".join(letter if letter.isalnum() else "-" for letter in text.lower())

    @property
    def has_teacher(self) -> bool:
        """Whether the student learns from one, or has projectors of its width."""
        alone = self.settings.get("distill.method") == "none"
        return not alone or self.settings.get("student.projectors") == "keep"

    @property
    def pair(self) -> tuple[str, str]:
        """Data set and student, which has the same teacher in all cells of that data set."""
        return self.config.split("_")[0], str(self.settings.get("student.model", "resnet18"))


_SHOWN = ("data.subset", "student.model", "student.projectors")
_EPOCHS = (20, 40, 60, 100, 150, 200)

_KD, _STABLEKD = "cifar100_kd.yaml", "cifar100_stablekd.yaml"
_OTHERS = {
    "AT": "cifar100_at.yaml",
    "ST": "cifar100_sobolev.yaml",
    "NST": "cifar100_nst.yaml",
    "ReviewKD": "cifar100_reviewkd.yaml",
    "DKD": "cifar100_dkd.yaml",
}
_NONE: Settings = {"distill.method": "none", "distill.alpha": None}
_LR: Settings = {"optim.lr": 0.1}
_STABLEKDS_OWN: Settings = {"distill.lam": None, "distill.decomposition": None}
_IN_PLACE: Mapping[str, Settings] = {
    "w/o KD": {**_NONE, **_STABLEKDS_OWN},
    "KD": {"distill.method": "kd", "distill.alpha": 0.5, **_STABLEKDS_OWN},
    "DeiT": {"distill.method": "deit", "distill.alpha": 0.5, **_STABLEKDS_OWN},
}
"""Other schemes in the configs of StableKD."""
_IMAGENET: Settings = {
    "data.batch_size": 512,
    "optim.lr": 2e-3,
    "optim.weight_decay": 0.04,
    "optim.schedule": "cosine",
}
"""What the paper's comparisons have on ImageNet (appendix B)."""


def table_1() -> Iterator[Cell]:
    """ImageNet."""
    vit = {"w/o KD": 74.00, "KD": 75.05, "DeiT": 75.45, "StableKD-5/3": 77.72}
    short = {"w/o KD": 79.53, "KD": 79.95, "StableKD-5/3": 81.51}
    long = {"w/o KD": 80.37, "KD": 81.15, "StableKD-5/3": 82.61}
    yield from _rows("1", 90, vit, "imagenet_vit_stablekd.yaml", "vit_s8", _IMAGENET)
    yield from _rows("1", 90, short, "imagenet_swin_stablekd.yaml", "swin_t", _IMAGENET)
    yield from _rows("1", 300, long, "imagenet_swin_stablekd.yaml", "swin_t", _IMAGENET)


def table_2() -> Iterator[Cell]:
    """Shares of the training pictures; all of ImageNet's are in table 1."""
    rows = {
        "KD": (55.65, 67.64, 72.88, 75.91, 78.12),
        "AT": (56.53, 67.22, 71.99, 75.31, 77.99),
        "ST": (55.47, 67.54, 71.87, 75.26, 77.75),
        "NST": (60.84, 69.87, 74.36, 76.16, 78.14),
        "ReviewKD": (62.20, 71.25, 75.20, 77.19, 78.97),
        "DKD": (69.76, 75.60, 77.39, 78.77, 79.39),
        "StableKD-5/2": (76.10, 78.50, 79.18, 79.63, 79.41),
    }
    configs = {"KD": _KD, **_OTHERS, "StableKD-5/2": _STABLEKD}
    for scheme, figures in rows.items():
        for subset, paper in zip((0.2, 0.4, 0.6, 0.8, 1.0), figures, strict=True):
            yield Cell("2", scheme, 300, paper, configs[scheme], {"data.subset": subset})
    swin = {
        "w/o KD": (66.01, 74.98, 77.76, 78.67),
        "KD": (69.64, 76.10, 78.33, 79.52),
        "StableKD-5/3": (76.03, 78.87, 80.34, 80.89),
    }
    for index, subset in enumerate((0.2, 0.4, 0.6, 0.8)):
        papers = {scheme: figures[index] for scheme, figures in swin.items()}
        for cell in _rows("2", 90, papers, "imagenet_swin_stablekd.yaml", "swin_t", _IMAGENET):
            yield replace(cell, settings={**cell.settings, "data.subset": subset})


def table_3() -> Iterator[Cell]:
    """Transformers on CIFAR-100 from scratch; a sixth of the epochs, with small pictures, is ours."""
    vit = {"w/o KD": 67.99, "KD": 66.46, "DeiT": 71.01, "StableKD-5/2": 84.18}
    swin = {"w/o KD": 73.78, "KD": 73.84, "StableKD-5/2": 83.92}
    yield from _rows("3", 600, vit, "cifar100_vit_stablekd.yaml", "vit_t8", _LR)
    yield from _rows("3", 600, swin, "cifar100_swin_stablekd.yaml", "swin_t", _LR)
    short = dict.fromkeys(vit)
    small: Settings = {"data.image_size": 32, "data.augment.crop": 4}
    for cell in _rows("3", 100, short, "cifar100_vit_stablekd.yaml", "vit_t8", _LR):
        yield replace(cell, settings={**cell.settings, **small})


def table_4() -> Iterator[Cell]:
    """Feature alignment; its other two figures are in table 5."""
    yield Cell("4", "KD + MSE", 60, 77.15, "cifar100_kd_mse.yaml")


def table_5() -> Iterator[Cell]:
    """Recomposition, ResNet34 → ResNet18; `w/o KD` and StableKD-5/3 are ours."""
    kd = (72.49, 75.00, 76.19, 77.08, 77.50, 78.07)
    without = (76.59, 76.90, 77.26, 76.99, 77.39, 77.23)
    whole = (78.45, 79.02, 79.39, 79.21, 79.61, 79.46)
    for epochs, a, b, c in zip(_EPOCHS, kd, without, whole, strict=True):
        yield Cell("5", "w/o KD", epochs, None, _KD, _NONE)
        yield Cell("5", "KD", epochs, a, _KD)
        for decomposition, paper in (("5/0", b), ("5/2", c), ("5/3", None)):
            settings = {"distill.decomposition": decomposition}
            yield Cell("5", f"StableKD-{decomposition}", epochs, paper, _STABLEKD, settings)


def table_6() -> Iterator[Cell]:
    """Students narrower than their teachers, without and with projectors."""
    pairs = {
        ("wrn_40_2", "wrn_40_4"): ((74.56, 75.35), (74.96, 75.40, 75.61)),
        ("wrn_16_8", "wrn_16_10"): ((78.53, 78.67), (78.75, 78.73, 79.57)),
    }
    schemes = ("w/o KD", "KD", "StableKD-2/1")
    for (student, teacher), figures in pairs.items():
        for projectors, papers in zip(("none", "keep"), figures, strict=True):
            found: dict[str, float] = dict(zip(schemes, papers, strict=False))
            own: Settings = {"teacher.model": teacher, "student.projectors": projectors}
            for cell in _rows(
                "6", 200, found, "cifar100_wrn_projectors_stablekd.yaml", student, _LR
            ):
                yield replace(cell, settings={**cell.settings, **own})


def figure_3() -> Iterator[Cell]:
    """How accuracy rises, without recomposition; 1/0 is KD with λ for its weight."""
    for k in (1, 3, 5):
        settings: Settings = {
            "distill.decomposition": f"{k}/0",
            "optim.schedule": "onecycle",
            "optim.lr": 0.05,
            "data.val_fraction": 0.1,
        }
        yield Cell("figure 3", f"StableKD-{k}/0", 60, None, _STABLEKD, settings)


def figure_4() -> Iterator[Cell]:
    """ResNet34 → ResNet18 over epochs; KD and StableKD-5/2 on CIFAR-100 are in table 5."""
    for epochs in _EPOCHS:
        for scheme, config in _OTHERS.items():
            yield Cell("figure 4a", scheme, epochs, None, config)
        curves = {"KD": None, "StableKD-5/2": None}
        yield from _rows("figure 4b", epochs, curves, "imagewoof_stablekd.yaml", "resnet18", _LR)


def figure_5() -> Iterator[Cell]:
    """Other pairs over epochs; 4/1 is ours."""
    configs = {
        "wrn_16_10": "cifar100_wrn_stablekd.yaml",
        "resnext20_32x4d": "cifar100_resnext_stablekd.yaml",
    }
    for epochs in _EPOCHS:
        for student, config in configs.items():
            curves = {"KD": None, "StableKD-4/1": None}
            yield from _rows("figure 5", epochs, curves, config, student, _LR)


def searched() -> Iterator[Cell]:
    """The two best of a search on validation alone (results/cifar100-stablekd-nvidia-h100-80gb-hbm3.json)."""
    best: Settings = {
        "distill.decomposition": "3/1",
        "optim.lr": 0.39357128040403755,
        "optim.weight_decay": 0.00010627542596240164,
        "optim.peak_decay": 0.28516243340275016,
        "data.batch_size": 32,
    }
    second: Settings = {
        "distill.decomposition": "5/2",
        "optim.lr": 0.975591018696557,
        "optim.weight_decay": 0.00014759980901841654,
        "optim.peak_decay": 0.5428471342608289,
        "data.batch_size": 128,
    }
    yield Cell("searched", "StableKD-3/1", 20, None, _STABLEKD, best)
    yield Cell("searched", "StableKD-5/2", 20, None, _STABLEKD, second)


def _rows(
    table: str,
    epochs: int,
    papers: Mapping[str, float | None],
    config: str,
    student: str,
    comparisons: Settings,
) -> Iterator[Cell]:
    """Schemes by a config of StableKD; all but StableKD itself with the settings of `comparisons`."""
    for scheme, paper in papers.items():
        other = _IN_PLACE.get(scheme)
        settings = {} if other is None else {**other, **comparisons}
        yield Cell(table, scheme, epochs, paper, config, {"student.model": student, **settings})


CELLS = (
    *table_1(),
    *table_2(),
    *table_3(),
    *table_4(),
    *table_5(),
    *table_6(),
    *figure_3(),
    *figure_4(),
    *figure_5(),
    *searched(),
)
