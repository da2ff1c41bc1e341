"""Changes to a model before training: names of variables, and freezing."""

from __future__ import annotations

import collections
import re
from typing import Any, Dict, Iterable, List, Sequence

import tensorflow as tf

from si_federated.layers import legacy_keras

# The most names that a message lists.
_LISTED = 40


def stable_names(names: Iterable[str]) -> List[str]:
  """Returns variable names that are the same each time a model is built.

  Keras numbers unnamed layers across the whole process: the cell of a second
  CIFG is `cifg_cell_1`. Such numbers inside a name are dropped, unless two
  variables would then share a name.

  Args:
    names: Names of variables, as Keras gives them.

  Returns:
    The names in the same order, without `:0`; duplicates end with `_2`, `_3`
    and so on.

  >>> stable_names(['recurrent_1/cifg_cell_7/kernel:0', 'logits/bias:0'])
  ['recurrent_1/cifg_cell/kernel', 'logits/bias']
  """
  whole = [name.partition(':')[0] for name in names]
  short = []
  for name in whole:
    # The first part, a layer, and the last, a weight, are named explicitly.
    first, *inner = name.split('/')
    inner[:-1] = [re.sub(r'_[0-9]+$', '', part) for part in inner[:-1]]
    short.append('/'.join([first, *inner]))
  counts = collections.Counter(short)
  chosen = [s if counts[s] == 1 else w for s, w in zip(short, whole)]
  # Third-party layers may give several variables the same name.
  seen: Dict[str, int] = {}
  for index, name in enumerate(chosen):
    seen[name] = seen.get(name, 0) + 1
    if seen[name] > 1:
      chosen[index] = f'{name}_{seen[name]}'
  return chosen


def match_names(names: Sequence[str], pattern: Any) -> List[str]:
  """Returns the names in which a regular expression is found.

  Args:
    names: Names of variables.
    pattern: The regular expression; it may match any part of a name.

  Returns:
    Some of the names, in order.

  Raises:
    ValueError: If it is not a regular expression, or matches no name or all of
      them; the message lists the names.
  """
  if not isinstance(pattern, str) or not pattern:
    raise ValueError(
      f'{pattern!r} is not a regular expression for names of variables.'
    )
  try:
    expression = re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f'{pattern!r} is not a regular expression: {error}.'
    ) from error
  found = [name for name in names if expression.search(name)]
  if not found or len(found) == len(names):
    how = 'all variables' if found else 'no variable'
    more = len(names) - _LISTED
    raise ValueError(
      f'{pattern!r} matches {how} of the model, but must select some of '
      f'{", ".join(names[:_LISTED])}'
      + (f' and {more} more.' if more > 0 else '.')
    )
  return found


def none(model: tf.keras.Model) -> tf.keras.Model:
  """Returns the model unchanged."""
  return model


def freeze(model: tf.keras.Model, *, variables: str) -> tf.keras.Model:
  """Freezes variables at their initial values.

  Keras freezes whole layers; this freezes single variables. A frozen variable
  becomes one of the model's non-trainable ones: clients receive it, but neither
  compute its gradient nor send it back.

  Args:
    model: The model; it is changed.
    variables: A regular expression found in the names of the variables to
      freeze, such as `embedding|block_1/`; see `stable_names` for the names.

  Returns:
    The model.

  Raises:
    ValueError: If the expression matches no variable or all of them, or with
      Keras 3.
  """
  legacy_keras.check_keras_2('Freezing single variables')
  weights = model.variables
  if not all(isinstance(weight, tf.Variable) for weight in weights):
    # TFF builds the model once more around tensors, which cannot be frozen.
    return model
  names = stable_names(weight.name for weight in weights)
  chosen = set(match_names(names, variables))
  freeze_variables(model, [w for n, w in zip(names, weights) if n in chosen])
  return model


def freeze_variables(
  model: tf.keras.Model, variables: Iterable[tf.Variable]
) -> None:
  """Makes single variables non-trainable, unlike Keras, which freezes layers.

  Args:
    model: The model; it is changed.
    variables: Some of its variables.
  """
  frozen = {id(variable) for variable in variables}
  for part in model.submodules:
    if not isinstance(part, tf.keras.layers.Layer):
      continue
    own = part._trainable_weights
    moved = [weight for weight in own if id(weight) in frozen]
    own[:] = [weight for weight in own if id(weight) not in frozen]
    part._non_trainable_weights.extend(moved)
