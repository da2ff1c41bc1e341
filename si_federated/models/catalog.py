"""Descriptions of all models: options, weight shapes, parameter counts."""

from __future__ import annotations

import collections
import inspect
import re
from typing import Dict, Iterator, List, Optional, Tuple

import tensorflow as tf

from si_federated.models import MODELS

# The vocabulary of the published sizes: 4,000 subwords and four special ids.
PUBLISHED_VOCAB_SIZE = 4004
_CLASSES = 10
SIZES: Tuple[Optional[str], ...] = (None, 'small', 'large')


def weight_groups(model: tf.keras.Model) -> Dict[str, List[Tuple[int, ...]]]:
  """Returns the shapes of a model's weights, grouped by numbered layers.

  Args:
    model: A built model.

  Returns:
    Name to shapes; `*` stands for the number at the end of a layer's name.
  """
  groups: Dict[str, List[Tuple[int, ...]]] = collections.OrderedDict()
  for weight in model.trainable_weights:
    layer, _, rest = weight.name.partition(':')[0].partition('/')
    name = f'{re.sub(r"_[0-9]+$", "_*", layer)}/{rest}'
    groups.setdefault(name, []).append(tuple(weight.shape))
  return groups


def describe(vocab_size: int = PUBLISHED_VOCAB_SIZE) -> Iterator[str]:
  """Describes every model at its default, small and large size.

  Args:
    vocab_size: V, the number of ids.

  Yields:
    Lines of text.
  """
  yield (
    f'Parameters are counted for {vocab_size:,} ids, those of classifiers for '
    f'{_CLASSES} classes.'
  )
  for name, build in MODELS.items():
    documentation = inspect.getdoc(build) or ''
    parameters = inspect.signature(build).parameters
    given = {'vocab_size': vocab_size, 'num_classes': _CLASSES}
    given = {key: given[key] for key in given if key in parameters}
    options = ', '.join(
      f'{option}={parameter.default}'
      for option, parameter in parameters.items()
      if option not in given
    )
    yield ''
    yield f'{name}: {documentation.splitlines()[0]}'
    yield f'  options: {options}'
    if 'num_classes' in given:
      try:
        yield from _describe_weights('default', build(**given))
      except ValueError as error:  # A package is missing.
        yield f'  {error}'
      continue
    for size in SIZES:
      with tf.Graph().as_default():  # In a graph no weight is drawn.
        model = build(**given, size=size)
      label = 'default' if size is None else f'size={size}'
      yield from _describe_weights(label, model)


def _describe_weights(label: str, model: tf.keras.Model) -> Iterator[str]:
  yield f'  {label}: {model.count_params():,} parameters'
  for group, shapes in weight_groups(model).items():
    count = f'{len(shapes)} x ' if len(shapes) > 1 else ''
    kinds = ' or '.join(map(str, dict.fromkeys(shapes)))
    yield f'    {group:<44} {count}{kinds}'
