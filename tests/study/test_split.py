"""`kd-study split`: which pictures a teacher may be trained on."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from study.cli import _app
from study.config import load_config
from trainable.data.store import open_dataset

CONFIG = """
study: {{name: s}}
data: {{source: image_folder, root: {root}, val_fraction: 0.25, split_seed: 3, unseen_classes: [emu, yak]}}
teacher: {{model: resnet18, checkpoint: {root}/not-trained-yet.safetensors}}
student: {{model: resnet18}}
distill: {{method: kd, alpha: 0.5}}
train: {{epochs: 1}}
"""


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(_app, arguments)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 2)):
        for label in ("cat", "dog", "emu", "yak"):
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / label / f"{number:02}.png")
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(root=tmp_path))
    return path


def test_every_training_picture_is_listed_with_the_part_that_a_study_has_it_in(
    config: Path, tmp_path: Path
) -> None:
    told = invoke("split", str(config), str(tmp_path / "split.csv"))
    assert (told.exit_code, told.stderr) == (0, "")
    assert told.stdout == f"{tmp_path / 'split.csv'}: 18 train, 6 validation, 24 unseen\n"
    with (tmp_path / "split.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [int(row["row"]) for row in rows] == list(range(48))
    files = sorted(tmp_path.glob("train/*/*.png"))
    assert [row["picture"] for row in rows] == [str(file) for file in files]
    assert [row["class"] for row in rows] == [file.parent.name for file in files]
    data = open_dataset(load_config(config, []).data, tmp_path / "cache")
    assert data.val is not None
    for part, of_study in (
        ("train", data.train),
        ("validation", data.val),
        ("unseen", data.unseen),
    ):
        assert of_study is not None
        assert [int(row["row"]) for row in rows if row["part"] == part] == of_study.rows.tolist()


def test_a_file_that_is_there_stays(config: Path, tmp_path: Path) -> None:
    told = invoke("split", str(config), str(config))
    assert told.exit_code == 2
    assert told.stderr == f"{config}: must not be there yet; give another name\n"
    assert config.read_text() == CONFIG.format(root=tmp_path)


def test_no_file_is_begun_of_pictures_that_cannot_be_split(config: Path, tmp_path: Path) -> None:
    for file in list((tmp_path / "train" / "dog").iterdir())[1:]:
        file.unlink()
    told = invoke("split", str(config), str(tmp_path / "split.csv"))
    assert told.exit_code == 2
    assert "dog" in told.stderr
    assert not (tmp_path / "split.csv").exists()
