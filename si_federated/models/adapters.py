"""Low-rank adapters on the kernels of any Keras model, and their merging."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
import tensorflow as tf

from si_federated.layers import checks, legacy_keras, lora
from si_federated.models.inherited_options import inherit_options
from si_federated.models.transforms import (
  freeze_variables,
  match_names,
  stable_names,
)

# Initializers of A. Both give columns of length about one.
INITIALIZERS: Dict[str, Any] = {
  'random': tf.keras.initializers.LecunNormal,
  'orthogonal': tf.keras.initializers.Orthogonal,
}
# Kernels of our layers and Keras layers, but not embeddings, norms and biases.
_KERNELS = r'(^|_)kernel$'


@dataclasses.dataclass(frozen=True)
class _Place:
  """A weight in a model: an attribute of a layer inside the layer `top`."""

  top: tf.keras.layers.Layer
  layer: tf.keras.layers.Layer
  attribute: str
  path: str

  @property
  def name(self) -> str:
    return f'{self.path}/{self.attribute}'

  @property
  def weight(self) -> Any:
    return getattr(self.layer, self.attribute)


def _adapt(
  model: tf.keras.Model,
  train_a: bool,
  *,
  rank: int = 8,
  alpha: Optional[float] = None,
  variables: Optional[str] = None,
  trained: Optional[str] = None,
  initializer: str = 'random',
) -> tf.keras.Model:
  legacy_keras.check_keras_2('Low-rank adaptation of a model')
  checks.check_count('rank', rank)
  alpha = rank if alpha is None else alpha
  if not alpha > 0:
    raise ValueError(f'alpha must be above 0, but it is {alpha}.')
  if initializer not in INITIALIZERS:
    raise ValueError(
      f'initializer must be {" or ".join(INITIALIZERS)}, but it is '
      f'{initializer!r}.'
    )
  if any(_adapters(layer) for layer in model.submodules):
    raise ValueError('The model has adapters already; merge them first.')
  places = _choose(_kernels(model), rank, variables)
  # TFF builds the model once more around tensors, which cannot be frozen.
  if all(isinstance(weight, tf.Variable) for weight in model.variables):
    names = stable_names(weight.name for weight in model.variables)
    kept = set(match_names(names, trained)) if trained is not None else set()
    freeze_variables(
      model, [w for n, w in zip(names, model.variables) if n not in kept]
    )
  by_top: Dict[int, List[_Place]] = {}
  for place in places:
    _add_factors(
      place, rank, alpha / rank, train_a, INITIALIZERS[initializer]()
    )
    if type(place.layer) is tf.keras.layers.Dense:
      place.layer.call = functools.partial(_dense_call, place.layer)
    else:
      by_top.setdefault(id(place.top), []).append(place)
  for group in by_top.values():
    _call_with_sums(group)
  return model


@inherit_options(_adapt)
def lora_model(model: tf.keras.Model, **options: Any) -> tf.keras.Model:
  """Freezes a model and trains low-rank additions to its kernels (LoRA).

  A kernel W `[in, out]` becomes W + alpha / rank * A B with W frozen, A `[in,
  rank]`, B `[rank, out]` initially zero, so that the model's outputs do not
  change at first (Hu et al., arXiv 2106.09685, where these are transposed).

  Args:
    model: The model; it is changed.
    rank: Columns of A.
    alpha: The factor of the addition, times the rank; the rank if `None`.
    variables: A regular expression found in the names of the kernels to adapt,
      such as `query|value`; if `None`, all kernels with more entries than their
      factors. Names are the layers' and the weight's, such as
      `block_1/attention/query/kernel`.
    trained: A regular expression found in the names of the other variables to
      train directly, such as a classifier's head; none if `None`. For these
      names see `stable_names`.
    initializer: Initializer of A: `random` (normal of variance 1 / in) or
      `orthogonal`.
    **options: The options above.

  Returns:
    The model.

  Raises:
    ValueError: If an option is out of range or an expression matches nothing.
  """
  return _adapt(model, True, **options)


@inherit_options(_adapt)
def ffa_lora_model(model: tf.keras.Model, **options: Any) -> tf.keras.Model:
  """Freezes a model and trains B of low-rank additions A B (FFA-LoRA).

  Like `lora_model`, but A keeps its initial values, the same on all clients, so
  that averages of updates, and noise, act linearly on the addition and updates
  are half as large (Sun et al., arXiv 2403.12313). Arguments, result and errors
  are those of `lora_model`.
  """
  return _adapt(model, False, **options)


def _kernels(model: tf.keras.Model) -> List[_Place]:
  """Returns the weights of a model that have two or more axes, each once."""
  found: List[_Place] = []
  seen = set()

  def visit(top, layer, path):
    own = {id(weight) for weight in layer._trainable_weights}
    for attribute, weight in vars(layer).items():
      if id(weight) in own and id(weight) not in seen:
        seen.add(id(weight))
        if len(weight.shape) >= 2:
          found.append(_Place(top, layer, attribute, path))
    for part in layer._flatten_layers(recursive=False, include_self=False):
      visit(top, part, f'{path}/{part.name}')

  for top in model._flatten_layers(recursive=False, include_self=False):
    visit(top, top, top.name)
  # Keras numbers unnamed layers across the whole process.
  names = stable_names(place.name for place in found)
  return [
    dataclasses.replace(place, path=name.rpartition('/')[0])
    for place, name in zip(found, names)
  ]


def _choose(
  places: List[_Place], rank: int, variables: Optional[str]
) -> List[_Place]:
  if variables is not None:
    names = [place.name for place in places]
    try:
      chosen = set(match_names(names, variables))
    except ValueError:
      if not all(re.search(variables, name) for name in names):
        raise
      chosen = set(names)
    return [place for place in places if place.name in chosen]
  smaller = []
  for place in places:
    rows, columns = lora.matrix_shape(place.weight.shape)
    is_smaller = rank * (rows + columns) < rows * columns
    if is_smaller and re.search(_KERNELS, place.attribute):
      smaller.append(place)
  if not smaller:
    raise ValueError(
      f'rank={rank} gives factors with as many entries as the kernels of this '
      'model, or more: choose a smaller rank.'
    )
  return smaller


def _add_factors(
  place: _Place,
  rank: int,
  scale: float,
  train_a: bool,
  initializer: tf.keras.initializers.Initializer,
) -> None:
  rows, columns = lora.matrix_shape(place.weight.shape)
  layer = place.layer
  # Keras does not name weights after their path in layers that are built by
  # hand.
  name = getattr(place.weight, 'name', place.name).partition(':')[0]
  with tf.name_scope(f'{name.rpartition("/")[0] or layer.name}/'):
    suffix = '' if place.attribute == 'kernel' else f'_{place.attribute}'
    a = layer.add_weight(
      name=f'lora_a{suffix}',
      shape=(rows, rank),
      initializer=initializer,
      trainable=train_a,
    )
    b = layer.add_weight(
      name=f'lora_b{suffix}', shape=(rank, columns), initializer='zeros'
    )
  layer.__dict__.setdefault('_lora', {})[place.attribute] = (a, b, scale)


def _adapters(layer: Any) -> Mapping[str, Any]:
  return vars(layer).get('_lora', {})


def _dense_call(layer: tf.keras.layers.Dense, inputs: tf.Tensor) -> tf.Tensor:
  a, b, scale = _adapters(layer)['kernel']
  inputs = tf.cast(inputs, layer.compute_dtype)
  bias = layer.bias if layer.use_bias else None
  outputs = lora.adapted_dense(inputs, layer.kernel, a, b, scale, bias)
  return outputs if layer.activation is None else layer.activation(outputs)


def _call_with_sums(places: List[_Place]) -> None:
  """Replaces W by W + scale * A B during a top-level layer's calls.

  Layers other than `Dense` use their kernels in various ways, and not always
  inside the `call` of the layer that owns them.
  """
  top = places[0].top
  original = top.call

  def call(*args, **kwargs):
    before = [place.weight for place in places]
    # Bypasses Keras, which tracks attributes.
    try:
      for place, weight in zip(places, before):
        a, b, scale = _adapters(place.layer)[place.attribute]
        summed = weight + lora.update(a, b, scale, weight.shape)
        object.__setattr__(place.layer, place.attribute, summed)
      return original(*args, **kwargs)
    finally:
      for place, weight in zip(places, before):
        object.__setattr__(place.layer, place.attribute, weight)

  top.call = call


@dataclasses.dataclass(frozen=True)
class Adapter:
  """A kernel and the factors learned in its place.

  Attributes:
    kernel: W.
    a: A, `[in, rank]`.
    b: B, `[rank, out]`.
    scale: The factor alpha / rank of their product.
  """

  kernel: tf.Variable
  a: tf.Variable
  b: tf.Variable
  scale: float


def adapters_of(model: tf.keras.Model) -> List[Adapter]:
  """Returns the adapters of a model, an empty list if it has none."""
  return [
    Adapter(getattr(layer, attribute), *parts)
    for layer in model.submodules
    for attribute, parts in _adapters(layer).items()
  ]


def merge_weights(
  model: tf.keras.Model,
  variables: Mapping[str, tf.Variable],
  weights: Mapping[str, np.ndarray],
) -> Dict[str, np.ndarray]:
  """Returns plain weights, with W + alpha / rank * A B for W, A and B.

  Args:
    model: A model; without adapters, the weights are returned unchanged.
    variables: Its variables by name.
    weights: The values of the variables, by the same names.

  Returns:
    The weights of the model as it was before `lora_model`.
  """
  names = {id(variable): name for name, variable in variables.items()}
  merged = dict(weights)
  for adapter in adapters_of(model):
    kernel, a, b = (
      names[id(v)] for v in (adapter.kernel, adapter.a, adapter.b)
    )
    product = merged.pop(a).astype(np.float64) @ merged.pop(b)
    before = merged[kernel]
    merged[kernel] = (
      before + adapter.scale * product.reshape(before.shape)
    ).astype(before.dtype)
  return merged


def without_adapters(
  model: tf.keras.Model,
  variables: Mapping[str, tf.Variable],
  values: Mapping[str, Any],
) -> Dict[str, Any]:
  """Drops the entries of A and B from a mapping by variable name.

  Args:
    model: A model.
    variables: Its variables by name.
    values: A value for each variable, by the same names.
  """
  factors = {id(v) for item in adapters_of(model) for v in (item.a, item.b)}
  return {
    name: value
    for name, value in values.items()
    if id(variables[name]) not in factors
  }


def merge_adapters(model: tf.keras.Model) -> None:
  """Adds the adapters' products to the kernels and sets B to zero.

  The model's outputs do not change. To remove the adapters, load its other
  weights into a model that is built without them.

  Args:
    model: A model made by `lora_model` or `ffa_lora_model`; it is changed.
  """
  for adapter in adapters_of(model):
    shape = adapter.kernel.shape
    adapter.kernel.assign_add(
      lora.update(adapter.a, adapter.b, adapter.scale, shape)
    )
    adapter.b.assign(tf.zeros_like(adapter.b))
