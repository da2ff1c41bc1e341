"""Tests of the model that clients receive, and of compressed training."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from si_federated import compression, runtime
from si_federated.compression import Float32, Ternary, Uniform

# If both ran on TFF's runtime, it would be compared with itself.
pytestmark = pytest.mark.filterwarnings('error:A computation goes to TFF')


def _weights(seed=0):
  generator = np.random.default_rng(seed)

  def one(*shape):
    return generator.normal(size=shape).astype(np.float32)

  return tff.learning.models.ModelWeights(
    (one(30, 40), one(40), np.zeros([1000], np.float32)), (one(1500),)
  )


def _type(weights):
  return tff.to_type(
    tff.learning.models.ModelWeights(
      *(
        tuple(tff.TensorType(part.dtype.type, part.shape) for part in parts)
        for parts in (weights.trainable, weights.non_trainable)
      )
    )
  )


def _receive(process, weights_type):
  """Returns a computation of a state, weights and one client's receipt."""
  state_type = process.initialize.type_signature.result.member
  server_type = tff.to_type(
    collections.OrderedDict(state=state_type, weights=weights_type)
  )

  @tff.tensorflow.computation(server_type)
  def get_state(server):
    return server['state']

  @tff.tensorflow.computation(server_type)
  def get_weights(server):
    return server['weights']

  @tff.tensorflow.computation(state_type, weights_type)
  def join(state, weights):
    return collections.OrderedDict(state=state, weights=weights)

  @tff.tensorflow.computation(weights_type, np.int32)
  def at_client(weights, number):
    del number
    return tf.nest.flatten(weights)

  @tff.federated_computation(
    tff.FederatedType(server_type, tff.SERVER),
    tff.FederatedType(np.int32, tff.CLIENTS),
  )
  def receive(server, number):
    output = process.next(
      tff.federated_map(get_state, server),
      tff.federated_map(get_weights, server),
    )
    received = tff.federated_map(at_client, (output.result, number))
    # The value of the server must be returned unchanged.
    return tff.federated_map(
      join, (output.state, tff.federated_map(get_weights, server))
    ), tff.federated_zip((tff.federated_sum(received), output.measurements))

  def take(state, weights):
    server = collections.OrderedDict(state=state, weights=weights)
    server, (received, measurements) = receive(server, [0])
    return server['state'], received, measurements

  return take


@pytest.mark.parametrize(
  'compressor',
  [Float32(), Uniform(), Uniform(16, 'fourier'), Ternary('hadamard')],
  ids=str,
)
def test_clients_receive_the_decoded_model(compressor):
  weights = _weights()
  weights_type = _type(weights)
  process = compression.build_download(compressor, weights_type, seed=6)
  take = _receive(process, weights_type)
  state = process.initialize()
  parts = [tf.constant(part) for part in tf.nest.flatten(weights)]
  received = []
  for round_num in range(2):
    state, found, measurements = take(state, weights)
    encoded = compression.encode_update(
      parts,
      compressor,
      compression.round_seed(6, tf.constant(round_num, tf.int64)),
    )
    data = compression.serialize(encoded)
    assert measurements['bytes_down_per_client'] == len(data)
    decoded = compression.decode_update(
      compression.deserialize(data, compressor, parts), compressor, parts
    )
    for one, other in zip(found, decoded):
      np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)
    received.append(found)
  assert state['round_num'] == 2
  if isinstance(compressor, Float32):
    for one, other in zip(received[0], parts):
      np.testing.assert_array_equal(one, other)
  else:
    assert (received[0][0] != received[1][0]).any()


def test_bytes_by_hand():
  weights = _weights()
  process = compression.build_download(Uniform(bits=16), _type(weights), seed=0)
  take = _receive(process, _type(weights))
  _, _, measurements = take(process.initialize(), weights)
  # A bitmap of four; 1,200 and 1,500 in two bytes each; 40 floats; zeros.
  assert measurements['bytes_down_per_client'] == 1 + 2408 + 160 + 3008


def test_weights_that_are_not_floats_raise():
  weights_type = tff.to_type(
    tff.learning.models.ModelWeights(
      (tff.TensorType(np.float32, [2]),), (tff.TensorType(np.int64),)
    )
  )
  with pytest.raises(TypeError, match='int64'):
    compression.build_download(Uniform(), weights_type, seed=0)
  with pytest.raises(ValueError, match='seed'):
    compression.build_download(Uniform(), _type(_weights()), seed=-1)


