"""Weight decay, relative clipping and rates of a part, by hand and symmetry."""

import collections
import math

import numpy as np
import pytest
import tensorflow as tf

from si_federated import config, experiment
from si_federated.algorithms import OPTIMIZERS, for_variables
from tests import tiny

_SHAPES = ((3, 4), (4,))


def _values(seed):
  generator = np.random.default_rng(seed)
  return [generator.normal(size=s).astype('float32') for s in _SHAPES]


def _run(gradient, weights, steps=20, **options):
  """Follows `gradient`, a function of the step and the weights."""
  optimizer = OPTIMIZERS['sgd'](**options)
  weights = [tf.constant(w) for w in weights]
  specs = [tf.TensorSpec(w.shape, w.dtype) for w in weights]
  state = optimizer.initialize(specs)
  path = []
  for step in range(steps):
    state, weights = optimizer.next(state, weights, gradient(step, weights))
    path.append([w.numpy() for w in weights])
  return path


def _norm(values):
  return np.sqrt(sum(np.sum(np.square(v)) for v in values))


def test_weight_decay_by_hand():
  ((w,),) = _run(
    lambda step, weights: [tf.constant([2.0, -4.0])],
    [np.array([10.0, 1.0], np.float32)],
    steps=1,
    learning_rate=0.5,
    weight_decay=0.1,
  )
  np.testing.assert_allclose(w, [0.95 * 10 - 1.0, 0.95 * 1 + 2.0], rtol=1e-6)


@pytest.mark.parametrize('large', [True, False])
def test_relative_clip_by_hand(large):
  rate, decay, clip = 0.5, 0.02, 4.0
  start = _values(0)
  limit = np.sqrt(2 * clip * decay / rate) * _norm(start)
  gradient = _values(1)
  target = limit * (3.0 if large else 0.9)
  gradient = [g * target / _norm(gradient) for g in gradient]
  (actual,) = _run(
    lambda step, weights: [tf.constant(g) for g in gradient],
    start,
    steps=1,
    learning_rate=rate,
    weight_decay=decay,
    relative_clip=clip,
  )
  used = [g / 3 for g in gradient] if large else gradient
  for after, before, g in zip(actual, start, used):
    np.testing.assert_allclose(
      after, (1 - rate * decay) * before - rate * g, rtol=1e-5, atol=1e-6
    )


def _scale_invariant_gradient(loss_scale=1.0):
  target = [tf.constant(v) for v in _values(2)]

  def gradient(step, weights):
    del step
    with tf.GradientTape() as tape:
      tape.watch(weights)
      norm = tf.linalg.global_norm(weights)
      loss = sum(
        tf.reduce_sum(tf.square(w / norm - t)) for w, t in zip(weights, target)
      )
      loss *= loss_scale
    return tape.gradient(loss, weights)

  return gradient


_OPTIONS = {'learning_rate': 0.3, 'weight_decay': 0.01, 'relative_clip': 1.0}


def test_scaling_the_loss_is_undone_by_rate_and_decay():
  """(L, η, λ, x) -> (c L, η/c, c λ, x) leaves the iterates (2202.00980)."""
  c = 8.0
  expected = _run(_scale_invariant_gradient(), _values(0), **_OPTIONS)
  actual = _run(
    _scale_invariant_gradient(c),
    _values(0),
    learning_rate=_OPTIONS['learning_rate'] / c,
    weight_decay=_OPTIONS['weight_decay'] * c,
    relative_clip=1.0,
  )
  assert _norm(np.subtract(expected[-1][0], _values(0)[0])) > 0.1
  for one, other in zip(actual[-1], expected[-1]):
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_scaling_the_weights_leaves_the_directions():
  """(L, η, λ, x) -> (L, c² η, λ/c², c x) leaves the directions."""
  c = 4.0
  expected = _run(_scale_invariant_gradient(), _values(0), **_OPTIONS)
  actual = _run(
    _scale_invariant_gradient(),
    [c * w for w in _values(0)],
    learning_rate=_OPTIONS['learning_rate'] * c**2,
    weight_decay=_OPTIONS['weight_decay'] / c**2,
    relative_clip=1.0,
  )
  for one, other in zip(actual[-1], expected[-1]):
    np.testing.assert_allclose(one, c * other, rtol=1e-4)


def test_sparse_and_absent_gradients():
  rows = tf.IndexedSlices(tf.ones([2, 4]), tf.constant([1, 1]), [3, 4])
  for clip in (None, 100.0):
    (actual,) = _run(
      lambda step, weights: [rows, None],
      [np.ones([3, 4], np.float32), np.ones([4], np.float32)],
      steps=1,
      learning_rate=1.0,
      weight_decay=0.5,
      relative_clip=clip,
    )
    np.testing.assert_allclose(actual[0][:, 0], [0.5, -1.5, 0.5])
    np.testing.assert_allclose(actual[1], [0.5] * 4)


def test_zero_learning_rate_changes_nothing():
  options = {**_OPTIONS, 'learning_rate': 0.0}
  path = _run(_scale_invariant_gradient(), _values(0), **options)
  for after, before in zip(path[-1], _values(0)):
    np.testing.assert_array_equal(after, before)


