"""What must hold between the keys of a trial; rules about one key alone are on its field.

Every rule names the keys that it reads. So validation can leave out the rules that read a wrong value,
and try every combination of searched values that a rule can tell apart.
"""

from __future__ import annotations

from collections.abc import Collection

from trainable.config import TrialConfig
from trainable.errors import Problem
from trainable.rules import data, distill, training
from trainable.rules.rule import Rule

__all__ = ["RULES", "Rule", "problems"]

RULES: tuple[Rule, ...] = (*distill.RULES, *training.RULES, *data.RULES)


def problems(
    config: TrialConfig, blocks: int | None = None, unknown: Collection[str] = ()
) -> list[Problem]:
    """All that is wrong between the keys of a trial; rules that read an `unknown` key are left out."""
    rules = [rule for rule in RULES if not rule.reads_any(unknown)]
    return [problem for rule in rules for problem in rule.check(config, blocks)]
