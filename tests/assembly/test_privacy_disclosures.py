"""Outputs that a private run writes without noise are in privacy.json."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest

from si_federated import experiment
from tests import tiny

# Columns about the machine, public facts or validation clients.
_NOT_OF_TRAINING_CLIENTS = {
  'round_num',
  'train/clip_norm',
  'round_secs',
  'eval_secs',
  'secs_total',
  'clients_per_sec',
  'bytes_up_per_client',
  'bytes_down_per_client',
  'bytes_up_total',
  'bytes_down_total',
  'privacy/epsilon',
}
_PRIVATE: dict[str, Any] = {
  'aggregator': 'gaussian',
  'clip_norm': 1.0,
  'noise_multiplier': 1.0,
  'participation': 'poisson',
}


def _run(tmp_path, **changes):
  """Returns the columns that a run fills, and its privacy.json."""
  experiment.run(tiny.tiny_config(**changes), str(tmp_path))
  with open(tmp_path / 'x' / 'metrics.csv', newline='') as file:
    columns = {
      name
      for row in csv.DictReader(file)
      for name, value in row.items()
      if value
    }
  return columns, json.loads((tmp_path / 'x' / 'privacy.json').read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [
    _PRIVATE,
    {**_PRIVATE, 'aggregator': 'adaptive_gaussian:count_noise=2'},
    {**_PRIVATE, 'algorithm': 'partial_training'},
    {**_PRIVATE, 'compression': 'ternary', 'participation': 'balls_in_bins'},
    {**_PRIVATE, 'algorithm': 'mime_lite', 'participation': 'uniform'},
    {**_PRIVATE, 'aggregator': 'distributed_dp', 'participation': 'uniform'},
    {
      **_PRIVATE,
      'aggregator': 'tree',
      'participation': 'fixed_cycles',
      'min_separation': 2,
    },
  ],
  ids=[
    'poisson',
    'adaptive',
    'partial',
    'compressed',
    'two_releases',
    'distributed',
    'cycles',
  ],
)
def test_every_column_is_named_or_public(tmp_path, changes):
  columns, privacy = _run(tmp_path, **changes)
  named = {name.partition(' ')[0] for name in privacy['released_without_noise']}
  of_validation = {name for name in columns if name.startswith('eval/')}
  assert columns <= named | _NOT_OF_TRAINING_CLIENTS | of_validation
  assert {name for name in named if name.startswith('train/')} <= columns
  # The size of a cohort is secret if clients are sampled.
  sampled = changes['participation'] in ('poisson', 'balls_in_bins')
  assert ('clients_per_sec' in named) == sampled
  assert ('bytes_down_total' in named) == sampled
  # The size of an update that was encoded depends on its values.
  encoded = 'compression' in changes or 'partial' in str(changes)
  assert ('bytes_up_per_client' in named) == encoded
  # What else the folder reveals about training clients.
  assert 'privacy.json:' in named if sampled else 'privacy.json:' not in named
  facts = json.loads((tmp_path / 'x' / 'task.json').read_text())
  assert 'train_fingerprint' in facts and 'task.json:' in named
  assert any('validation clients' in text for text in privacy['not_covered'])
