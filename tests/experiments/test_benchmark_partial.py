"""Tests of the benchmark's section on partial training."""

from __future__ import annotations

import pytest

from experiments.benchmarking import partial, plan, workload


@pytest.mark.slow
def test_rounds_memory_and_upload_are_measured(tmp_path):
  made = plan.Plan(
    workload.Settings(str(tmp_path), batch_size=4, sequence_length=6),
    repetitions=2,
    attention_num_words=50,
    partial_model='cifg:units=16,embedding_size=8',
    partial_clients=2,
    partial_batches=2,
  )
  lines = partial.measure_partial(made)
  found = {r['algorithm']: r for r in made.found('partial_training')}
  assert list(found) == list(partial.ALGORITHMS)
  assert all(len(r['seconds']) == 2 for r in found.values())
  assert all(
    r['peak_bytes'] > 0 and r['building_peak_bytes'] > 0 for r in found.values()
  )
  assert all(
    r['tensor_peak_bytes'] is None
    or 0 <= r['tensor_peak_bytes'] < r['peak_bytes']
    for r in found.values()
  )
  assert all(min(r['processor_seconds']) > 0 for r in found.values())
  whole, *others = (r['bytes_up_per_client'] for r in found.values())
  assert all(0 < other < whole for other in others)
  assert len(lines) == 2 + len(partial.ALGORITHMS)
