"""Evaluation of the server's model on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.training import sampling


def build_evaluation(
  *,
  model: tff.learning.models.FunctionalModel,
  examples: np.ndarray,
  inputs_and_labels: Callable[[np.ndarray], Any],
  batch_size: int = 64,
  batches_per_shard: int = 8,
) -> Callable[[tff.learning.models.ModelWeights], dict[str, float]]:
  """Builds the evaluation of weights on a fixed set of sentences.

  Shards of the sentences are the clients of TFF's federated evaluation, so that
  every runtime uses all its processors.

  Args:
    model: The model. Its metrics, including `loss`, are means, over tokens if
      one of them is `num_tokens`.
    examples: Sentences, shape `[N, T + 1]`.
    inputs_and_labels: Returns the ids `[N, T]` and the labels of examples, as
      the task does.
    batch_size: Sentences per batch.
    batches_per_shard: Batches per shard.

  Returns:
    A function from weights to metrics by name. Metrics over tokens include
    `perplexity`, the exponential of the mean loss per predicted token.

  Raises:
    ValueError: If there are no sentences.
  """
  if not len(examples):
    raise ValueError('There are no sentences to evaluate on.')
  process = tff.learning.algorithms.build_fed_eval(
    model,
    # As in training, because an iterator's loop body is instantiated once.
    loop_implementation=tff.learning.LoopImplementation.DATASET_ITERATOR,
  )
  rows = batch_size * batches_per_shard

  def shard(start: int) -> tf.data.Dataset:
    part = examples[start : start + rows]
    return tf.data.Dataset.from_tensor_slices(inputs_and_labels(part)).batch(
      batch_size
    )

  shards = sampling.Cohort(range(0, len(examples), rows), shard, str)

  def evaluate(weights: tff.learning.models.ModelWeights) -> dict[str, float]:
    state = process.set_model_weights(process.initialize(), weights)
    output = process.next(state, shards)
    metrics = {
      name: float(value)
      for name, value in output.metrics['client_work']['eval'][
        'current_round_metrics'
      ].items()
    }
    if 'num_tokens' in metrics:
      metrics['perplexity'] = perplexity(metrics['loss'])
    return metrics

  return evaluate


def best_so_far(
  metrics: Mapping[str, float], best: Mapping[str, float], round_num: int
) -> Mapping[str, float]:
  """Returns the best evaluation so far, as written to the summary.

  Args:
    metrics: A new evaluation. The lowest `perplexity` is best or, where there
      is none, the highest `accuracy`.
    best: The best evaluation before; empty if there is none.
    round_num: The round of the new evaluation.
  """
  name = 'perplexity' if 'perplexity' in metrics else 'accuracy'
  sign = -1 if name == 'perplexity' else 1
  value = metrics[name]
  if not math.isfinite(value) or (
    name in best and sign * value <= sign * best[name]
  ):
    return best
  return {name: value, 'round_num': round_num}


def perplexity(loss: float) -> float:
  """Returns the exponential of a mean loss, infinity if it overflows."""
  return math.exp(loss) if loss < 700 else math.inf if loss >= 700 else loss
