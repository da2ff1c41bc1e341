"""Tests of the benchmark's section on accelerators."""

from __future__ import annotations

import pytest

from experiments.benchmarking import accelerator, plan, workload

_MODELS = (
  'lstm',
  'cifg:units=8,embedding_size=4,projection_units=4',
  'transformer:embedding_size=8,num_heads=2,intermediate_dim=8,num_layers=1',
)


def _plan(folder, **changes):
  return plan.Plan(
    workload.Settings(
      str(folder),
      task='synthetic',
      num_words=50,
      embedding_size=4,
      units=8,
      batch_size=4,
      max_elements=8,
      sequence_length=6,
    ),
    **{
      'repetitions': 1,
      'attention_num_words': 50,
      'kinds': ('uneven',),
      'accelerator_clients': (3,),
      'accelerator_models': _MODELS,
      'matmul_precision': 'highest',
      **changes,
    },
  )


@pytest.mark.slow
def test_the_runtime_and_plain_jax_do_the_same_work(tmp_path):
  made = _plan(tmp_path)
  lines = accelerator.measure_accelerator(made)
  found = made.found('accelerator')
  assert [(r['model'], r['contestant']) for r in found] == [
    (model, contestant)
    for model in _MODELS
    for contestant in ('runtime', 'recorded programs', 'plain JAX')
  ]
  for row in found:
    assert row['num_clients'] == 3 and row['round_seconds'] > 0
    if row['contestant'] != 'runtime':
      # Updates of weights are less precise than sums.
      exact = row['contestant'] != 'plain JAX'
      assert row['deviation'] < (1e-5 if exact else 1e-4), row
      assert row['agrees'] and row['compile_seconds'] > 0 and row['bytes'] > 0
    if row['contestant'] == 'plain JAX':
      assert row['relative_to_floor'] == 1.0
  assert 'cpu' in lines[0] and len(lines) == 4 + len(found)
