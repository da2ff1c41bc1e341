"""The Task record, its loss and metrics, alone, in Keras and in TFF."""

from __future__ import annotations

import collections
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from si_federated.tasks import TASKS, ClientPopulation, Task, Vocabulary
from si_federated.tasks.token_arrays import TokenArrays

# Ids: padding 0, words 1..2, out-of-vocabulary 3, beginning 4, end 5.
VOCABULARY = Vocabulary(('a', 'b'))
CLIENTS = {'one': [[0, 1], [0, 0, 7]], 'two': [[1]]}


def population(num_words=2, length=3, clients=CLIENTS):
  return ClientPopulation(TokenArrays.from_clients(clients), num_words, length)


def make_task(**changes):
  fields = {
    'name': 'tiny',
    'vocabulary': VOCABULARY,
    'sequence_length': 3,
    'train': population(),
    'validation': population(),
    'test': population(),
  }
  return Task(**{**fields, **changes})


LABELS = np.array([[1, 2, 5, 0], [3, 1, 0, 0]], np.int32)


def logits():
  return np.random.default_rng(0).normal(size=[2, 4, 6]).astype(np.float32)


def expected_loss(values, labels, weights=None):
  """Computes the definition, label by label."""
  total = count = 0.0
  for i, row in enumerate(labels):
    for j, label in enumerate(row):
      if label:
        z = values[i, j].astype(np.float64)
        weight = 1.0 if weights is None else weights[i][j]
        total -= weight * (z[label] - np.log(np.exp(z).sum()))
        count += weight
  return total / count


def test_loss_is_the_mean_over_labels():
  loss = make_task().loss
  assert isinstance(loss, tf.keras.losses.Loss)
  value = loss(LABELS, logits())
  assert value.shape == []
  np.testing.assert_allclose(value, expected_loss(logits(), LABELS), rtol=1e-6)


def test_uniform_logits_cost_the_logarithm_of_their_number():
  loss = make_task().loss(LABELS, np.zeros([2, 4, 6], np.float32))
  np.testing.assert_allclose(loss, np.log(6.0), rtol=1e-6)


@pytest.mark.parametrize('mask', [np.ones([2, 4], bool), LABELS != 0])
def test_a_keras_mask_changes_nothing(mask):
  values = tf.constant(logits())
  values._keras_mask = tf.constant(mask)
  np.testing.assert_allclose(
    make_task().loss(LABELS, values),
    expected_loss(logits(), LABELS),
    rtol=1e-6,
  )


def test_padding_alone_gives_zero_and_a_finite_gradient():
  values = tf.Variable(logits())
  with tf.GradientTape() as tape:
    loss = make_task().loss(np.zeros([2, 4], np.int32), values)
  assert loss.numpy() == 0.0
  assert not tape.gradient(loss, values).numpy().any()


def test_weights():
  per_label = np.array([[1, 2, 3, 9], [4, 0.5, 9, 9]], np.float32)
  np.testing.assert_allclose(
    make_task().loss(LABELS, logits(), per_label),
    expected_loss(logits(), LABELS, per_label),
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    make_task().loss(LABELS, logits(), np.array([2.0, 3.0], np.float32)),
    expected_loss(logits(), LABELS, [[2.0] * 4, [3.0] * 4]),
    rtol=1e-6,
  )


@pytest.mark.parametrize('dtype', [tf.float16, tf.bfloat16])
def test_half_precision_logits_are_summed_in_full(dtype):
  value = make_task().loss(LABELS, tf.cast(logits(), dtype))
  assert value.dtype == tf.float32
  np.testing.assert_allclose(value, expected_loss(logits(), LABELS), rtol=2e-2)


def predictions(guesses):
  return tf.one_hot(guesses, 6).numpy()


def test_metrics_by_hand():
  labels = np.array([[1, 2, 3, 5], [2, 5, 0, 0]], np.int32)
  guesses = np.array([[1, 1, 3, 5], [2, 1, 0, 0]], np.int32)
  # Right: 1, 3, 5, 2 of six labels; without 3: 1, 5, 2 of five; without 3 and
  # 5: 1, 2 of three.
  results = {}
  for name, build in make_task().metrics().items():
    metric = build()
    assert metric.name == name
    metric.update_state(labels, predictions(guesses))
    results[name] = metric.result().numpy()
  assert list(results) == [
    'accuracy', 'accuracy_no_oov', 'accuracy_no_oov_no_eos', 'num_tokens',
  ]  # fmt: skip
  assert results['num_tokens'] == 6
  np.testing.assert_allclose(
    [results[name] for name in list(results)[:3]],
    [4 / 6, 3 / 5, 2 / 3],
    rtol=1e-6,
  )


def test_metrics_of_nothing_are_zero():
  for build in make_task().metrics().values():
    assert build().result().numpy() == 0


def small_model():
  ids = tf.keras.Input([3], dtype=tf.int32)
  x = tf.keras.layers.Embedding(
    6, 4, mask_zero=True, embeddings_initializer='ones'
  )(ids)
  dense = tf.keras.layers.Dense(
    6, kernel_initializer=tf.keras.initializers.Constant(0.1)
  )
  return tf.keras.Model(ids, dense(x))


