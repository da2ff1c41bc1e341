"""Tests of the model that TFF trains, by hand and against gradient descent."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import algorithms, runtime

_VOCAB = 7
_END = 6
_SPEC = (tf.TensorSpec([None, 4], tf.int32), tf.TensorSpec([None, 4], tf.int32))
_TABLE = (
  np.random.default_rng(0).normal(size=[_VOCAB, _VOCAB]).astype(np.float32)
)


def _keras_model():
  """Logits are the row of the last id in a table."""
  return tf.keras.Sequential(
    [
      tf.keras.layers.InputLayer([None], dtype=tf.int32),
      tf.keras.layers.Embedding(
        _VOCAB,
        _VOCAB,
        embeddings_initializer=tf.keras.initializers.Constant(_TABLE),
      ),
    ]
  )


class _Loss(tf.keras.losses.Loss):
  """The mean over labels that are not 0."""

  def __call__(self, y_true, y_pred, sample_weight=None):
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y_true, y_pred)
    weights = tf.cast(tf.not_equal(y_true, 0), tf.float32)
    return tf.reduce_sum(losses * weights) / tf.reduce_sum(weights)


def _model(**options):
  return algorithms.build_functional_model(
    _keras_model,
    loss=_Loss(),
    element_spec=_SPEC,
    end_of_sentence=_END,
    **options,
  )


# One sentence cut to the maximum length, and two shorter ones.
_FIRST = np.array([[5, 1, 2, 3, 4], [5, 2, 6, 0, 0]], np.int32)
_SECOND = np.array([[5, 4, 4, 6, 0]], np.int32)


def _dataset(*batches):
  return tf.data.Dataset.from_generator(
    lambda: ((b[:, :-1], b[:, 1:]) for b in batches), output_signature=_SPEC
  )


def _process(model, weighting='tokens', server=None):
  return algorithms.build_fed_avg(
    model=model,
    client_optimizer=algorithms.OPTIMIZERS['sgd'](learning_rate=0.5),
    server_optimizer=server or algorithms.OPTIMIZERS['sgd'](learning_rate=1.0),
    aggregation_factory=tff.aggregators.MeanFactory(),
    client_weighting=weighting,
  )


def _descend(table, batch):
  """Returns a float64 step of gradient descent, and the mean loss before it."""
  x, y = batch[:, :-1].ravel(), batch[:, 1:].ravel()
  x, y = x[y != 0], y[y != 0]
  exponentials = np.exp(table[x])
  probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
  loss = -np.log(probabilities[np.arange(len(y)), y]).mean()
  correct = np.argmax(table[x], axis=1) == y
  probabilities[np.arange(len(y)), y] -= 1
  gradient = np.zeros_like(table)
  np.add.at(gradient, x, probabilities / len(y))
  return table - 0.5 * gradient, loss, correct, y


@pytest.fixture(autouse=True)
def _local():
  runtime.set_local_context()


def test_a_round_by_hand_weighted_by_tokens():
  process = _process(_model())
  clients = [_dataset(_FIRST, _SECOND), _dataset(_SECOND)]
  output = process.next(process.initialize(), clients)

  table = _TABLE.astype(np.float64)
  after_first, first_loss, first_correct, _ = _descend(table, _FIRST)
  after_both, second_loss, second_correct, _ = _descend(after_first, _SECOND)
  other, other_loss, other_correct, _ = _descend(table, _SECOND)
  # 4 + 2 + 3 labels and 3 labels.
  expected = table + (9 * (after_both - table) + 3 * (other - table)) / 12
  (weights,) = process.get_model_weights(output.state).trainable
  np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-6)

  metrics = output.metrics['client_work']['train']
  assert metrics['num_tokens'] == 12
  loss = (6 * first_loss + 3 * second_loss + 3 * other_loss) / 12
  assert metrics['loss'] == pytest.approx(loss, rel=1e-5)
  correct = np.concatenate([first_correct, second_correct, other_correct])
  assert metrics['accuracy'] == pytest.approx(correct.mean())


@pytest.mark.parametrize(
  ('weighting', 'weights'), [('examples', (3, 1)), ('uniform', (1, 1))]
)
def test_client_weightings(weighting, weights):
  process = _process(_model(count_tokens=False), weighting)
  clients = [_dataset(_FIRST, _SECOND), _dataset(_SECOND)]
  state = process.next(process.initialize(), clients).state
  table = _TABLE.astype(np.float64)
  one = _descend(_descend(table, _FIRST)[0], _SECOND)[0]
  other = _descend(table, _SECOND)[0]
  expected = (weights[0] * one + weights[1] * other) / sum(weights)
  (trained,) = process.get_model_weights(state).trainable
  np.testing.assert_allclose(trained, expected, rtol=1e-5, atol=1e-6)


def test_accuracies_ignore_labels():
  model = _model(ignored_labels={'all': (), 'no_four_or_end': (4, _END)})
  process = _process(model)
  output = process.next(process.initialize(), [_dataset(_FIRST, _SECOND)])
  metrics = output.metrics['client_work']['train']
  table = _TABLE.astype(np.float64)
  after_first, _, one, y_one = _descend(table, _FIRST)
  _, _, two, y_two = _descend(after_first, _SECOND)
  correct, labels = np.concatenate([one, two]), np.concatenate([y_one, y_two])
  assert metrics['all'] == pytest.approx(correct.mean())
  kept = (labels != 4) & (labels != _END)
  assert metrics['no_four_or_end'] == pytest.approx(correct[kept].mean())


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(
      name, marks=[] if name in ('adamw', 'yogi') else [pytest.mark.slow]
    )
    for name in sorted(algorithms.OPTIMIZERS)
  ],
)
def test_every_optimizer_moves_the_server(name):
  process = _process(
    _model(), server=algorithms.OPTIMIZERS[name](learning_rate=0.1)
  )
  state = process.initialize()
  before = process.get_model_weights(state).trainable[0]
  for _ in range(2):
    state = process.next(state, [_dataset(_FIRST)]).state
  after = process.get_model_weights(state).trainable[0]
  assert np.isfinite(after).all()
  # The label 1 follows the beginning in the first sentence, 3 never does.
  assert after[5, 1] - before[5, 1] > after[5, 3] - before[5, 3]


def test_server_adam_is_the_papers_with_bias_correction():
  """Algorithm 2 of arXiv 2003.00295, with Keras's bias correction.

  Epsilon is added to the root of the second moment before its correction.
  """
  rate, beta_1, beta_2, epsilon = 0.1, 0.9, 0.99, 0.001
  process = _process(
    _model(),
    server=algorithms.OPTIMIZERS['adam'](
      learning_rate=rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon
    ),
  )
  state = process.next(process.initialize(), [_dataset(_FIRST)]).state
  table = _TABLE.astype(np.float64)
  delta = _descend(table, _FIRST)[0] - table
  m, v = (1 - beta_1) * delta, (1 - beta_2) * delta**2
  corrected_rate = rate * np.sqrt(1 - beta_2) / (1 - beta_1)
  expected = table + corrected_rate * m / (np.sqrt(v) + epsilon)
  trained = process.get_model_weights(state).trainable[0]
  np.testing.assert_allclose(trained, expected, rtol=1e-4, atol=1e-5)
