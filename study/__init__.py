"""A study: search over distillation trials with Ray Tune, Optuna and MLflow."""
