"""Diagnostics against computation by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers
from si_federated.diagnostics import quantities
from si_federated.layers import tapping

NAMES = ['a/kernel', 'a/bias', 'b/kernel', 'c']


def _values(rows):
  table = {(layer, quantity): value for layer, quantity, value in rows}
  assert len(table) == len(rows)
  return table


def test_weights_by_hand():
  before = [[[3.0]], [4.0], [2.0, 0.0], [0.0]]
  after = [[[3.0]], [3.0], [2.0, 1.0], [0.0]]
  found = _values(quantities.weight_rows(NAMES, after, before))
  assert found['a', 'weight_norm'] == pytest.approx(18**0.5)
  assert found['a', 'update_norm'] == 1
  assert found['a', 'effective_learning_rate'] == pytest.approx(0.2)
  # (0, -1) with (3, 4).
  assert found['a', 'update_weight_cosine'] == pytest.approx(-0.8)
  assert found['b', 'update_weight_cosine'] == 0
  assert found['model', 'update_norm'] == pytest.approx(2**0.5)
  assert found['model', 'effective_learning_rate'] == pytest.approx(
    (2 / 29) ** 0.5
  )
  # Nothing to divide by.
  assert found['c', 'update_norm'] == 0
  assert ('c', 'effective_learning_rate') not in found
  assert ('c', 'update_weight_cosine') not in found
  first = _values(quantities.weight_rows(NAMES, after))
  assert {quantity for _, quantity in first} == {'weight_norm'}


def test_gradients_by_hand():
  weights = [[[1.0]], [0.0], [1.0, 1.0], [2.0]]
  gradients = [[[2.0]], [0.0], [-1.0, 0.0], [0.0]]
  found = _values(quantities.gradient_rows(NAMES, weights, gradients))
  assert found['a', 'gradient_weight_cosine'] == pytest.approx(1)
  assert found['b', 'gradient_weight_cosine'] == pytest.approx(-(0.5**0.5))
  assert ('c', 'gradient_weight_cosine') not in found
  assert found['model', 'gradient_norm'] == pytest.approx(5**0.5)


def test_clients_by_brute_force():
  generator = np.random.default_rng(0)
  updates = [
    [generator.normal(size=s) for s in ((1, 3), (3,), (2,), (1,))]
    for _ in range(4)
  ]
  found = _values(quantities.client_rows(NAMES, updates))
  flat = np.array([np.concatenate([v.ravel() for v in u]) for u in updates])
  for layer, part in (
    ('a', slice(0, 6)),
    ('b', slice(6, 8)),
    ('model', slice(0, None)),
  ):
    values = flat[:, part]
    assert found[layer, 'client_drift'] == pytest.approx(
      np.mean([v @ v for v in values]) ** 0.5
    )
    # The unbiased variance of each coordinate, added up.
    assert found[layer, 'client_variance'] == pytest.approx(
      values.var(axis=0, ddof=1).sum()
    )
    assert found[layer, 'client_mean_update_norm'] == pytest.approx(
      np.linalg.norm(values.mean(axis=0))
    )
  alone = _values(quantities.client_rows(NAMES, updates[:1]))
  assert ('a', 'client_variance') not in alone
  assert quantities.client_rows(NAMES, []) == []


def test_gates_by_hand():
  gates = np.array([[0.0, 1.0, 0.5], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
  found = _values(quantities.gate_rows('x', gates))
  assert found['x', 'dead_gates'] == pytest.approx(6 / 9)
  assert found['x', 'dead_units'] == pytest.approx(1 / 3)
  assert found['x', 'dead_gate_rows'] == pytest.approx(1 / 3)


def test_attention_by_hand():
  half, sure, none = [0.5, 0.5], [1.0, 0.0], [0.0, 0.0]
  # One sentence of two words, one of a word and padding; two heads.
  weights = np.array([[[sure, half], [half, half]], [[none, half]] * 2])
  valid = np.array([[True, True], [True, False]])
  found = _values(quantities.attention_rows('x', weights, valid))
  assert found['x/head_1', 'attention_entropy'] == pytest.approx(np.log(2) / 3)
  assert found['x/head_2', 'attention_entropy'] == pytest.approx(
    2 * np.log(2) / 3
  )
  assert found['x', 'attention_entropy'] == pytest.approx(np.log(2) / 2)
  assert found['x', 'dead_attention_rows'] == pytest.approx(1 / 3)


def _max_normalized(x):
  most = np.max(np.abs(x), axis=-1, keepdims=True)
  return np.divide(x, most, out=np.zeros_like(x), where=most > 0)


@pytest.mark.parametrize('unroll', [True, False])
def test_gates_of_a_recurrent_layer_by_brute_force(unroll):
  tf.keras.utils.set_random_seed(1)
  layer = layers.SICIFG(3, return_sequences=True, unroll=unroll, name='cell')
  x = np.random.default_rng(0).normal(size=[4, 5, 2]).astype('float32')
  valid = np.array([[1] * n + [0] * (5 - n) for n in (5, 3, 1, 4)], bool)
  layer(x)
  with tapping.record() as taps:
    layer(x)
  found = _values(
    quantities.tap_rows(
      {('net/' + s, n): v for (s, n), v in taps.items()}, valid
    )
  )
  kernel, recurrent, bias = layer.get_weights()
  h = c = np.zeros([4, 3], np.float32)
  forget, output = [], []
  for step in range(5):
    z = x[:, step] @ kernel + h @ recurrent + bias
    f, g, o = np.split(z, 3, axis=-1)
    f, o = (_max_normalized(np.maximum(gate, 0)) for gate in (f, o))
    g = _max_normalized(g)
    c = f * c + (1 - f) * g
    h = o * _max_normalized(c)
    forget.append(f)
    output.append(o)
  for name, gates in (('forget', forget), ('output', output)):
    values = np.stack(gates, axis=1)[valid]
    assert 0 < np.mean(values == 0) < 1
    for quantity, expected in (
      ('dead_gates', np.mean(values == 0)),
      ('dead_units', np.mean(np.all(values == 0, axis=0))),
      ('dead_gate_rows', np.mean(np.all(values == 0, axis=1))),
    ):
      actual = found[f'cell/{name}_gate', quantity]
      assert actual == pytest.approx(expected)


def test_nothing_is_seen_in_graphs_or_when_nobody_records():
  layer = layers.MultiHeadAttention(1, 2)
  x = tf.ones([1, 2, 2])
  traced = tf.function(lambda x: layer(x))
  with tapping.record() as taps:
    traced(x)
  assert not taps
  layer(x)
  assert not taps
