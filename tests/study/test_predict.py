"""`kd-study predict`: what the winner says of picture files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.study.exported import MadeUp, invoke
from tests.trainable.exports import logits_of


@pytest.fixture
def study(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path)


def save(path: Path, size: tuple[int, int] = (8, 8), seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_likeliest_classes_of_each_picture(study: MadeUp, tmp_path: Path) -> None:
    files = [save(tmp_path / f"{seed}.png", seed=seed) for seed in (0, 1)]
    told = invoke("predict", study.name, *files, "--top", 3, "--storage", study.storage)
    assert (told.exit_code, told.stderr) == (0, "")
    lines = told.stdout.splitlines()
    assert [lines[0], lines[4]] == list(map(str, files))
    pictures = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])
    grey = pictures.unsqueeze(1).expand(-1, 3, -1, -1)
    shares = logits_of(study.trial(1), study.weights(1), grey).softmax(1)
    for at, own in enumerate(shares):
        best = own.topk(3)
        expected = [
            f"  {100 * share:6.2f} %  {label}"
            for share, label in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        assert lines[4 * at + 1 : 4 * at + 4] == expected


def test_what_cannot_be_read_is_named_and_the_rest_predicted(study: MadeUp, tmp_path: Path) -> None:
    good, large = save(tmp_path / "good.png"), save(tmp_path / "large.png", (20, 30))
    broken, gone = tmp_path / "broken.png", tmp_path / "gone.png"
    broken.write_bytes(b"no picture")
    files = (gone, large, good, broken)
    told = invoke("predict", study.name, *files, "--top", 99, "--storage", study.storage)
    assert told.exit_code == 2
    lines = told.stdout.splitlines()
    assert (lines[0], len(lines)) == (str(good), 11)
    missing, wrong, unreadable = told.stderr.splitlines()
    assert missing.startswith(
        f"{gone}: must be a file that can be read (No such file or directory)"
    )
    assert wrong.startswith(
        f"{large}: must be 8×8 pixels, as the study's pictures are, got 20×30; "
    )
    assert unreadable.startswith(f"{broken}: must be a readable picture (")


def test_pictures_are_resized_where_the_study_resized_its_own(tmp_path: Path) -> None:
    data = {"source": "digits", "val_fraction": 0.25, "image_size": 8, "channels": 1}
    study = MadeUp(tmp_path, data=data)
    colour = np.zeros((40, 20, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "tall.png")
    told = invoke("predict", study.name, tmp_path / "tall.png", "--storage", study.storage)
    assert (told.exit_code, told.stderr) == (0, "")
    assert len(told.stdout.splitlines()) == 6


def test_a_study_without_a_winner_predicts_nothing(study: MadeUp, tmp_path: Path) -> None:
    study.change(study.results.model_copy(update={"finished": False}))
    told = invoke("predict", study.name, tmp_path / "a.png", "--storage", study.storage)
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr.startswith("made-up: must have finished, before its winner is known; ")
    unknown = invoke("predict", "nobody", tmp_path / "a.png", "--storage", study.storage)
    assert unknown.stderr.startswith(f"{study.storage}: must hold the study, got 'nobody'")
