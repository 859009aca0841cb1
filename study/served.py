"""A registered student's own code. MLflow keeps this file beside the program, and runs it where the model is loaded.

So it imports nothing of kd-study, which need not be there.
"""

# pyright: reportMissingParameterType=false, reportUnknownParameterType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class Student(PythonModel):
    """uint8 pictures (batch, channels, height, width) → logits, float32 (batch, classes)."""

    _skip_type_hint_validation = True
    """MLflow 3.17 has no type for a batch of pictures, and warns where there is none: the signature tells theirs."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the program, on the CPU."""
        self._program: Any = torch.export.load(context.artifacts["program"]).module()

    def predict(self, context, model_input, params=None):
        """The logits; classes are named in the model's metadata, in their order."""
        del context, params
        with torch.no_grad():
            return self._program(torch.from_numpy(np.ascontiguousarray(model_input))).numpy()


set_model(Student())
