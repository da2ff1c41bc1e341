"""Recording the variables of a Keras model as it is built, and placeholders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Optional

import tensorflow as tf


class Recording:
  """The variables created in a `with` block.

  TFF's functional models and checkpoints keep weights in the order of creation,
  which can differ from that of the layers.
  """

  def __init__(self):
    self._created: list[tf.Variable] = []
    self._scope: Any = None

  def __enter__(self) -> Recording:
    self._scope = tf.variable_creator_scope(self._create)
    self._scope.__enter__()
    return self

  def __exit__(self, *error: Any) -> None:
    self._scope.__exit__(*error)

  def _create(
    self, next_creator: Callable[..., tf.Variable], **options: Any
  ) -> tf.Variable:
    self._created.append(next_creator(**options))
    return self._created[-1]

  def variables_of(self, model: tf.keras.Model) -> list[tf.Variable]:
    """Returns a model's variables in the order of creation."""
    own = {id(variable) for variable in model.variables}
    return [variable for variable in self._created if id(variable) in own]

  def trainable_variables_of(self, model: tf.keras.Model) -> list[tf.Variable]:
    """Returns a model's trainable variables in the order of creation."""
    own = {id(variable) for variable in model.trainable_variables}
    return [variable for variable in self._created if id(variable) in own]


@contextlib.contextmanager
def zero_values(dtype: Optional[str] = None) -> Iterator[None]:
  """Initializes variables created in the block with zeros.

  Random initializers are slow for large models, and some don't support
  bfloat16.

  Args:
    dtype: The only type to initialize with zeros; None stands for all.
  """

  def zeros(next_creator: Callable[..., tf.Variable], **options: Any):
    shape, own = options.get('shape'), options.get('dtype')
    if None not in (shape, own) and dtype in (None, own):
      options['initial_value'] = lambda: tf.zeros(shape, own)
    return next_creator(**options)

  with tf.variable_creator_scope(zeros):
    yield
