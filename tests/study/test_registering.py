"""An exported student in the model registry of a real store: found by its alias, and loaded without kd-study."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from study import registering
from study.choice import choose
from study.export import export
from study.store import Store
from study.tracking import Registration, Tracker
from tests.study.exported import MadeUp
from tests.trainable.exports import logits_of, pictures_of

LOAD = """
import sys
sys.modules |= {"trainable": None, "study": None}
import mlflow, numpy
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
numpy.save("logits.npy", model.predict(numpy.load("pictures.npy")))
print(*model.metadata.metadata["classes"])
"""


@pytest.fixture
def study(place: tuple[str, Path | None], store: Store, tmp_path: Path) -> MadeUp:
    """One that was tracked in this store, but for trial 0, of which it was never told."""
    made = MadeUp(tmp_path, tracking={"uri": place[0], "experiment": "kd-study"})
    run = store.client.create_run(store.experiment_id)
    made.put(1, run_id=run.info.run_id)
    return made


def winner(client: MlflowClient, name: str) -> ModelVersion:
    return client.get_model_version_by_alias(name, "winner")


def test_the_alias_leads_to_the_newest_version(study: MadeUp, client: MlflowClient) -> None:
    name = f"students-of-{study.row(1).run_id}"
    for version in (1, 2):
        told = study.export("--register", "--model-name", name)
        assert (told.exit_code, told.stderr) == (0, "")
        assert f"Registered  models:/{name}/{version}\n" in told.stdout
        found = winner(client, name)
        assert (int(found.version), found.run_id) == (version, study.row(1).run_id)
    assert found.description == (study.folder / "export" / "MODEL_CARD.md").read_text()
    assert found.tags["kd.study"] == "made-up"
    assert found.tags["kd.trial"] == "1"
    assert found.tags["kd.teacher"] == "mini_resnet_18_4"
    assert float(found.tags["kd.val_accuracy"]) == 0.9
    assert found.tags["optim.lr"] == str(study.row(1).params["optim.lr"])
    places = [found.source, client.get_model_version(name, "1").source]
    assert len(set(places)) == 2  # the first version stays what it was


def test_of_two_that_register_at_once_the_newest_version_is_the_winner(
    store: Store, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other makes its version and sets the alias after ours is made, and before we set it."""
    run_id = store.client.create_run(store.experiment_id).info.run_id
    model = Registration(f"at-once-{run_id}", run_id, tmp_path, "models/0", {}, "")
    set_alias, told = store.client.set_registered_model_alias, list[str]()

    def late(*arguments: str) -> None:
        monkeypatch.undo()
        told.append(Tracker(Store(client, store.experiment_id)).register(model))
        set_alias(*arguments)

    monkeypatch.setattr(store.client, "set_registered_model_alias", late)
    assert Tracker(store).register(model) == f"models:/{model.name}/1"
    assert told == [f"models:/{model.name}/2"]
    assert int(winner(client, model.name).version) == 2


@pytest.mark.slow
def test_it_is_loaded_by_its_alias_without_kd_study(study: MadeUp, tmp_path: Path) -> None:
    name = f"loaded-{study.row(1).run_id}"
    assert study.export("--fold", "--register", "--model-name", name).exit_code == 0
    images = pictures_of(study.trial(1))
    np.save(tmp_path / "pictures.npy", images.numpy())
    store = str(study.config.tracking.uri)
    command = [sys.executable, "-P", "-c", LOAD, store, f"models:/{name}@winner"]
    loaded = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == [str(digit) for digit in range(10)]
    assert "Warning" not in loaded.stderr
    expected = logits_of(study.trial(1), study.weights(1), images)
    found = torch.from_numpy(np.load(tmp_path / "logits.npy"))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_trial_that_mlflow_was_not_told_of(study: MadeUp) -> None:
    told = study.export("--trial", 0, "--register")
    assert told.exit_code == 2
    assert "must hold the run of trial 0, which was never sent" in told.stderr
    assert "`kd-study resume made-up` sends what is left" in told.stderr
    assert (study.folder / "export" / "MODEL_CARD.md").exists()


def test_a_name_that_the_store_refuses(study: MadeUp) -> None:
    told = study.export("--register", "--model-name", "a/b")
    assert told.exit_code == 1
    (line,) = told.stderr.splitlines()
    assert "must take the model (" in line


def test_a_store_that_is_away(tmp_path: Path) -> None:
    study = MadeUp(tmp_path, tracking={"uri": "http://127.0.0.1:9"})
    study.put(1, run_id="0" * 32)
    told = study.export("--register")
    assert told.exit_code == 2
    assert told.stderr.startswith(
        "tracking.uri: must be the address of an MLflow store that answers ("
    )


def test_a_student_without_a_teacher_has_no_tag_of_one(tmp_path: Path) -> None:
    study = MadeUp(tmp_path, distill={"method": "none"}, search={"optim.lr": {"choice": [0.1]}})
    choice = choose(study.storage, study.name)
    done = export(choice, tmp_path / "to", ("program",), fold=False)
    tags = registering._tags(done, choice.config)
    assert tags["kd.method"] == "none"
    assert "kd.teacher" not in tags


def test_a_description_is_as_long_as_databases_take() -> None:
    card = "\n".join(f"line {number}" for number in range(1000))
    short = registering._shortened(card)
    assert len(short) <= 5000
    text, _, rest = short.rpartition("\n\n")
    assert card.startswith(text + "\n")
    assert rest == "… the rest is in MODEL_CARD.md."
    assert registering._shortened("short") == "short"
