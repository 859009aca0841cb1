"""Made-up studies in real folders: ledger, config and learning curves, of any size, with sick trials."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from study.config import RESOLVED, dump_config, parse_config
from study.curves import CURVE
from study.ledger import LEDGER, save_results
from study.results import State, StudyResults, TrialRow, Value
from trainable.records import EpochRecord, Finding

NAUGHTY = "<script>document.title = 'broken'</script> & \"<b>"
BEGAN = 1_795_000_000.0
EXPLODING = Finding(
    "exploding_gradients",
    "The gradient grew until updates threw the student off.",
    f"grad/norm rose from 1.2 to 340 between epochs 3 and 9; {NAUGHTY}",
    "lower optim.lr (now 0.5), e.g. to 0.05, or set train.clip",
)
DRIFTING = Finding(
    "batchnorm_drift",
    "BatchNorm's running statistics do not describe the validation pictures.",
    "bn/drift was 2.4 at epoch 9",
    "set train.batchnorm.recalibrate, e.g. to 50 updates",
)
TREE: dict[str, Any] = {
    "study": {"name": "made-up", "pruner": {"name": "asha", "grace_epochs": 3}},
    "data": {"source": "digits", "val_fraction": 0.25},
    "teacher": {"model": "mini_resnet_18_4", "train": {"epochs": 6}},
    "student": {"model": "mini_resnet_10_4"},
    "distill": {"method": "stablekd", "alpha": 0.5},
    "search": {
        "distill.alpha": {"uniform": [0.1, 0.9]},
        "distill.decomposition": {"choice": ["1/0", "3/1", "5/1", "5/2"]},
        "optim.lr": {"loguniform": [0.01, 0.5]},
        "data.batch_size": {"choice": [32, 64, 128]},
    },
}


def write_study(storage: Path, *, trials: int, epochs: int, diagnosed: bool = True) -> Path:
    """A finished study of this size; its folder."""
    study = {**TREE["study"], "trials": trials}
    tree = TREE | {"study": study, "train": {"epochs": epochs}, "storage": {"path": str(storage)}}
    config = parse_config(tree)
    config.folder.mkdir(parents=True)
    (config.folder / RESOLVED).write_text(dump_config(config))
    draw = random.Random(0)
    rows = [
        _other(config.folder, "teacher", epochs, 0.93, draw),
        _other(config.folder, "baseline", epochs, 0.88, draw),
        *(_trial(config.folder, number, epochs, draw, diagnosed) for number in range(trials)),
    ]
    best = max((row for row in rows if _usable(row)), key=lambda row: row.value or 0.0)
    rows[rows.index(best)] = best.model_copy(update={"test_accuracy": 0.901, "findings": ()})
    results = results_of(*rows, name="made-up", trials_planned=trials, finished=True)
    save_results(results, config.folder / LEDGER)
    return config.folder


def results_of(*rows: TrialRow, **fields: Any) -> StudyResults:
    """A ledger of these rows."""
    known = {
        "name": "made-up",
        "trials_planned": max(1, len(rows)),
        "started_at": BEGAN,
        "seconds": 4000.0,
        "tracking_uri": "sqlite:////made/up/mlflow.db",
        "experiment": "kd-study",
        "experiment_id": "1",
        "parent_run_id": "p",
    }
    return StudyResults.model_validate(known | {"rows": rows} | fields)


def trial_row(number: int, **fields: Any) -> TrialRow:
    """A complete trial."""
    known = {"role": "trial", "number": number, "state": "complete", "directory": "/d"}
    return TrialRow.model_validate(known | fields)


def write_curve(folder: Path, records: list[EpochRecord]) -> None:
    """The learning curve of a trial's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(asdict(record)) for record in records)
    (folder / CURVE).write_text("".join(f"{line}\n" for line in lines))


def curve(epochs: int, top: float, draw: random.Random, *, sick: bool = False) -> list[EpochRecord]:
    """Plausible metrics; of a sick trial the gradient explodes and BatchNorm drifts."""
    return [
        EpochRecord(
            epoch,
            {
                "val/accuracy": (accuracy := _accuracy(epoch, epochs, top, draw)),
                "val/accuracy_batch_stats": min(1.0, accuracy + draw.uniform(0.0, 0.01)),
                "train/loss": 2.0 / epoch,
                "train/stage": 1.0 + (2 * epoch > epochs),
                "grad/norm": draw.uniform(0.8, 1.2) * (1.06**epoch if sick else 1.0),
                "grad/clip_rate": min(1.0, draw.uniform(0, 0.1) + (0.5 if sick else 0.0)),
                "update/distance": 0.01 / epoch,
                "bn/drift": draw.uniform(0.05, 0.1) * (epoch if sick else 1),
                "bn/min_var": 1e-3 * (0.8**epoch if sick else 1.0),
            },
            int(1000 * (BEGAN + 10 * epoch)),
        )
        for epoch in range(1, epochs + 1)
    ]


def _accuracy(epoch: int, epochs: int, top: float, draw: random.Random) -> float:
    return max(0.0, top * (1 - math.exp(-5 * epoch / epochs)) + draw.gauss(0, 0.004))


def _other(folder: Path, role: str, epochs: int, top: float, draw: random.Random) -> TrialRow:
    records = curve(epochs, top, draw)
    write_curve(folder / role, records)
    return _row(role, 0, "complete", records, folder / role, {}, test_accuracy=top - 0.01)


def _trial(
    folder: Path, number: int, epochs: int, draw: random.Random, diagnosed: bool
) -> TrialRow:
    kind: State = draw.choices(("complete", "pruned", "failed"), (5, 5, 1))[0]
    kind = kind if number else "complete"
    ill = draw.random() < 0.1
    ran = epochs if kind == "complete" else max(1, epochs // draw.choice((2, 3, 6)))
    alpha, lr = draw.uniform(0.1, 0.9), min(0.5, 10 ** draw.uniform(-2, -0.3))
    top = 0.9 - 0.1 * (alpha - 0.5) ** 2 - 0.05 * (math.log10(lr) + 1.2) ** 2
    records = curve(epochs, top - 0.2 * ill, draw, sick=ill)[:ran]
    k, n = draw.choice(((1, 0), (3, 1), (5, 1), (5, 2)))
    params: dict[str, Value] = {
        "distill.alpha": alpha,
        "distill.decomposition": f"{k}/{n}",
        "optim.lr": lr,
        "data.batch_size": draw.choice((32, 64, 128)),
        "distill.k": k,
        "distill.n": n,
    }
    found = (EXPLODING, DRIFTING) if ill else ()
    place = folder / "trials" / f"{number:04d}"
    write_curve(place, records)
    more: dict[str, Any] = {"findings": found if diagnosed else None}
    if kind == "failed":
        more["error"] = f"ValueError: picture 7 has no label; {NAUGHTY}"
    return _row("trial", number, kind, records, place, params, **more)


def _row(
    role: str,
    number: int,
    state: State,
    records: list[EpochRecord],
    place: Path,
    params: dict[str, Value],
    **more: Any,
) -> TrialRow:
    best = max(records, key=lambda record: record.metrics["val/accuracy"])
    known = {
        "role": role,
        "number": number,
        "state": state,
        "params": params,
        "epochs": len(records),
        "value": best.metrics["val/accuracy"],
        "best_epoch": best.epoch,
        "seconds": 3.0 * len(records),
        "directory": str(place),
    }
    return TrialRow.model_validate(known | more)


def _usable(row: TrialRow) -> bool:
    return row.role == "trial" and row.state == "complete"