def test_keras_training_step_uses_the_same_loss():
  model = small_model()
  model.compile('sgd', make_task().loss)
  x = np.array([[4, 1, 2], [4, 1, 0]], np.int32)
  y = np.array([[1, 2, 5], [1, 5, 0]], np.int32)
  np.testing.assert_allclose(
    model.evaluate(x, y, verbose=0), np.log(6.0), rtol=1e-6
  )


def test_functional_model_of_tff():
  tff = pytest.importorskip('tensorflow_federated')
  task = make_task()
  model = tff.learning.models.functional_model_from_keras(
    small_model,
    task.loss,
    task.element_spec,
    metrics_constructor=task.metrics(),
  )
  x = np.array([[4, 1, 2], [4, 1, 0]], np.int32)
  y = np.array([[1, 2, 5], [1, 5, 0]], np.int32)

  @tf.function
  def loss_and_gradient(weights):
    with tf.GradientTape() as tape:
      tape.watch(weights)
      output = model.predict_on_batch((weights, ()), x, True)
      loss = model.loss(output, y)
    state = model.update_metrics_state(
      model.initialize_metrics_state(),
      y,
      tff.learning.models.BatchOutput(
        loss=loss, predictions=output, num_examples=2
      ),
    )
    return loss, tape.gradient(loss, weights), model.finalize_metrics(state)

  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    result = loss_and_gradient(
      [tf.constant(w) for w in model.initial_weights[0]]
    )
    loss, gradients, metrics = session.run(result)
  np.testing.assert_allclose(loss, np.log(6.0), rtol=1e-6)
  # The gradient of the bias is softmax minus the shares of the labels.
  shares = np.array([0, 2, 1, 0, 0, 2]) / 5
  np.testing.assert_allclose(gradients[-1], 1 / 6 - shares, atol=1e-6)
  assert metrics['num_tokens'] == 5
  assert metrics['accuracy'] == 0.0


def test_functional_metrics_of_tff():
  tff = pytest.importorskip('tensorflow_federated')
  initialize, update, finalize = (
    tff.learning.metrics.create_functional_metric_fns(make_task().metrics())
  )
  labels = np.array([[1, 2, 3, 5], [2, 5, 0, 0]], np.int32)
  guesses = np.array([[1, 1, 3, 5], [2, 1, 0, 0]], np.int32)
  output = tff.learning.models.BatchOutput(
    loss=0.0, predictions=predictions(guesses), num_examples=2
  )
  with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    state = update(initialize(), labels, output)
    state = update(state, labels, output)
    results = session.run(finalize(state))
  assert isinstance(results, collections.OrderedDict)
  assert results['num_tokens'] == 12
  np.testing.assert_allclose(results['accuracy'], 4 / 6, rtol=1e-6)
  np.testing.assert_allclose(
    results['accuracy_no_oov_no_eos'], 2 / 3, rtol=1e-6
  )


def test_unigram_perplexity_by_hand():
  task = make_task()
  # Training labels, cut to three: a b end | a a oov | b end:
  # a 3, b 2, oov 1, end 2; plus one each: 4, 3, 2, 3 of 12.
  examples = np.array([[4, 1, 3, 5], [4, 2, 5, 0]])
  product = (4 * 2 * 3 * 3 * 3) / 12**5
  np.testing.assert_allclose(
    task.reference_perplexities(examples)['unigram'], product ** (-1 / 5)
  )
  with pytest.raises(ValueError, match='padding'):
    task.reference_perplexities(np.array([[4, 0, 0, 0]]))


def test_further_reference_lines():
  task = make_task(reference_lines={'floor': lambda examples: len(examples)})
  assert task.reference_perplexities(np.array([[4, 1]]))['floor'] == 1


def test_element_spec():
  x, y = make_task().element_spec
  assert x == y == tf.TensorSpec([None, 3], tf.int32)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'sequence_length': 0}, 'sequence_length'),
    ({'sequence_length': 4}, 'cuts sentences to 3 words'),
    ({'vocabulary': Vocabulary(('a', 'b', 'c'))}, 'vocabulary has 3'),
    ({'test': population(num_words=1)}, 'test split'),
    ({'validation': population(length=2)}, 'validation split'),
    ({'train': population(clients={})}, 'no clients'),
  ],
)
def test_what_does_not_fit_is_refused(changes, message):
  with pytest.raises(ValueError, match=message) as caught:
    make_task(**changes)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', sorted(TASKS))
@pytest.mark.parametrize(
  'sizes', [{'vocab_size': 65_535}, {'vocab_size': 0}, {'sequence_length': 0}]
)
def test_sizes_are_checked_before_data_are_read(name, sizes, tmp_path):
  sizes = {'vocab_size': 10, 'sequence_length': 5, **sizes}
  with pytest.raises(ValueError, match='must be'):
    TASKS[name](data_dir=str(tmp_path), **sizes)
  assert not list(tmp_path.iterdir())


def test_importing_the_tasks_loads_no_tff():
  code = (
    'import sys, si_federated.tasks; '
    'print("tensorflow_federated" in sys.modules)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
    env={'PYTHONPATH': ':'.join(sys.path), 'PATH': '', 'HOME': '/'},
  )
  assert done.stdout == 'False\n'
