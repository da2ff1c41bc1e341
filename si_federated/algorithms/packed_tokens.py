"""Computes logits only for tokens with a label, not for padding.

Real sentences are on average a third shorter than their padded length, and
logits over a vocabulary make up much of a language model's work.
"""

from __future__ import annotations

import tensorflow as tf

from si_federated.layers.static_graphs import shapes_are_static

_PADDING = 0


class _LabelledPositions(tf.keras.layers.Layer):
  """Ids `[B, T]` -> positions `[N]` of those that are followed by a label."""

  def __init__(self, end_of_sentence: int, **kwargs):
    super().__init__(**kwargs)
    self._end_of_sentence = end_of_sentence

  def call(self, inputs):
    flat = tf.reshape(inputs, [-1])
    # Not `!=`, which compares identities in the graphs that TFF traces.
    labelled = tf.not_equal(flat, _PADDING) & tf.not_equal(
      flat, self._end_of_sentence
    )
    if shapes_are_static():
      # One position a token, negative for tokens without a label.
      positions = tf.range(tf.size(flat))
      return tf.where(labelled, positions, -1 - positions)
    return tf.cast(tf.where(labelled)[:, 0], tf.int32)


class _GatherTokens(tf.keras.layers.Layer):
  def call(self, inputs):
    return gather_tokens(*inputs)


def gather_tokens(values: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
  """Returns the values of some tokens of a batch.

  Args:
    values: `[B, T, ...]`.
    positions: `[N]`, counted row by row.

  Returns:
    `[N, ...]`.
  """
  shape = tf.concat([[-1], tf.shape(values)[2:]], axis=0)
  flat = tf.reshape(values, shape)
  flat.set_shape([None, *values.shape[2:]])
  return flat if shapes_are_static() else tf.gather(flat, positions)


def _is_position_wise(layer: tf.keras.layers.Layer) -> bool:
  return getattr(
    layer, 'is_position_wise', type(layer) is tf.keras.layers.Dense
  )


def pack_tokens(
  model: tf.keras.Model, *, end_of_sentence: int
) -> tf.keras.Model:
  """Makes a language model compute the logits of labelled tokens only.

  The last layers that treat positions independently are called on the gathered
  tokens as one row. Such layers are dense layers, and those whose attribute
  `is_position_wise` is true.

  Args:
    model: A functional model from ids `[B, T]`, padded with 0, to logits
      `[B, T, V]`.
    end_of_sentence: The id that ends a sentence; no label follows it.

  Returns:
    A model with the same weights, from ids to the positions `[N]` of the ids
    that have a label, counted row by row, and the logits `[N, V]` there.
  """
  (ids,) = model.inputs
  (hidden,) = model.outputs
  head = []
  while True:
    layer, index, _ = hidden._keras_history
    node = layer.inbound_nodes[index]
    if not _is_position_wise(layer) or len(node.keras_inputs) != 1:
      break
    head.append((layer, node.call_kwargs))
    (hidden,) = node.keras_inputs
  positions = _LabelledPositions(end_of_sentence, name='positions')(ids)
  packed = _GatherTokens(name='packed')((hidden, positions))
  for layer, arguments in reversed(head):
    packed = layer(packed, **arguments)
  return tf.keras.Model(ids, [positions, packed], name=model.name)
