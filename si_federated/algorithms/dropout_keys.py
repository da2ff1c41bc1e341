"""Dropout drawn from the client seed, the round, the client and the step.

A round that is done again, after an interruption or on other threads, then
gives the same bits. TFF gives clients neither a number nor the round, so that
each batch brings its key, as further columns of its ids.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.layers.dropout_masks import keyed_dropout

# The columns after the ids: round and seed in one word, client and step.
_WORDS = 3


def round_word(*, seed: int, round_num: int) -> int:
  """Returns the word of a round, from 32 bits.

  Args:
    seed: The client seed.
    round_num: The round.
  """
  # The last word keeps this stream apart from those of orders and cohorts.
  state = np.random.SeedSequence([seed, round_num, 2]).generate_state(1)
  return int(state.astype(np.int32)[0])


def add_keys(
  batches: tf.data.Dataset, *, word: int, client: int
) -> tf.data.Dataset:
  """Adds the keys to a client's batches.

  Args:
    batches: Of ids `[b, T]` int32 and labels.
    word: The round's; see `round_word`.
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


def split(x: tf.Tensor, length: int) -> tuple[tf.Tensor, tf.Tensor | None]:
  """Splits what `add_keys` has joined.

  Args:
    x: `[b, T + 3]`, or `[b, T]` without keys.
    length: T.

  Returns:
    The ids and the key's words, `[3]`, or None.
  """
  if x.shape[1] == length:
    return x, None
  return x[:, :length], x[0, length:]


def drawing(words: tf.Tensor | None) -> contextlib.AbstractContextManager:
  """Returns a scope in which layers draw from a key, if there is one."""
  return contextlib.nullcontext() if words is None else keyed_dropout(words)


def input_spec_with_keys(
  model: tff.learning.models.FunctionalModel,
) -> tuple[Any, Any]:
  """Returns the specs of a model's batches after `add_keys`."""
  ids, labels = model.input_spec
  return tf.TensorSpec([None, ids.shape[1] + _WORDS], ids.dtype), labels
