"""`kd-study init`: a config that needs two paths and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from study.cli import _app
from trainable.networks import zoo
from trainable.networks.zoo import Pictures

PATHS = {"/path/to/pictures": "pictures", "/path/to/teacher.safetensors": "teacher.safetensors"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(_app, arguments)


def write_pictures(root: Path) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 2)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")


def test_the_config_is_valid_once_its_two_paths_are_filled_in() -> None:
    begun = invoke("init")
    assert (begun.exit_code, begun.stderr) == (0, "")
    assert begun.stdout == (
        "my-study.yaml: fill in data.root and teacher.checkpoint, then "
        "`kd-study validate my-study.yaml`\n"
    )
    text = Path("my-study.yaml").read_text("utf-8")
    empty = invoke("validate", "my-study.yaml")
    assert empty.exit_code == 2
    places = {line.split(": ")[0] for line in empty.stderr.splitlines()}
    assert places == {"data.root", "teacher.checkpoint"}

    write_pictures(Path("pictures"))
    pictures = Pictures(channels=3, image_size=(64, 64), classes=2)
    teacher = zoo.build("resnet34", pictures, path="teacher.model").network
    save_file(teacher.state_dict(), "teacher.safetensors")
    for place, own in PATHS.items():
        assert text.count(place) == 1
        text = text.replace(place, own)
    Path("my-study.yaml").write_text(text, "utf-8")
    told = invoke("validate", "my-study.yaml")
    assert (told.exit_code, told.stderr) == (0, "")
    assert "image_folder: 36 training, 4 validation and 4 test pictures" in told.stdout


def test_it_speaks_of_the_file_that_it_is_and_replaces_none() -> None:
    assert invoke("init", "mine.yaml").exit_code == 0
    text = Path("mine.yaml").read_text("utf-8")
    assert "kd-study run mine.yaml " in text
    assert "my-study.yaml" not in text
    Path("mine.yaml").write_text("own work")
    again = invoke("init", "mine.yaml")
    assert again.exit_code == 2
    assert again.stderr == "mine.yaml: must not be there yet; give another name\n"
    assert Path("mine.yaml").read_text() == "own work"
    nowhere = invoke("init", "none/mine.yaml")
    assert nowhere.exit_code == 2
    assert nowhere.stderr.startswith("none/mine.yaml: must be writable, but: No such file")
