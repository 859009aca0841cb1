"""The loop: step, precision, guard, schedule, evaluation, checkpoints."""
