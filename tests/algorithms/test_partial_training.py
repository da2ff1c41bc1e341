"""Each client trains some of the variables, and the server averages them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.aggregators import build_gaussian
from si_federated.algorithms import (
  OPTIMIZERS,
  build_fed_avg,
  build_partial_training,
)
from si_federated.algorithms.partial_training import client_datum
from si_federated.algorithms.variable_selection import Selection
from si_federated.runtime import set_local_context, set_tff_context
from tests.algorithms import mean_loss

_SHAPES = ((2, 3), (3,), (3, 2), (2, 2), (2, 2))
_NAMES = ('a/kernel:0', 'a/bias:0', 'b/kernel:0', 'c/kernel:0', 'c/other:0')
_RATE = 0.1


@pytest.fixture(autouse=True, scope='module')
def _runtime():
  set_local_context()


def _selection(**options):
  options = {'fraction': 0.5, 'by': 'variable', 'per': 'client', **options}
  return Selection(_SHAPES, _NAMES, seed=options.pop('seed', 0), **options)


def _chosen(selection, round_num, client):
  masks = selection(
    tf.constant(round_num, tf.int64), tf.constant(client, tf.int64)
  )
  return tuple(bool(mask) for mask in masks)


def test_a_selection_has_some_matrices_and_all_vectors():
  chosen = [_chosen(_selection(), 3, client) for client in range(40)]
  assert all(masks[1] for masks in chosen)
  assert {sum(masks) for masks in chosen} == {3}
  # Each matrix about half of the time.
  counts = np.sum(chosen, axis=0)
  assert (counts[[0, 2, 3, 4]] >= 10).all()
  assert (counts[[0, 2, 3, 4]] <= 30).all()
  assert _selection().probabilities == [0.5, 1.0, 0.5, 0.5, 0.5]


def test_a_selection_depends_only_on_seed_round_and_client():
  first = _chosen(_selection(), 3, 7)
  assert _chosen(_selection(), 3, 7) == first
  others = [
    {_chosen(_selection(), round_num, 7) for round_num in range(20)},
    {_chosen(_selection(), 3, client) for client in range(20)},
    {_chosen(_selection(seed=seed), 3, 7) for seed in range(20)},
  ]
  assert all(len(masks) > 3 for masks in others)


def test_a_selection_for_a_round_is_the_same_for_its_clients():
  selection = _selection(per='round')
  assert len({_chosen(selection, 3, client) for client in range(20)}) == 1
  assert len({_chosen(selection, r, 0) for r in range(20)}) > 3


def test_a_selection_by_block_takes_all_matrices_of_a_block():
  selection = _selection(by='block', fraction=0.3)
  chosen = {_chosen(selection, 1, client) for client in range(40)}
  assert chosen == {
    (True, True, False, False, False),
    (False, True, True, False, False),
    (False, True, False, True, True),
  }
  assert selection.probabilities == pytest.approx([1 / 3, 1, *[1 / 3] * 3])


def test_at_least_one_matrix_is_trained():
  assert sum(_chosen(_selection(fraction=0.01), 0, 0)) == 2


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'fraction': 0}, 'fraction must be above 0'),
    ({'fraction': 1.5}, 'fraction must be above 0 and at most 1'),
    ({'by': 'layer'}, 'by must be variable or block'),
    ({'per': 'day'}, 'per must be client or round'),
  ],
)
def test_options_out_of_range_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    _selection(**options)


def _model(first=0.5):
  """A product of two matrices; the loss is the mean square."""

  @tf.function
  def predict(weights, x, training=True):
    del training
    (a, b, bias), _ = weights
    return tf.matmul(tf.matmul(x, a), b) + bias

  generator = np.random.default_rng(0)
  weights = [generator.normal(size=shape) for shape in ((2, 3), (3, 1), (1,))]
  return tff.learning.models.FunctionalModel(
    initial_weights=(
      tuple(first * weight.astype(np.float32) for weight in weights),
      (),
    ),
    predict_on_batch_fn=predict,
    loss_fn=lambda output, label, sample_weight=None: tf.reduce_mean(
      tf.square(output - label)
    ),
    metrics_fns=mean_loss.metrics_fns(),
    input_spec=(
      tf.TensorSpec([None, 2], tf.float32),
      tf.TensorSpec([None, 1], tf.float32),
    ),
  )


def _data(client, rows=4):
  generator = np.random.default_rng(100 + client)
  x = generator.normal(size=[rows, 2]).astype(np.float32)
  y = generator.normal(size=[rows, 1]).astype(np.float32)
  return x, y


def _clients(rows=(4, 2, 6)):
  return [
    client_datum(tf.data.Dataset.from_tensor_slices(_data(i, n)).batch(2), i)
    for i, n in enumerate(rows)
  ]


def _build(aggregation_factory=None, optimizer=None, **options):
  return build_partial_training(
    model=_model(),
    client_optimizer=optimizer or OPTIMIZERS['sgd'](learning_rate=_RATE),
    server_optimizer=OPTIMIZERS['sgd'](learning_rate=1.0),
    aggregation_factory=aggregation_factory or tff.aggregators.MeanFactory(),
    **options,
  )


def _steps(client, rows, masks):
  """Returns a client's update by numpy; that of frozen variables is zero."""
  x, y = _data(client, rows)
  initial = [w.astype(np.float64) for w in _model().initial_weights[0]]
  a, b, bias = (w.copy() for w in initial)
  for i in range(0, rows, 2):
    xs, ys = x[i : i + 2], y[i : i + 2]
    error = 2 * (xs @ a @ b + bias - ys) / len(xs)
    gradients = [xs.T @ (error @ b.T), (xs @ a).T @ error, error.sum(0)]
    a, b, bias = (
      w - _RATE * g * is_trained
      for w, g, is_trained in zip((a, b, bias), gradients, masks)
    )
  return [before - after for before, after in zip(initial, (a, b, bias))]