def _keras_model():
  def dense(units, seed, **options):
    initializer = tf.keras.initializers.GlorotUniform(seed=seed)
    return tf.keras.layers.Dense(
      units, kernel_initializer=initializer, **options
    )

  return tf.keras.Sequential(
    [
      tf.keras.layers.InputLayer([3]),
      dense(400, 1, activation='tanh'),
      dense(1, 2),
    ]
  )


def _model():
  return tff.learning.models.functional_model_from_keras(
    _keras_model,
    tf.keras.losses.MeanSquaredError(),
    (tf.TensorSpec([None, 3], tf.float32), tf.TensorSpec([None, 1])),
    metrics_constructor=lambda: collections.OrderedDict(
      mse=tf.keras.metrics.MeanSquaredError()
    ),
  )


def _clients(round_num):
  def dataset(number):
    generator = np.random.default_rng([round_num, number])
    x = generator.normal(size=[6, 3]).astype(np.float32)
    y = x.sum(axis=1, keepdims=True)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(4)

  return [dataset(number) for number in range(2)]


def _process(upload, download, learning_rate=0.05):
  model = _model()
  weights_type = tff.to_type(
    tff.learning.models.ModelWeights(
      *(
        tuple(tff.TensorType(part.dtype.type, part.shape) for part in parts)
        for parts in model.initial_weights
      )
    )
  )
  return tff.learning.algorithms.build_weighted_fed_avg(
    model,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(learning_rate),
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
    model_distributor=compression.build_download(
      download, weights_type, seed=1
    ),
    model_aggregator=compression.build_upload(
      tff.learning.robust_aggregator(clipping=False), upload, seed=1
    ),
  )


def _train(process, rounds=2):
  state = process.initialize()
  for round_num in range(rounds):
    output = process.next(state, _clients(round_num))
    state = output.state
  return process.get_model_weights(state).trainable, output.metrics


@pytest.mark.slow
def test_a_round_of_training_on_every_runtime():
  process = _process(Uniform(bits=12, rotation='hadamard'), Uniform(bits=16))
  results = {}
  for name in ('local', 'tff'):
    runtime.RUNTIMES[name]()
    try:
      results[name] = _train(process)
    finally:
      runtime.set_local_context()
  # 3 x 400 in 12 bits, padded to 2,048, with range and key; 801 floats.
  up = 1 + (8 + 8 + 3072) + 4 * 801
  for _, metrics in results.values():
    assert metrics['aggregator']['bytes_up_per_client'] == up
    assert metrics['aggregator']['bytes_up'] == 2 * up
    assert metrics['distributor']['bytes_down_per_client'] > 2400
  (ours, _), (theirs, _) = results.values()
  for one, other in zip(ours, theirs):
    # A tiny difference can change the rounding, by up to a few levels.
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)


def test_without_loss_training_is_unchanged():
  plain = tff.learning.algorithms.build_weighted_fed_avg(
    _model(),
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(0.05),
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
    model_aggregator=tff.learning.robust_aggregator(clipping=False),
  )
  expected, _ = _train(plain)
  found, metrics = _train(_process(Float32(), Float32()))
  for one, other in zip(found, expected):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
  assert metrics['aggregator']['bytes_up_per_client'] == 1 + 4 * 2001


def test_clients_train_from_the_rounded_model():
  model = _model()
  download = Ternary(threshold=0)
  process = _process(Uniform(), download, learning_rate=0.0)
  initial = tuple(map(tf.constant, model.initial_weights[0]))
  encoded = compression.encode_update(
    initial,
    download,
    compression.round_seed(1, tf.constant(0, tf.int64)),
  )
  rounded = compression.decode_update(encoded, download, initial)
  trained, metrics = _train(process, 1)
  losses = {}
  for name, parts in (('exact', initial), ('rounded', rounded)):
    batches = [batch for client in _clients(0) for batch in client]
    x, y = (tf.concat(part, 0) for part in zip(*batches))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
      weights = (tuple(part.numpy() for part in parts), ())
      predicted = session.run(
        model.predict_on_batch(weights, x.numpy(), training=False)
      )
    losses[name] = float(tf.reduce_mean(tf.square(predicted - y)))
  found = metrics['client_work']['train']['mse']
  assert found == pytest.approx(losses['rounded'], rel=1e-4)
  assert abs(losses['exact'] - losses['rounded']) > 0.01
  # Nothing was trained, so the server's model is unchanged, not rounded.
  for one, other in zip(trained, initial):
    np.testing.assert_array_equal(one, other)
  assert metrics['aggregator']['bytes_up_per_client'] == 1
