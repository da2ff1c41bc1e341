"""Tests of the benchmark's section on attention."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from experiments.benchmarking import (
  attention,
  attention_child,
  plan,
  workload,
)
from si_federated.models import MODELS


def test_the_stock_model_is_ours_with_the_same_weights():
  ours = MODELS['transformer'](
    30, embedding_size=8, intermediate_dim=12, num_heads=2, num_layers=2
  )
  stock = attention_child.StockTransformer(ours, 30)
  ids = np.array([[3, 9, 4, 7, 2], [8, 1, 29, 0, 0]], np.int32)
  stock(tf.constant(ids))
  assert stock.count_params() == ours.count_params()
  generator = np.random.default_rng(0)
  weights = [
    generator.normal(size=w.shape).astype('float32') for w in ours.weights
  ]
  ours.set_weights(weights)
  stock.set_weights(
    [w.reshape(v.shape) for w, v in zip(weights, stock.weights)]
  )
  expected, actual = ours(ids).numpy(), stock(tf.constant(ids)).numpy()
  valid = ids != 0
  np.testing.assert_allclose(
    actual[valid], expected[valid], rtol=1e-3, atol=1e-3
  )


@pytest.mark.slow
def test_steps_and_large_models_are_measured(tmp_path):
  made = plan.Plan(
    workload.Settings(str(tmp_path), batch_size=4, sequence_length=6),
    repetitions=1,
    attention_sizes=(
      'embedding_size=8,num_heads=2,intermediate_dim=16,num_layers=1',
    ),
    attention_num_words=50,
    large_models=('cifg:units=16,embedding_size=8',),
  )
  lines = attention.measure_attention(made)
  steps = made.found('attention_step')
  assert {(s['kind'], s['contestant']) for s in steps} == {
    (kind, name) for kind in attention.KINDS for name in attention.CONTESTANTS
  }
  assert all(len(s['seconds']) == 5 and min(s['seconds']) > 0 for s in steps)
  for kind in attention.KINDS:
    taken = {
      s['contestant']: np.median(s['seconds'])
      for s in steps
      if s['kind'] == kind
    }
    (ours,) = made.found(
      'attention_step', kind=kind, contestant='si_transformer'
    )
    assert ours['relative_to_keras'] == taken['si_transformer'] / taken['keras']
  (large,) = made.found('large_model')
  assert large['peak_bytes'] > 2**20
  assert sum('si_transformer' in line for line in lines) == 2
