"""Dropout drawn from the client seed, the round, the client and the step.

So repeating a round, after an interruption or on other threads, gives the same
bits. TFF tells clients neither their number nor the round, so each batch
carries its key, as additional columns of its ids.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.layers import gated_cell, gated_rnn
from si_federated.layers.dropout_masks import Dropout, keyed_dropout

# The columns after the ids: round and seed in one word, client and step.
_WORDS = 3


def round_word(*, seed: int, round_num: int) -> int:
  """Returns the word of a round, of 32 bits.

  Args:
    seed: The client seed.
    round_num: The round.
  """
  # The last number separates this stream from those of orders and cohorts.
  state = np.random.SeedSequence([seed, round_num, 2]).generate_state(1)
  return int(state.astype(np.int32)[0])


def add_keys(
  batches: tf.data.Dataset, *, word: int, client: int
) -> tf.data.Dataset:
  """Adds the keys to a client's batches.

  Args:
    batches: Batches of ids `[b, T]` int32 and labels.
    word: The round's word; see `round_word`.
    client: The client's number.

  Returns:
    The batches, with ids `[b, T + 3]`.
  """

  def add(step, batch):
    ids, labels = batch
    words = tf.stack([word, client, tf.cast(step, tf.int32)])
    columns = tf.tile(words[tf.newaxis], [tf.shape(ids)[0], 1])
    return tf.concat([ids, columns], axis=1), labels

  return batches.enumerate().map(add)


def add_keys_to_stack(
  ids: np.ndarray, number: int, *, word: int, client: int
) -> np.ndarray:
  """Adds the keys to a client's stacked batches, as `add_keys` does.

  Args:
    ids: The ids, `[S, b, T]` int32.
    number: The number of examples; those after it are padding.
    word: The round's word; see `round_word`.
    client: The client's number.

  Returns:
    The ids with keys, `[S, b, T + 3]`; rows of padding stay zero.
  """
  steps, rows, _ = ids.shape
  keys = np.zeros([steps, rows, _WORDS], np.int32)
  keys[..., :2] = word, client
  keys[..., 2] = np.arange(steps)[:, np.newaxis]
  keys.reshape([-1, _WORDS])[number:] = 0
  return np.concatenate([ids, keys], axis=-1)


def split(x: tf.Tensor, length: int) -> tuple[tf.Tensor, tf.Tensor | None]:
  """Separates ids from the key that `add_keys` has added.

  Args:
    x: `[b, T + 3]`, or `[b, T]` without a key.
    length: T.

  Returns:
    The ids, and the key's words, `[3]`, or None.
  """
  if x.shape[1] == length:
    return x, None
  return x[:, :length], x[0, length:]


def drawing(words: tf.Tensor | None) -> contextlib.AbstractContextManager:
  """Returns a scope in which layers draw from the key, if there is one."""
  return contextlib.nullcontext() if words is None else keyed_dropout(words)


def takes_keys(keras_model: tf.keras.Model) -> bool:
  """Returns whether all dropout of a model can draw from keys.

  Keras's recurrent layers and variants of dropout draw from generators.

  Args:
    keras_model: The model.
  """
  for layer in keras_model._flatten_layers():
    if isinstance(layer, tf.keras.layers.Dropout):
      if layer.rate and not isinstance(layer, Dropout) and not _is_plain(layer):
        return False
    elif getattr(layer, 'recurrent_dropout', None) is not None:
      own = isinstance(layer, (gated_cell.GatedCell, gated_rnn.GatedRNN))
      if not own and (layer.dropout or layer.recurrent_dropout):
        return False
  return True


def draw_from_keys(keras_model: tf.keras.Model) -> tf.keras.Model:
  """Makes a model's dropout layers of Keras, if any, draw from keys.

  Models of other packages create their Keras layers themselves, and other
  layers refer to these, so no layer can be replaced.

  Args:
    keras_model: The model, changed in place.

  Returns:
    The same model.
  """
  for layer in keras_model._flatten_layers():
    if _is_plain(layer):
      layer.__class__ = Dropout  # which differs only in `call`
  return keras_model


def draws_at_random(keras_model: tf.keras.Model) -> bool:
  """Returns whether training draws random numbers, as dropout does.

  Args:
    keras_model: The model.
  """
  return any(
    getattr(layer, name, 0)
    for layer in keras_model._flatten_layers()
    for name in ('dropout', 'recurrent_dropout', 'rate')
    if name != 'rate' or isinstance(layer, tf.keras.layers.Dropout)
  )


def _is_plain(layer: tf.keras.layers.Layer) -> bool:
  return type(layer) is tf.keras.layers.Dropout and layer.noise_shape is None


def spec_with_keys(ids: tf.TensorSpec) -> tf.TensorSpec:
  """Returns the spec of a batch's ids after `add_keys`."""
  return tf.TensorSpec([None, ids.shape[1] + _WORDS], ids.dtype)


def input_spec_with_keys(
  model: tff.learning.models.FunctionalModel,
) -> tuple[Any, Any]:
  """Returns the specs of a model's batches after `add_keys`."""
  ids, labels = model.input_spec
  return spec_with_keys(ids), labels
