"""The gate and the mixture, against computation by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated.personalization import mixture


def _softmax(x):
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


@pytest.fixture(name='logits')
def _logits():
  generator = np.random.default_rng(1)
  return [generator.normal(0, 3, [5, 4]).astype(np.float32) for _ in range(2)]


def test_probabilities_are_mixed(logits):
  local, overall = logits
  gate = np.array([[-30.0], [-1.0], [0.0], [2.0], [30.0]], np.float32)
  mixed = mixture.mix_logits(local, overall, gate, 'probabilities').numpy()
  g = _sigmoid(gate.astype(np.float64))
  expected = g * _softmax(local) + (1 - g) * _softmax(overall)
  np.testing.assert_allclose(np.exp(mixed), expected, rtol=1e-5, atol=1e-12)
  np.testing.assert_allclose(np.exp(mixed[0]), _softmax(overall[0]), rtol=1e-5)
  np.testing.assert_allclose(np.exp(mixed[-1]), _softmax(local[-1]), rtol=1e-5)


def test_one_worked_out_mixture():
  # Softmax of log(p) is p: g = 1/4 of (0.8, 0.2) and 3/4 of (0.4, 0.6).
  local = np.log([[0.8, 0.2]]).astype(np.float32)
  overall = np.log([[0.4, 0.6]]).astype(np.float32)
  gate = np.log([[1 / 3]]).astype(np.float32)
  mixed = mixture.mix_logits(local, overall, gate, 'probabilities')
  np.testing.assert_allclose(np.exp(mixed), [[0.5, 0.5]], rtol=1e-6)
  # Weights in the exponents, normalised to sum to 1.
  first, second = 0.8**0.25 * 0.4**0.75, 0.2**0.25 * 0.6**0.75
  mixed = mixture.mix_logits(local, overall, gate, 'log_probabilities')
  np.testing.assert_allclose(
    np.exp(mixed), np.array([[first, second]]) / (first + second), rtol=1e-5
  )


@pytest.mark.parametrize('mix', mixture.MIXES)
def test_a_mixture_is_a_distribution_with_a_gradient(logits, mix):
  local, overall = (tf.constant(100 * x) for x in logits)
  gate = tf.Variable([[-80.0], [-1.0], [0.0], [2.0], [80.0]])
  with tf.GradientTape() as tape:
    tape.watch([local, overall])
    mixed = mixture.mix_logits(local, overall, gate, mix)
    loss = -tf.reduce_mean(mixed[:, 0])
  np.testing.assert_allclose(
    tf.reduce_logsumexp(mixed, axis=-1), np.zeros([5]), atol=1e-4
  )
  for gradient in tape.gradient(loss, [gate, local, overall]):
    assert np.all(np.isfinite(gradient))


def _gate(seed=0):
  gate = mixture.initial_gate(9, embedding_size=3, units=4, seed=seed)
  generator = np.random.default_rng(5)
  # Biases begin at zero, which would hide their absence.
  return {
    name: weight + generator.normal(0, 0.5, weight.shape).astype(np.float32)
    for name, weight in gate.items()
  }


def _gate_by_hand(gate, vector, mean):
  features = np.concatenate([vector, mean])
  hidden = np.maximum(features @ gate['kernel'] + gate['bias'], 0)
  return (hidden @ gate['output_kernel'] + gate['output_bias'])[0]


_IDS = np.array([[7, 1, 2, 0], [7, 3, 0, 0]], np.int32)


def test_gate_of_positions():
  gate = _gate()
  positions = np.array([0, 1, 2, 4, 5], np.int32)
  found = mixture.gate_logits(gate, _IDS, positions).numpy()
  expected = []
  for position in positions:
    row, column = divmod(int(position), 4)
    seen = gate['embedding'][_IDS[row, : column + 1]]
    expected.append([_gate_by_hand(gate, seen[-1], seen.mean(axis=0))])
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gate_of_a_position_does_not_see_what_follows():
  gate = _gate()
  changed = _IDS.copy()
  changed[:, 2:] = 5
  first, second = (
    mixture.gate_logits(gate, ids, np.array([0, 1, 4, 5])).numpy()
    for ids in (_IDS, changed)
  )
  np.testing.assert_array_equal(first, second)


def test_gate_of_examples():
  gate = _gate()
  found = mixture.gate_logits(gate, _IDS, None).numpy()
  expected = []
  for row, count in zip(_IDS, (3, 2)):
    mean = gate['embedding'][row[:count]].mean(axis=0)
    expected.append([_gate_by_hand(gate, mean, mean)])
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_new_gate_is_near_one_half_and_a_function_of_the_seed():
  draws = [
    mixture.initial_gate(50, embedding_size=8, units=16, seed=seed)
    for seed in (0, 0, 1)
  ]
  for name, weight in draws[0].items():
    np.testing.assert_array_equal(weight, draws[1][name])
    assert weight.dtype == np.float32
  assert not np.array_equal(draws[0]['kernel'], draws[2]['kernel'])
  ids = np.arange(50, dtype=np.int32)[np.newaxis]
  logits = mixture.gate_logits(draws[0], ids, np.arange(50)).numpy()
  assert logits.shape == (50, 1)
  assert np.all(np.abs(_sigmoid(logits) - 0.5) < 0.05)
