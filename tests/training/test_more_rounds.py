"""More rounds than a run was planned for."""

from __future__ import annotations

from typing import Any

import pytest

from si_federated import config, experiment
from si_federated.assembly import checks
from si_federated.training import run_folder
from tests import tiny


@pytest.mark.slow
def test_a_longer_run_goes_on_to_the_bit(tmp_path):
  options: dict[str, Any] = {'rounds_per_eval': 1}
  whole, part = tmp_path / 'whole', tmp_path / 'part'
  experiment.run(tiny.tiny_config(total_rounds=4, **options), str(whole))
  experiment.run(tiny.tiny_config(total_rounds=2, **options), str(part))
  summary = experiment.run(
    tiny.tiny_config(total_rounds=4, **options), str(part)
  )
  assert summary['rounds'] == 4
  tiny.assert_same_run(whole / 'x', part / 'x')
  assert run_folder.read_config(part / 'x').total_rounds == 4


def _folder_of(tmp_path, **options):
  folder = run_folder.RunFolder(tmp_path)
  folder.open(tiny.tiny_config(total_rounds=20, **options))
  folder.open_metrics(-1)
  folder.close()
  return folder


@pytest.mark.parametrize(
  ('options', 'reason'),
  [
    (
      {'aggregator': 'gaussian', 'clip_norm': 1.0, 'noise_multiplier': 1.0},
      'guarantee of --aggregator=gaussian',
    ),
    ({'server_learning_rate_schedule': 'linear'}, 'schedule=linear'),
  ],
)
def test_parts_planned_for_the_rounds_forbid_more(tmp_path, options, reason):
  folder = _folder_of(tmp_path, **options)
  longer = tiny.tiny_config(total_rounds=40, **options)
  planned = checks.planned_for_rounds(longer)
  with pytest.raises(
    config.ConfigError,
    match=f'20 rounds.*{reason}.*--initial_model=.*pay the privacy of both',
  ):
    folder.open(longer, planned)
  assert run_folder.read_config(tmp_path).total_rounds == 20


def test_fewer_rounds_and_other_flags_are_refused(tmp_path):
  folder = _folder_of(tmp_path)
  with pytest.raises(config.ConfigError, match='--total_rounds: 10 here'):
    folder.open(tiny.tiny_config(total_rounds=10))
  with pytest.raises(config.ConfigError, match='--clients_per_round: 3 here'):
    folder.open(tiny.tiny_config(total_rounds=40, clients_per_round=3))
