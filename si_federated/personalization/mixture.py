"""The mixture of a local and the global model, and its gate.

Listo Zec et al. 2020, "Specialized federated learning using a mixture of
experts", arXiv 2010.02056: y = g(x) f_local(x) + (1 - g(x)) f_global(x).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.personalization import learners

MIXES = ('probabilities', 'log_probabilities')
_PADDING = 0

# Maps a model's output for a batch to its logits, `[N, K]`, and their positions
# in the batch, `[N]`, counted row by row; the positions are None if there is
# one prediction per example.
ReadOutput = Callable[[Any], tuple[tf.Tensor, Any]]
# Returns a model's output with other logits.
ReplaceLogits = Callable[[Any, tf.Tensor], Any]


def initial_gate(
  vocab_size: int, *, embedding_size: int, units: int, seed: int
) -> dict[str, np.ndarray]:
  """Draws the initial weights of a gate, whose value is near one half.

  Differs from the paper, whose gate has the classifier's architecture with one
  output. This gate is small, so that a client can store it: embeddings, a
  hidden layer of a token's embedding and the mean embedding of all tokens up to
  it, and an output layer with one number. With one prediction per example, both
  inputs of the hidden layer are the mean over all tokens.

  Args:
    vocab_size: The number of ids.
    embedding_size: E.
    units: H, the units of the hidden layer.
    seed: The seed of the draw.

  Returns:
    `embedding` `[V, E]`, `kernel` `[2 E, H]`, `bias` `[H]`, `output_kernel`
    `[H, 1]` and `output_bias` `[1]`, float32.
  """
  generator = np.random.default_rng([seed, 2])

  def glorot(rows: int, columns: int) -> np.ndarray:
    limit = np.sqrt(6.0 / (rows + columns))
    return generator.uniform(-limit, limit, [rows, columns]).astype(np.float32)

  return {
    'embedding': generator.uniform(
      -0.05, 0.05, [vocab_size, embedding_size]
    ).astype(np.float32),
    'kernel': glorot(2 * embedding_size, units),
    'bias': np.zeros([units], np.float32),
    'output_kernel': glorot(units, 1),
    'output_bias': np.zeros([1], np.float32),
  }


def gate_logits(
  gate: Mapping[str, tf.Tensor], ids: tf.Tensor, positions: Any
) -> tf.Tensor:
  """Returns the logits of g, the weight of the local expert.

  The value at a position depends only on the ids up to it, as in the models.

  Args:
    gate: The weights; see `initial_gate`.
    ids: `[B, T]`, padded with 0.
    positions: `[N]`, counted row by row; None for one value per example.

  Returns:
    `[N, 1]` or `[B, 1]`.
  """
  vectors = tf.gather(gate['embedding'], ids)
  present = tf.cast(tf.not_equal(ids, _PADDING), vectors.dtype)[..., tf.newaxis]
  if positions is None:
    mean = tf.math.divide_no_nan(
      tf.reduce_sum(vectors * present, axis=1), tf.reduce_sum(present, axis=1)
    )
    features = tf.concat([mean, mean], axis=-1)
  else:
    mean = tf.math.divide_no_nan(
      tf.cumsum(vectors * present, axis=1), tf.cumsum(present, axis=1)
    )
    features = tf.concat([vectors, mean], axis=-1)
    size = gate['kernel'].shape[0]
    features = tf.gather(tf.reshape(features, [-1, size]), positions)
  hidden = tf.nn.relu(tf.matmul(features, gate['kernel']) + gate['bias'])
  return tf.matmul(hidden, gate['output_kernel']) + gate['output_bias']


def mix_logits(
  local_logits: tf.Tensor,
  global_logits: tf.Tensor,
  logits_of_gate: tf.Tensor,
  mix: str,
) -> tf.Tensor:
  """Returns the logits of the mixture, which are its log-probabilities.

  Args:
    local_logits: `[N, K]`.
    global_logits: `[N, K]`.
    logits_of_gate: The logits of g, `[N, 1]`.
    mix: `'probabilities'`, as in the paper's equation, or
      `'log_probabilities'`, as in the authors' code, which mixes outputs of a
      log-softmax. Differs from the authors' code: the sum is normalized, so
      that it is a distribution with a comparable perplexity.

  Returns:
    `[N, K]`, whose exponentials add up to 1.
  """
  local = tf.nn.log_softmax(local_logits)
  overall = tf.nn.log_softmax(global_logits)
  if mix == 'log_probabilities':
    g = tf.sigmoid(logits_of_gate)
    return tf.nn.log_softmax(g * local + (1.0 - g) * overall)
  # In logarithms, since a probability can underflow.
  return tf.reduce_logsumexp(
    tf.stack(
      [
        tf.math.log_sigmoid(logits_of_gate) + local,
        tf.math.log_sigmoid(-logits_of_gate) + overall,
      ]
    ),
    axis=0,
  )


def build_predict(
  model: tff.learning.models.FunctionalModel,
  *,
  read_output: ReadOutput,
  replace_logits: ReplaceLogits,
  mix: str,
) -> learners.Predict:
  """Builds the prediction of the mixture.

  Args:
    model: The model of both experts, whose loss takes logits.
    read_output: See `ReadOutput`.
    replace_logits: See `ReplaceLogits`.
    mix: See `mix_logits`.

  Returns:
    A function for a `Learner` that trains `model`, the local expert, and
    `gate`. Its fixed weights are `global`, the global model's trainable
    weights, and `frozen`, the weights that no model trains.
  """

  def predict(trained, fixed, x, training):
    local = model.predict_on_batch(
      (trained['model'], fixed['frozen']), x, training
    )
    # The global model is frozen, so it runs in inference mode, without dropout.
    overall = model.predict_on_batch(
      (fixed['global'], fixed['frozen']), x, False
    )
    local_logits, positions = read_output(local)
    global_logits, _ = read_output(overall)
    mixed = mix_logits(
      local_logits,
      tf.stop_gradient(global_logits),
      gate_logits(trained['gate'], x, positions),
      mix,
    )
    return replace_logits(local, mixed)

  return predict


def build_single_predict(
  model: tff.learning.models.FunctionalModel,
) -> learners.Predict:
  """Builds the prediction of one model, for a `Learner` that trains `model`.

  Args:
    model: The model; `frozen` are its other weights.
  """

  def predict(trained, fixed, x, training):
    return model.predict_on_batch(
      (trained['model'], fixed['frozen']), x, training
    )

  return predict