def test_hyperparameters_can_be_changed():
  optimizer = OPTIMIZERS['sgd'](learning_rate=0.1, weight_decay=0.1)
  state = optimizer.initialize([tf.TensorSpec([2])])
  assert optimizer.get_hparams(state) == {'learning_rate': 0.1}
  changed = collections.OrderedDict(learning_rate=0.2)
  state = optimizer.set_hparams(state, changed)
  assert optimizer.get_hparams(state) == changed


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'weight_decay': -1.0}, 'weight_decay must be at least 0'),
    ({'weight_decay': 0.1, 'relative_clip': 0.0}, 'must be above 0'),
    ({'relative_clip': 4.0}, 'give both or neither'),
  ],
)
def test_options_are_checked(options, message):
  with pytest.raises(ValueError, match=message):
    OPTIMIZERS['sgd'](learning_rate=0.1, **options)


@pytest.mark.parametrize(
  ('name', 'option', 'value'),
  [
    ('sgdm', 'momentum', 1.0),
    ('adam', 'beta_1', math.nan),
    ('adam', 'beta_1', 1),
    ('adamw', 'beta_2', -0.1),
    ('adam', 'epsilon', math.nan),
    ('yogi', 'initial_preconditioner_value', math.inf),
    ('sgd', 'gradient_clip_norm', math.nan),
  ],
)
def test_numbers_out_of_range_are_refused_by_name(name, option, value):
  with pytest.raises(ValueError, match=f'^{option} must be'):
    OPTIMIZERS[name](learning_rate=0.1, **{option: value})


def test_whole_numbers_are_floats():
  def step(options):
    optimizer = OPTIMIZERS['adam'](**options)
    weights = [tf.constant(_values(0)[0])]
    state = optimizer.initialize([tf.TensorSpec(weights[0].shape)])
    return optimizer.next(state, weights, [tf.constant(_values(1)[0])])[1]

  np.testing.assert_array_equal(
    step({'learning_rate': 1, 'beta_1': 0, 'epsilon': 1}),
    step({'learning_rate': 1.0, 'beta_1': 0.0, 'epsilon': 1.0}),
  )


_NAMES = ('embedding/embeddings:0', 'recurrent_1/kernel:0')


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_rates_of_a_part(name):
  """The named part has its rate multiplied; the rest is unchanged."""

  def run(rate, **options):
    optimizer = for_variables(
      OPTIMIZERS[name](learning_rate=rate, **options), _NAMES
    )
    weights = [tf.constant(w) for w in _values(0)]
    state = optimizer.initialize(
      [tf.TensorSpec(w.shape, w.dtype) for w in weights]
    )
    for step in range(3):
      gradients = [tf.constant(g) for g in _values(step + 1)]
      state, weights = optimizer.next(state, weights, gradients)
    return weights

  both = run(0.5, rate_factor=0.25, rate_factor_variables='^embedding')
  np.testing.assert_allclose(both[0], run(0.125)[0], rtol=1e-5)
  np.testing.assert_array_equal(both[1], run(0.5)[1])


def test_rates_of_a_part_by_hand():
  optimizer = OPTIMIZERS['sgd'](
    learning_rate=0.5,
    gradient_clip_norm=5.0,
    rate_factor=0.1,
    rate_factor_variables='kernel',
  )
  weights = [tf.constant([1.0]), tf.constant([1.0])]
  state = optimizer.initialize([tf.TensorSpec([1])] * 2)
  # The gradient has norm 10 and is clipped before the rates apply.
  gradients = [tf.constant([6.0]), tf.constant([8.0])]
  with pytest.raises(ValueError, match='call for_variables'):
    optimizer.next(state, weights, gradients)
  _, stepped = for_variables(optimizer, _NAMES).next(state, weights, gradients)
  np.testing.assert_allclose(stepped, [[1 - 0.5 * 3], [1 - 0.05 * 4]])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'rate_factor': 0.5}, 'give both or neither'),
    ({'rate_factor_variables': 'kernel'}, 'give both or neither'),
    ({'rate_factor': -1.0, 'rate_factor_variables': 'a'}, 'at least 0'),
    ({'rate_factor': 0.5, 'rate_factor_variables': '('}, 'not a regular'),
    (
      {'rate_factor': 0.5, 'rate_factor_variables': 'dense'},
      'matches no variable; there are embedding/embeddings:0, recurrent_1',
    ),
  ],
)
def test_wrong_rates_of_a_part(options, message):
  with pytest.raises(ValueError, match=message):
    for_variables(OPTIMIZERS['sgd'](learning_rate=0.5, **options), _NAMES)


def test_a_whole_experiment_with_rates_of_a_part():
  """With a factor of 0, the embedding does not change."""
  built = experiment.build(
    tiny.tiny_config(
      client_optimizer='sgd:rate_factor=0,rate_factor_variables=embedding'
    )
  )
  state = built.process.initialize()
  before = built.process.get_model_weights(state).trainable
  output = built.process.next(state, built.sample_cohort(1))
  after = built.process.get_model_weights(output.state).trainable
  moved = [not np.array_equal(a, b) for a, b in zip(before, after)]
  assert moved.count(False) == 1
  embedding = moved.index(False)
  assert 'embedding' in built.model.variable_names[embedding]
  with pytest.raises(config.ConfigError, match='--client_optimizer: rate_fac'):
    experiment.build(
      tiny.tiny_config(
        client_optimizer='sgd:rate_factor=0,rate_factor_variables=nothing'
      )
    )