def _masks(round_num, client):
  selection = Selection(
    [w.shape for w in _model().initial_weights[0]],
    [f'variable_{i}' for i in range(3)],
    fraction=0.5,
    by='variable',
    per='client',
    seed=4,
  )
  return _chosen(selection, round_num, client)


def test_each_variable_is_averaged_over_the_clients_that_trained_it():
  rows = (4, 2, 6)
  process = _build(fraction=0.5, seed=4)
  state = process.initialize()
  masks = [_masks(0, client) for client in range(3)]
  # Trained and frozen both occur.
  assert {masks[i][0] for i in range(3)} == {True, False}
  output = process.next(state, _clients(rows))
  updates = [_steps(i, rows[i], masks[i]) for i in range(3)]
  for index, before in enumerate(_model().initial_weights[0]):
    weights = [n * m[index] for n, m in zip(rows, masks)]
    mean = sum(n * update[index] for n, update in zip(weights, updates))
    np.testing.assert_allclose(
      output.state.global_model_weights.trainable[index],
      before - mean / sum(weights),
      rtol=1e-5,
    )
  sizes = np.array([6, 3, 1])
  assert output.metrics['client_work']['trained_fraction'] == pytest.approx(
    np.mean([(sizes * mask).sum() / 10 for mask in masks])
  )


def test_a_private_sum_is_divided_by_probabilities():
  rows = (4, 2, 6)
  mechanism = build_gaussian(
    clip_norm=1e3,
    noise_multiplier=0.0,
    clients_per_round=3,
    total_rounds=2,
  )
  process = _build(mechanism.factory, fraction=0.5, seed=4)
  output = process.next(process.initialize(), _clients(rows))
  updates = [_steps(i, rows[i], _masks(0, i)) for i in range(3)]
  probabilities = (0.5, 0.5, 1.0)
  for index, before in enumerate(_model().initial_weights[0]):
    mean = sum(update[index] for update in updates) / 3
    np.testing.assert_allclose(
      output.state.global_model_weights.trainable[index],
      before - mean / probabilities[index],
      rtol=1e-5,
    )


def _rounds(process, clients, count=3):
  state = process.initialize()
  for _ in range(count):
    state = process.next(state, clients).state
  return state


@pytest.mark.parametrize(
  ('optimizer', 'options'),
  [
    pytest.param('sgd', {}, marks=pytest.mark.slow),
    pytest.param('sgd', {'gradient_clip_norm': 0.5}, marks=pytest.mark.slow),
    pytest.param('sgd', {'weight_decay': 0.1}, marks=pytest.mark.slow),
    pytest.param('sgdm', {}, marks=pytest.mark.slow),
    ('adam', {'gradient_clip_norm': 0.5}),
  ],
)
def test_to_train_all_is_federated_averaging(optimizer, options):
  built = OPTIMIZERS[optimizer](learning_rate=_RATE, **options)
  clients = _clients()
  partial = _rounds(_build(fraction=1.0, optimizer=built), clients)
  whole = _rounds(
    build_fed_avg(
      model=_model(),
      client_optimizer=built,
      server_optimizer=OPTIMIZERS['sgd'](learning_rate=1.0),
      aggregation_factory=tff.aggregators.MeanFactory(),
    ),
    [client['examples'] for client in clients],
  )
  for mine, theirs in zip(
    partial.global_model_weights.trainable, whole.global_model_weights.trainable
  ):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_saved_state_continues_exactly():
  clients = _clients()
  whole = _rounds(_build(fraction=0.5), clients, 4)
  process = _build(fraction=0.5)
  state = _rounds(process, clients, 2)
  again = _build(fraction=0.5)
  for _ in range(2):
    state = again.next(state, clients).state
  tf.nest.map_structure(
    np.testing.assert_array_equal,
    whole.global_model_weights.trainable,
    state.global_model_weights.trainable,
  )


def test_an_update_that_is_not_finite_has_no_weight():
  clients = _clients()
  x, y = _data(1, 2)
  spoiled = tf.data.Dataset.from_tensor_slices((x * np.inf, y)).batch(2)
  process = _build(fraction=1.0)
  with_it = process.next(
    process.initialize(), [clients[0], client_datum(spoiled, 1)]
  )
  without = process.next(process.initialize(), clients[:1])
  tf.nest.map_structure(
    np.testing.assert_array_equal,
    with_it.state.global_model_weights.trainable,
    without.state.global_model_weights.trainable,
  )
  train = with_it.metrics['client_work']['train']
  assert np.isfinite(train['loss'])


@pytest.mark.slow
def test_the_runtimes_agree():
  clients = _clients()
  local = _rounds(_build(fraction=0.5), clients, 2)
  try:
    set_tff_context()
    theirs = _rounds(_build(fraction=0.5), clients, 2)
  finally:
    set_local_context()
  for mine, other in zip(
    local.global_model_weights.trainable, theirs.global_model_weights.trainable
  ):
    np.testing.assert_allclose(mine, other, rtol=1e-6)


def test_a_clip_relative_to_all_weights_is_refused():
  with pytest.raises(ValueError, match='use gradient_clip_norm'):
    _build(
      optimizer=OPTIMIZERS['sgd'](
        learning_rate=1.0, weight_decay=0.1, relative_clip=4.0
      )
    )


def test_blocks_need_names():
  with pytest.raises(ValueError, match='needs the names'):
    _build(by='block')
