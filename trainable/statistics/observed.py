"""What is measured of the gradient and the update it makes, in every so many updates.

Of every layer (a parameter's tensor), of every block, and of the whole student: the gradient before noise and
clipping, and the distance ‖θ_{t+1} − θ_t‖ that the update moved the parameters (StableKD, §3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainable import records
from trainable.statistics.gradients import BlockMembership
from trainable.statistics.rows import Rows

MEANS = (
    records.GRAD_NORM,
    records.GRAD_MEAN,
    records.GRAD_STD,
    records.GRAD_ZERO_SHARE,
    records.GRAD_PARAMETER_RATIO,
    records.UPDATE_DISTANCE,
    records.GRAD_UPDATE_RATIO,
)
"""Statistics that are means over the good updates among those observed, in the order of `Observed`'s sums."""


@dataclass(frozen=True)
class Measures:
    """What the updates observed since the last flush were like: each statistic by name, absent if unknown."""

    whole: dict[str, float]
    blocks: dict[str, dict[str, float]]
    layers: dict[str, dict[str, float]]


class Observed:
    """Sums on the device over the observed updates; nothing reaches the host before `flush`.

    Call `gradient` with the gradient of an update, `before` and `after` around the optimizer. Everything of
    a bad update is left out, but for the share of entries that are not finite, which counts them.
    """

    def __init__(self, membership: BlockMembership, names: Sequence[str]) -> None:
        """`names` are those of the parameters."""
        self._membership, self._names = membership, tuple(names)
        self.owners = dict(zip(names, membership.owners, strict=True))
        """The block of each parameter, by name."""
        self._first = len(self._names)
        self._last = self._first + membership.student - 1
        self._rows = Rows(membership.parameters)
        device = membership.parameters[0].device
        sizes = torch.tensor([p.numel() for p in membership.parameters], device=device)
        self._sizes = self._units(sizes.double())
        self._is_empty = (self._sizes == 0).tolist()
        """A block may have no parameters."""
        units = len(self._sizes)
        self._sums = torch.zeros(len(MEANS), units, dtype=torch.float64, device=device)
        self._largest, self._nonfinite = (torch.zeros_like(self._sizes) for _ in range(2))
        self._counts = torch.zeros(3, dtype=torch.float64, device=device)
        """Good updates observed, updates observed, and the sum of first-to-last ratios."""
        self._now: dict[str, Tensor] = {}
        """Of the update that is being observed."""

    def gradient(self, gradients: Sequence[Tensor], bad: Tensor) -> None:
        """Measure an update's gradient, one tensor a parameter."""
        self._rows.fill(gradients)
        sums, squares, nonzero, nonfinite = self._units(torch.stack(self._rows.moments()))
        mean, norm = sums / self._sizes, squares.sqrt()
        self._now = {
            records.GRAD_NORM: norm,
            records.GRAD_MEAN: mean,
            records.GRAD_STD: (squares / self._sizes - mean.square()).clamp(min=0.0).sqrt(),
            records.GRAD_ZERO_SHARE: 1.0 - nonzero / self._sizes,
        }
        layers = self._rows.largest()
        blocks = self._membership.largest(layers)
        largest = torch.cat([layers, blocks, blocks[: self._membership.student].amax().view(1)])
        self._largest.copy_(torch.where(bad, self._largest, self._largest.maximum(largest)))
        self._nonfinite += nonfinite / self._sizes
        good = 1.0 - bad.double()
        ratio = torch.where(norm[self._last] > 0, norm[self._first] / norm[self._last], 0.0)
        self._counts += torch.stack([good, torch.ones_like(good), torch.where(bad, 0.0, ratio)])

    @torch.no_grad()
    def before(self) -> None:
        """Keep the parameters as they are before the optimizer's step."""
        self._rows.fill(self._membership.parameters)
        sizes = self._units(self._rows.squares()).sqrt()
        norm = self._now[records.GRAD_NORM]
        self._now["parameters"] = sizes
        self._now[records.GRAD_PARAMETER_RATIO] = _over(norm, sizes)

    @torch.no_grad()
    def after(self, bad: Tensor) -> None:
        """Measure the distance from what `before` kept, and add the whole update to the sums."""
        self._rows.subtract(self._membership.parameters)
        distance = self._units(self._rows.squares()).sqrt()
        self._now[records.UPDATE_DISTANCE] = distance
        self._now[records.GRAD_UPDATE_RATIO] = _over(distance, self._now["parameters"])
        update = torch.stack([self._now[name] for name in MEANS])
        self._sums += torch.where(bad, torch.zeros_like(update), update)
        self._now = {}

    def flush(self) -> Measures:
        """What was measured since the last call. Waits for the device, once."""
        sums = [self._sums, self._largest, self._nonfinite, self._counts]
        numbers = torch.cat([part.flatten() for part in sums]).cpu()
        for part in sums:
            part.zero_()
        good, looks, ratios = numbers[-3:].tolist()
        columns = numbers[:-3].view(len(MEANS) + 2, -1).T.tolist()
        *found, whole = (
            {} if empty else _means(column, good, looks)
            for column, empty in zip(columns, self._is_empty, strict=True)
        )
        if good and not (self._is_empty[self._first] or self._is_empty[self._last]):
            whole[records.GRAD_FIRST_TO_LAST] = ratios / good
        layers = dict(zip(self._names, found, strict=False))
        blocks = dict(zip(self._membership.names, found[len(layers) :], strict=True))
        return Measures(whole, blocks, layers)

    def state_dict(self) -> dict[str, Any]:
        """The sums since the last flush."""
        return {
            "sums": self._sums,
            "largest": self._largest,
            "nonfinite": self._nonfinite,
            "counts": self._counts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._sums.copy_(state["sums"])
        self._largest.copy_(state["largest"])
        self._nonfinite.copy_(state["nonfinite"])
        self._counts.copy_(state["counts"])

    def _units(self, layers: Tensor) -> Tensor:
        """(…, parameters) sums → those of each parameter, of each block, and of the student, in one tensor."""
        blocks = self._membership.sums(layers)
        whole = blocks[..., : self._membership.student].sum(-1, keepdim=True)
        return torch.cat([layers, blocks, whole], -1)


def _means(column: list[float], good: float, looks: float) -> dict[str, float]:
    """A unit's sums, largest entry and shares → its statistics over `good` of `looks` observed updates."""
    *sums, largest, nonfinite = column
    found: dict[str, float] = {}
    if good:
        found = {name: value / good for name, value in zip(MEANS, sums, strict=True)}
        found[records.GRAD_MAX] = largest
    if looks:
        found[records.GRAD_NONFINITE_SHARE] = nonfinite / looks
    return found


def _over(part: Tensor, whole: Tensor) -> Tensor:
    """`part` / `whole`, and 0 where there is nothing to compare with (a bias that is still 0)."""
    return torch.where(whole > 0, part / whole, torch.zeros_like(part))
