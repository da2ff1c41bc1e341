from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import algorithms, models, runtime, tasks
from si_federated.training import evaluation


def test_perplexity_is_total_loss_over_tokens_on_any_sharding():
  runtime.set_local_context()
  task = tasks.TASKS['synthetic'](vocab_size=20, sequence_length=6)

  def keras_model():
    tf.keras.utils.set_random_seed(1)
    return models.MODELS['cifg'](
      task.vocabulary.size, units=8, embedding_size=4
    )

  model = algorithms.build_functional_model(
    keras_model,
    loss=task.loss,
    element_spec=task.element_spec,
    end_of_sentence=task.vocabulary.end,
    ignored_labels=task.ignored_labels,
  )
  examples = task.validation.sample_examples(37, seed=0)
  weights = tff.learning.models.ModelWeights(*model.initial_weights)
  results = [
    evaluation.build_evaluation(
      model=model,
      examples=examples,
      inputs_and_labels=task.inputs_and_labels,
      batch_size=batch_size,
      batches_per_shard=batches,
    )(weights)
    for batch_size, batches in ((64, 8), (5, 2))
  ]

  logits = keras_model()(examples[:, :-1]).numpy().astype(np.float64)
  labels = examples[:, 1:]
  log_probabilities = logits - np.log(
    np.exp(logits).sum(axis=-1, keepdims=True)
  )
  chosen = np.take_along_axis(log_probabilities, labels[..., None], -1)[..., 0]
  real = labels != 0
  correct = logits.argmax(axis=-1) == labels
  in_vocabulary = real & (labels != task.vocabulary.out_of_vocabulary)
  words = in_vocabulary & (labels != task.vocabulary.end)
  for result in results:
    assert result['loss'] == pytest.approx(-chosen[real].mean(), rel=1e-5)
    assert result['perplexity'] == pytest.approx(
      np.exp(-chosen[real].mean()), rel=1e-4
    )
    assert result['num_tokens'] == real.sum()
    assert result['accuracy'] == pytest.approx(correct[real].mean())
    assert result['accuracy_no_oov'] == pytest.approx(
      correct[in_vocabulary].mean()
    )
    assert result['accuracy_no_oov_no_eos'] == pytest.approx(
      correct[words].mean()
    )


def test_perplexity_of_losses_that_are_not_finite():
  assert evaluation.perplexity(1e9) == math.inf
  assert math.isnan(evaluation.perplexity(math.nan))
  assert evaluation.perplexity(0.0) == 1.0
