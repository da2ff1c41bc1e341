"""Compressed updates in an aggregation: sums, bytes, and later clipping."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import compression
from si_federated.aggregators import build_gaussian
from si_federated.compression import Float32, Ternary, Uniform

_SHAPES = [[30, 40], [5], [1100]]


def _process(factory, shapes=_SHAPES, weighted=False):
  """Returns the initial state, and a step in the form that our runtime takes.

  A client's value is its update, and its weight if there are weights.
  """
  value_type = tff.to_type([tff.TensorType(np.float32, s) for s in shapes])
  if weighted:
    process = factory.create(value_type, tff.TensorType(np.float32))
    client_type = tff.to_type((value_type, np.float32))
  else:
    process = factory.create(value_type)
    client_type = tff.to_type((value_type,))

  @tff.federated_computation(
    process.initialize.type_signature.result,
    tff.FederatedType(client_type, tff.CLIENTS),
  )
  def step(state, value):
    output = process.next(state, *[value[i] for i in range(len(client_type))])
    return output.state, tff.federated_zip((output.result, output.measurements))

  def take(state, clients):
    if not weighted:
      clients = [(client,) for client in clients]
    state, (result, measurements) = step(state, clients)
    return state, result, measurements

  return process.initialize, take


def _update(seed, shapes=_SHAPES):
  generator = np.random.default_rng(seed)
  return [generator.normal(size=s).astype(np.float32) for s in shapes]


def _sent(update, compressor, seed, round_num):
  """Returns the bytes that a client sends, and the decoded update."""
  update = [tf.constant(part) for part in update]
  encoded = compression.encode_update(
    update,
    compressor,
    compression.round_seed(seed, tf.constant(round_num, tf.int64), update),
  )
  decoded = compression.decode_update(encoded, compressor, update)
  return compression.serialize(encoded), decoded


@pytest.mark.parametrize(
  'compressor',
  [Float32(), Uniform(bits=4, rotation='hadamard'), Ternary()],
  ids=str,
)
def test_decoded_updates_are_summed_and_serialized_bytes_counted(
  compressor,
):
  factory = compression.build_upload(
    tff.aggregators.SumFactory(), compressor, seed=9
  )
  assert isinstance(factory, tff.aggregators.UnweightedAggregationFactory)
  initialize, step = _process(factory)
  updates = [_update(seed) for seed in range(3)]
  updates[1][0][:] = 0
  state = initialize()
  for round_num in range(2):
    assert state['round_num'] == round_num
    state, result, measurements = step(state, updates)
    data, decoded = zip(
      *(_sent(update, compressor, 9, round_num) for update in updates)
    )
    for index, part in enumerate(result):
      expected = sum(update[index] for update in decoded)
      np.testing.assert_allclose(part, expected, rtol=0, atol=1e-4)
    sizes = [len(sent) for sent in data]
    assert measurements['bytes_up'] == sum(sizes)
    assert measurements['bytes_up_per_client'] == np.mean(sizes)
    assert measurements['bytes_up'].dtype == np.int64
  assert list(state) == ['round_num', 'inner']


def test_float32_changes_nothing():
  updates = [_update(seed) for seed in range(3)]
  results = []
  for factory in (
    tff.aggregators.SumFactory(),
    compression.build_upload(tff.aggregators.SumFactory(), Float32(), seed=0),
  ):
    initialize, step = _process(factory)
    results.append(step(initialize(), updates)[1])
  for one, other in zip(*results):
    np.testing.assert_array_equal(one, other)


def test_a_round_without_clients():
  initialize, step = _process(
    compression.build_upload(tff.aggregators.SumFactory(), Uniform(), seed=0)
  )
  _, _, measurements = step(initialize(), [])
  assert measurements['bytes_up_per_client'] == 0


def test_the_weighted_robust_mean():
  factory = compression.build_upload(
    tff.learning.robust_aggregator(clipping=False), Uniform(16), seed=0
  )
  assert isinstance(factory, tff.aggregators.WeightedAggregationFactory)
  initialize, step = _process(factory, weighted=True)
  updates = [_update(0), _update(1)]
  state, result, measurements = step(
    initialize(), [(updates[0], 1.0), (updates[1], 3.0)]
  )
  for part, one, other in zip(result, *updates):
    np.testing.assert_allclose(part, 0.25 * one + 0.75 * other, atol=1e-3)
  # A bitmap, two large variables in two bytes an entry, five floats.
  assert measurements['bytes_up'] == 2 * (1 + 2408 + 20 + 2208)
  assert 'zeroing_norm' in str(measurements)
  assert set(measurements) > {'zeroing', 'bytes_up', 'bytes_up_per_client'}
  assert state['round_num'] == 1


def _private(clip_norm, noise_multiplier=0.0, clients=1):
  return build_gaussian(
    clip_norm=clip_norm,
    noise_multiplier=noise_multiplier,
    clients_per_round=clients,
    total_rounds=100,
    noise_seed=1,
  ).factory


def test_a_private_mechanism_gets_decoded_updates():
  initialize, step = _process(
    compression.build_upload(_private(1.0, 0.5, 2), Uniform(), seed=0)
  )
  broken = _update(1)
  broken[0][2, 3] = np.nan
  state, result, measurements = step(initialize(), [_update(0), broken])
  assert measurements['nonfinite_updates'] == 1
  assert measurements['clip_fraction'] == 0.5
  assert measurements['clip_norm'] == 1
  assert measurements['bytes_up'] == 2 * (1 + 1208 + 20 + 1108)
  assert all(np.isfinite(part).all() for part in result)
  assert state['inner']['round_num'] == 1


@pytest.mark.parametrize(
  'compressor',
  [
    Uniform(bits=1, threshold=0),
    Uniform(bits=1, rotation='hadamard', threshold=0),
    Ternary(threshold=0),
  ],
  ids=str,
)
def test_the_sensitivity_is_the_clip_norm(compressor):
  clip_norm = 1.0
  initialize, step = _process(
    compression.build_upload(_private(clip_norm), compressor, seed=2), [[3]]
  )
  others = [[np.array([0.3, -0.2, 0.1], np.float32)]]
  state = initialize()
  longer = []
  for entries in itertools.product([-2.0, -0.67, -0.5, 0.5, 0.67], repeat=2):
    update = [np.array([entries[0], 0.3, entries[1]], np.float32)]
    state, with_it, _ = step(state, [*others, update])
    round_num = int(state['round_num']) - 1
    without = _process_once(compressor, others, round_num)
    difference = np.linalg.norm(with_it[0] - without)
    assert difference <= clip_norm * (1 + 1e-5)
    _, decoded = _sent(update, compressor, 2, round_num)
    length = np.linalg.norm(decoded[0])
    longer.append(np.linalg.norm(update[0]) < clip_norm < length)
    # Something was released.
    assert difference == pytest.approx(min(length, clip_norm), abs=1e-5)
  # Rounding did make updates longer than the clip norm.
  assert any(longer)


def _process_once(compressor, updates, round_num):
  total = np.zeros(3)
  for update in updates:
    _, decoded = _sent(update, compressor, 2, round_num)
    norm = np.linalg.norm(decoded[0])
    total += decoded[0].numpy() / max(norm, 1.0)
  return total


def test_rounding_is_reproducible_and_varies_with_round_and_seed():
  def rounds(seed):
    initialize, step = _process(
      compression.build_upload(
        tff.aggregators.SumFactory(), Uniform(bits=2), seed=seed
      )
    )
    state, results = initialize(), []
    for _ in range(2):
      state, result, _ = step(state, [_update(0)])
      results.append(result[0])
    return results

  one, same, other = rounds(1), rounds(1), rounds(2)
  np.testing.assert_array_equal(one, same)
  assert (one[0] != one[1]).any()
  assert (one[0] != other[0]).any()


def test_continuing_from_a_state_is_exact():
  def begin():
    return _process(
      compression.build_upload(
        tff.aggregators.SumFactory(), Uniform(bits=2), seed=1
      )
    )

  initialize, step = begin()
  middle, _, _ = step(initialize(), [_update(0)])
  _, expected, _ = step(middle, [_update(1)])
  _, step = begin()
  _, found, _ = step(middle, [_update(1)])
  for one, other in zip(found, expected):
    np.testing.assert_array_equal(one, other)


class _Measured(tff.aggregators.UnweightedAggregationFactory):
  """A sum with measurements of any form."""

  def __init__(self, measure):
    self._measure = tff.tensorflow.computation(measure)

  def create(self, value_type):
    inner = tff.aggregators.SumFactory().create(value_type)
    measure = self._measure

    @tff.federated_computation(
      inner.initialize.type_signature.result,
      tff.FederatedType(value_type, tff.CLIENTS),
    )
    def next_round(state, value):
      output = inner.next(state, value)
      return tff.templates.MeasuredProcessOutput(
        output.state, output.result, tff.federated_eval(measure, tff.SERVER)
      )

    return tff.templates.AggregationProcess(inner.initialize, next_round)


_Point = collections.namedtuple('_Point', ['x', 'y'])


@pytest.mark.parametrize(
  ('measure', 'names'),
  [
    (lambda: (), set()),
    (lambda: collections.OrderedDict(b=1, a=2), {'a', 'b'}),
    (lambda: _Point(1, 2), {'x', 'y'}),
    (lambda: 3, {'inner'}),
    (lambda: (1, 2), {'inner'}),
  ],
)
def test_inner_measurements_keep_their_names(measure, names):
  initialize, step = _process(
    compression.build_upload(_Measured(measure), Uniform(), seed=0)
  )
  _, _, measurements = step(initialize(), [_update(0)])
  assert isinstance(measurements, dict)
  assert set(measurements) == {*names, 'bytes_up', 'bytes_up_per_client'}


def test_invalid_factories_raise():
  inner = tff.aggregators.SumFactory()
  once = compression.build_upload(inner, Uniform(), seed=0)
  value_type = tff.to_type([tff.TensorType(np.float32, [2])])
  with pytest.raises(ValueError, match='already measures bytes_up'):
    compression.build_upload(once, Uniform(), seed=0).create(value_type)
  with pytest.raises(TypeError, match='aggregation factory'):
    compression.build_upload(inner.create, Uniform(), seed=0)
  for tensor in (
    tff.TensorType(np.int32, [2]),
    tff.TensorType(np.float32, [None]),
  ):
    with pytest.raises(TypeError, match='floats of known shapes'):
      once.create(tff.to_type([tensor]))
