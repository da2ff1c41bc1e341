"""Child process: training steps of our Transformers and of stock layers."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import tensorflow as tf

from experiments.benchmarking import protocol, workload
from si_federated import config
from si_federated.models import MODELS
from si_federated.runtime import set_local_context
from si_federated.tasks import objective


class StockTransformer(tf.keras.Model):
  """`MODELS['transformer']`, written with Keras's own layers.

  Args:
    ours: Our model, for the sizes.
    vocab_size: V.
    num_layers: The number of blocks.
  """

  def __init__(self, ours: tf.keras.Model, vocab_size: int) -> None:
    super().__init__()
    blocks = [b for b in ours.layers if b.name.startswith('block_')]
    width = ours.get_layer('embedding').output_dim
    self._width = width
    self._embedding = tf.keras.layers.Embedding(
      vocab_size, width, mask_zero=True
    )
    self._blocks = [
      (
        tf.keras.layers.LayerNormalization(epsilon=1e-6),
        tf.keras.layers.MultiHeadAttention(
          block.num_heads, width // block.num_heads
        ),
        tf.keras.layers.LayerNormalization(epsilon=1e-6),
        tf.keras.layers.Dense(block.intermediate_dim, activation='relu'),
        tf.keras.layers.Dense(width),
      )
      for block in blocks
    ]
    # Keras tracks no layers in tuples of a list.
    self._tracked = [layer for block in self._blocks for layer in block]
    self._norm = tf.keras.layers.LayerNormalization(epsilon=1e-6)

  def call(self, ids: tf.Tensor, training: Any = None) -> tf.Tensor:
    """Returns logits `[B, T, V]` for ids `[B, T]`."""
    x = self._embedding(ids)
    mask = self._embedding.compute_mask(ids)
    positions = np.arange(ids.shape[1])[:, np.newaxis]
    even = np.arange(self._width) // 2 * 2
    angles = positions / 10000.0 ** (even / self._width)
    waves = np.where(np.arange(self._width) % 2, np.cos(angles), np.sin(angles))
    x = x * self._width**0.5 + tf.constant(waves, x.dtype)
    for norm, attention, feed_norm, inner, outer in self._blocks:
      y = norm(x)
      x += attention(
        y,
        y,
        attention_mask=mask[:, tf.newaxis, :],
        use_causal_mask=True,
        training=training,
      )
      x += outer(inner(feed_norm(x)))
    table = tf.convert_to_tensor(self._embedding.embeddings)
    return tf.matmul(self._norm(x), table, transpose_b=True)


def start(request: dict[str, Any]) -> dict[str, Any]:
  """Builds the models and their steps; see `protocol.serve`.

  The request contains the settings and the `options` of our models' builders.
  """
  settings = workload.Settings.from_json(request)
  set_local_context()
  tf.keras.utils.set_random_seed(settings.seed)
  vocab_size = settings.vocab_size
  models = {
    name: config.ComponentSpec.parse(f'{name}:{request["options"]}').build(
      MODELS, 'model', vocab_size=vocab_size
    )
    for name in ('transformer', 'si_transformer')
  }
  models['keras'] = StockTransformer(models['transformer'], vocab_size)
  sentences = workload.full_sentences(settings, settings.batch_size)
  padded = sentences.copy()
  for row, sentence in enumerate(padded):
    # From a third of the length to the full length: two thirds on average.
    length = sentence.size - 1
    sentence[
      1 + length // 3 + row * (length - length // 3) // len(padded) :
    ] = 0
  batches = {'full': sentences, 'padded': padded}
  steps = {name: _build_step(model, settings) for name, model in models.items()}

  def step(name: str, kind: str) -> dict[str, float]:
    batch = tf.constant(batches[kind])
    began = time.perf_counter()
    loss = float(steps[name](batch[:, :-1], batch[:, 1:]))
    seconds = time.perf_counter() - began
    if not np.isfinite(loss):
      raise ValueError(f'The loss of {name} is not finite.')
    return {'seconds': seconds, 'loss': loss}

  for name in models:
    for kind in batches:
      step(name, kind)
  return {
    'about': {
      'parameters': {n: int(m.count_params()) for n, m in models.items()}
    },
    'step': step,
  }


def _build_step(model: tf.keras.Model, settings: workload.Settings) -> Any:
  @tf.function
  def step(x, y):
    with tf.GradientTape() as tape:
      logits = model(x, training=True)
      valid = tf.where(tf.not_equal(tf.reshape(y, [-1]), 0))[:, 0]
      flat = tf.reshape(logits, [-1, logits.shape[-1]])
      losses = objective.cross_entropy(
        tf.gather(flat, valid), tf.gather(tf.reshape(y, [-1]), valid)
      )
      loss = tf.reduce_mean(losses)
    variables = model.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(loss, variables)):
      variable.assign_sub(
        settings.learning_rate * 1e-3 * tf.convert_to_tensor(gradient)
      )
    return loss

  return step


if __name__ == '__main__':
  protocol.serve(start)
