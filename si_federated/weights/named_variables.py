"""The variables of a Keras model by stable name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from si_federated.algorithms.variable_creation import Recording
from si_federated.models import transforms


def build_named(
  build: Callable[[], tf.keras.Model],
) -> tuple[tf.keras.Model, dict[str, tf.Variable]]:
  """Builds a model and names its variables.

  Args:
    build: Returns a new model.

  Returns:
    The model and its variables by stable name, in the order of creation. This
    is the order of TFF's functional models and of checkpoints, and can differ
    from that of the layers.
  """
  with Recording() as created:
    model = build()
  variables = created.variables_of(model)
  names = transforms.stable_names(variable.name for variable in variables)
  return model, dict(zip(names, variables))


def assign(
  variables: Mapping[str, tf.Variable], weights: Mapping[str, np.ndarray]
) -> None:
  """Assigns weights to the variables of these names; others are unchanged."""
  for name, weight in weights.items():
    variables[name].assign(tf.cast(weight, variables[name].dtype))
