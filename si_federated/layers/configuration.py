"""The configuration of a layer, read off its constructor's signature."""

from __future__ import annotations

import inspect
from typing import Any, Dict, Type

import tensorflow as tf

from si_federated.layers import blending

_SERIALIZERS = {
  'activation': blending.serialize,
  'initializer': tf.keras.initializers.serialize,
  'regularizer': tf.keras.regularizers.serialize,
  'constraint': tf.keras.constraints.serialize,
}


def constructor_arguments(
  layer: tf.keras.layers.Layer, owner: Type[tf.keras.layers.Layer]
) -> Dict[str, Any]:
  """Returns the arguments of a constructor, as `get_config` needs them.

  Args:
    layer: The layer; it keeps each argument as an attribute of the same name.
    owner: The class whose constructor takes the arguments.

  Returns:
    Name to value. Activations, initializers, regularizers and constraints are
    recognised by the last word of their name, and serialized.
  """
  config = {}
  for name, parameter in inspect.signature(owner.__init__).parameters.items():
    if name != 'self' and parameter.kind is not parameter.VAR_KEYWORD:
      serialize = _SERIALIZERS.get(name.rpartition('_')[2], lambda value: value)
      config[name] = serialize(getattr(layer, name))
  return config
