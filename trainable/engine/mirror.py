"""A trial's files in a bucket, where the folder of its node is not seen by the others.

    checkpoints/000000240/…     as in the folder; a checkpoint is whole once its manifest is there
    best.safetensors            the best student
    statistics.parquet, out_of_memory.txt

The bucket is right where the two differ: the trial may have gone on elsewhere in the meantime.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from trainable import ranks
from trainable.bucket import Bucket
from trainable.engine.checkpoint import BEST, CHECKPOINTS, MANIFEST, damage_of
from trainable.records import NOTES, STATISTICS


class NoMirror:
    """Of a folder that everybody sees."""

    def fetch(self) -> None:
        """It is what it should be."""

    def keep(self) -> None:
        """It is where it should be."""


class Mirror:
    """Keeps what one trial needs to go on, and what is wanted of it, in its own part of a bucket."""

    def __init__(self, folder: Path, bucket: Bucket) -> None:
        self._folder, self._bucket = folder, bucket

    def fetch(self) -> None:
        """Make the folder what the bucket has."""
        bucket, checkpoints = self._bucket, self._folder / CHECKPOINTS
        there = bucket.names(CHECKPOINTS)
        whole = {Path(name).parent.name for name in there if name.endswith(f"/{MANIFEST}")}
        for path in checkpoints.glob("*"):
            if path.name not in whole or not self._is_the_same(path) or damage_of(path):
                shutil.rmtree(path)
        for number in sorted(whole):
            if not (checkpoints / number).exists():
                self._fetch_checkpoint(
                    number, [name for name in there if Path(name).parent.name == number]
                )
        for name in (BEST, STATISTICS):
            if not bucket.fetch(name, self._folder / name):
                (self._folder / name).unlink(missing_ok=True)
        if not (self._folder / NOTES).exists():
            bucket.fetch(NOTES, self._folder / NOTES)

    def keep(self) -> None:
        """Bring the bucket to what the folder has; when this returns, another node can go on from it.

        Statistics come before the checkpoint that they belong to: of epochs that are trained again they are written
        anew, and of others not.
        """
        bucket, checkpoints = self._bucket, self._folder / CHECKPOINTS
        there = bucket.names(CHECKPOINTS)
        here = sorted(path for path in checkpoints.glob("[0-9]*") if path.is_dir())
        for name in (STATISTICS, NOTES):
            if (self._folder / name).exists():
                bucket.put(name, self._folder / name)
        for checkpoint in here:
            if not self._is_the_same(checkpoint):
                self._keep_checkpoint(checkpoint)
        if here and (here[-1] / BEST).exists():
            bucket.copy(f"{CHECKPOINTS}/{here[-1].name}/{BEST}", BEST)
        kept = {path.name for path in here}
        # The manifest first: without it what is left of a checkpoint is none.
        for name in sorted(there, key=lambda name: not name.endswith(MANIFEST)):
            if Path(name).parent.name not in kept:
                bucket.remove(name)

    def _is_the_same(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is the bucket's: its manifest has the checksums of all files."""
        manifest = checkpoint / MANIFEST
        there = self._bucket.read(f"{CHECKPOINTS}/{checkpoint.name}/{MANIFEST}")
        return manifest.exists() and manifest.read_bytes() == there

    def _fetch_checkpoint(self, number: str, names: list[str]) -> None:
        temporary = self._folder / CHECKPOINTS / f".{number}.tmp"
        for name in names:
            self._bucket.fetch(name, temporary / Path(name).name)
        temporary.replace(temporary.with_name(number))

    def _keep_checkpoint(self, checkpoint: Path) -> None:
        place = f"{CHECKPOINTS}/{checkpoint.name}"
        self._bucket.remove(f"{place}/{MANIFEST}")  # of one that was damaged
        for path in sorted(checkpoint.iterdir(), key=lambda path: path.name == MANIFEST):
            self._bucket.put(f"{place}/{path.name}", path)


def mirror_of(folder: Path, bucket: str | None) -> Mirror | NoMirror:
    """The mirror of a trial's folder; rank 0's, whose node all ranks are on, does it for all."""
    if bucket is None or ranks.rank() != 0:
        return NoMirror()
    return Mirror(folder, Bucket(bucket))


def clear_kept(bucket: Bucket, trial: str, *, keep_best: bool) -> None:
    """Remove what is kept of a trial that is over, whose names begin with `trial`; see `checkpoint.clear`."""
    names = bucket.names(f"{trial}/{CHECKPOINTS}")
    for name in sorted(names, key=lambda name: not name.endswith(MANIFEST)):
        bucket.remove(name)
    if not keep_best:
        bucket.remove(f"{trial}/{BEST}")
