"""The commands by which a student leaves its study: `kd-study export` and `kd-study predict`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from study.arguments import OUT, Anywhere, Name, readable
from study.exits import BAD_INPUT, NO_USABLE_TRIAL, bad_input_exits, exit_bad
from study.tree import is_uri
from trainable.errors import ExportError, StorageError

if TYPE_CHECKING:
    from study.export import Export
    from trainable.tasks import Format


def export(
    name: Name,
    trial: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="A trial other than the winner; three keep weights."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to; by default export/ in the study's folder."),
    ] = None,
    formats: Annotated[
        str, typer.Option(metavar="LIST", help="Of safetensors, program and onnx.")
    ] = "safetensors,program",
    fold: Annotated[
        bool, typer.Option("--fold", help="Put BatchNorm into the convolutions before it.")
    ] = False,
    register: Annotated[
        bool, typer.Option("--register", help="Also as a version in MLflow's model registry.")
    ] = False,
    model_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the registered model; by default the study's."),
    ] = None,
    storage: Anywhere = "runs",
) -> None:
    """Write the winner of the study NAME in formats that other programs read, with a model card.

    Each is read again and compared with the trained student; one that differs is not kept.
    """
    with bad_input_exits():
        wanted = _formats(formats)
        if model_name is not None and not register:
            exit_bad("--model-name: is of a registered model; add --register, or leave it out")
        if register and "program" not in wanted:
            exit_bad("--register: registers the program; add it to --formats")
        if to is None and is_uri(storage):
            exit_bad("--to: must be given for a study in a bucket; name a folder")
        from study.choice import choose
        from study.export import export as export_student

        root = readable(storage, name, trial)
        choice = choose(root, name, trial)
        if register and is_uri(storage) and choice.config.tracking.uri is None:
            exit_bad(
                "--register: needs a study with tracking.uri, since of its own store here is but a copy"
            )
        folder = root / name / "export" if to is None else to.absolute()
        try:
            done = export_student(choice, folder, wanted, fold=fold)
            _print_export(done)
            if register:
                from study.registering import register as register_export

                registered = model_name or name
                _say(f"Registered  {register_export(done, registered)}")
                _say(f'Load it     mlflow.pyfunc.load_model("models:/{registered}@winner")')
        except (ExportError, StorageError) as error:
            print(error, file=sys.stderr)
            raise typer.Exit(NO_USABLE_TRIAL) from None


def predict(
    name: Name,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Picture files.")],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Classes a picture.")] = 5,
    storage: Anywhere = "runs",
) -> None:
    """Say what the winner of the study NAME takes pictures for, prepared as in validation."""
    with bad_input_exits():
        from study.choice import choose
        from trainable import tasks

        choice = choose(readable(storage, name), name)
        unread = False
        for answer in tasks.classify(choice.trial, choice.weights, images, top):
            for problem in answer.problems:
                print(problem, file=sys.stderr)
                unread = True
            if answer.likeliest:
                _say(str(answer.file))
            for label, share in answer.likeliest:
                _say(f"  {100 * share:6.2f} %  {label}")
        if unread:
            raise typer.Exit(BAD_INPUT)


def _formats(text: str) -> list[Format]:
    """What `--formats` names, each once and in their own order."""
    from trainable.tasks import FORMATS, check_packages

    given = [word.strip() for word in text.split(",")]
    if unknown := [word for word in given if word not in FORMATS]:
        known = ", ".join(FORMATS)
        exit_bad(f"--formats: must be of {known}, got {', '.join(unknown)!r}; correct it")
    wanted: list[Format] = [form for form in FORMATS if given.count(form)]
    check_packages(wanted)
    return wanted


def _print_export(done: Export) -> None:
    from study.report.text import size
    from trainable.tasks import AGREEMENT, FILES

    facts, choice = done.facts, done.choice
    lines = [f"{choice.results.name}, {choice.row.label}, exported to {done.folder}"]
    for form, difference in facts.differences.items():
        path = done.folder / FILES[form]
        off = f"logits differ by {difference:.2g}" if difference else "the same logits"
        lines.append(f"  {path.name:20} {size(path.stat().st_size):>8}  {off}")
    if facts.folded:
        lines.append(f"  {facts.folded} of {facts.norms} BatchNorm layers folded into convolutions")
    lines.append(
        f"Compared on {facts.compared} pictures, where the trained student's logits reach {facts.largest_logit:.3g}; "
        f"more than {AGREEMENT * facts.largest_logit:.2g} would be refused."
    )
    lines.append(f"Card        {done.folder / 'MODEL_CARD.md'}")
    _say("\n".join(lines))


def _say(text: str) -> None:
    OUT.print(text, soft_wrap=True, highlight=False, markup=False)
