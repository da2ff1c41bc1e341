"""An earlier run that provides a clip norm, and the privacy that it cost."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NoReturn, Optional

from si_federated import config
from si_federated.privacy import (
  accounting,
  participation,
  schedules,
  strategies,
)
from si_federated.training import run_folder

_AGGREGATOR = 'adaptive_gaussian'


@dataclasses.dataclass(frozen=True)
class EarlierRun:
  """A finished private run that adapted its clip norm.

  Attributes:
    clip_norm: The clip norm of its last round.
    record: The accounting record of its releases.
    facts: Plain values that determine both.
    simulated_because: Clauses that say why its guarantee is simulated.
  """

  clip_norm: float
  record: accounting.PrivacyRecord
  facts: dict[str, Any]
  simulated_because: tuple[str, ...]


def read(
  experiment: config.ExperimentConfig, num_clients: Optional[int] = None
) -> Optional[EarlierRun]:
  """Reads the run of `--clip_norm_from`.

  Args:
    experiment: The experiment.
    num_clients: The number of its training clients, if known.

  Returns:
    The run; None without the flag.

  Raises:
    config.ConfigError: If it is not a finished private run with an adaptive
      clip norm, or trained on other clients.
  """
  path = experiment.clip_norm_from
  if path is None:
    return None
  settings = run_folder.read_config(path)
  privacy = run_folder.read_privacy(path)
  so_far = privacy.get('so_far')
  if settings.aggregator.name != _AGGREGATOR:
    _refuse(path, f'has --aggregator={settings.aggregator}', 'give')
  if not so_far or not privacy.get('private'):
    _refuse(path, 'has no guarantee in privacy.json', 'give')
  rows = run_folder.read_metrics(path)
  rounds = privacy['observed']['rounds']
  if rounds != settings.total_rounds or not rows:
    _refuse(path, f'has not finished (round {rounds})', 'finish it, or give')
  here: dict[str, Any] = {
    'client_similarity': experiment.client_similarity,
    'num_clients': num_clients,
  }
  for name, value in here.items():
    there = privacy.get(name)
    if name == 'num_clients' and num_clients is None:
      continue
    if there != value:
      _refuse(
        path,
        f'had other clients ({name} was {there} there and is {value} here)',
        'its privacy cost is not theirs; give',
      )
  try:
    clip_norm = float(rows[-1]['train/clip_norm'])
    record = _record(so_far)
    if int(rows[-1]['round_num']) != rounds:
      raise ValueError('its last row belongs to another round')
    if so_far.get('earlier') or not 0 < clip_norm < math.inf:
      raise ValueError(f'a clip norm of {clip_norm}, or an earlier run')
  except (KeyError, TypeError, ValueError) as error:
    raise config.ConfigError(
      f'--clip_norm_from={path}: its clip norm and privacy cannot be read '
      f'({error}); give a finished run with {_AGGREGATOR}.'
    ) from error
  return EarlierRun(
    clip_norm,
    record,
    {
      'clip_norm': clip_norm,
      'mechanism': privacy.get('mechanism'),
      'client_seed': privacy.get('client_seed'),
      **{
        key: so_far[key]
        for key in (
          'noise_multiplier',
          'contract',
          'amplification',
          'releases_per_round',
        )
      },
    },
    tuple(privacy.get('simulated_because', ())),
  )


def check_clients(
  experiment: config.ExperimentConfig, fingerprint: Any
) -> None:
  """Checks that the run of `--clip_norm_from` trained on the same clients.

  Args:
    experiment: The experiment.
    fingerprint: The fingerprint of this experiment's training clients; see
      `tasks.data_fingerprint`.

  Raises:
    config.ConfigError: If that run trained on other clients.
  """
  path = experiment.clip_norm_from
  if path is None:
    return
  there = run_folder.read_task(path).get('train_fingerprint')
  if there != fingerprint:
    _refuse(
      path,
      'had other clients (its training data differ)',
      'its privacy cost is not theirs; give',
    )


def _record(so_far):
  contract = participation.Participation(**so_far['contract'])
  sampling = so_far['amplification']
  record = accounting.PrivacyRecord(
    strategies.identity(contract.rounds),
    so_far['noise_multiplier'],
    contract,
    sampling and schedules.Amplification(**sampling),
    so_far['releases_per_round'],
  )
  # Mixtures over both runs' draws cannot be accounted for, so assume that the
  # groups are known.
  return record.without_amplification() if record.is_by_monte_carlo else record


def _refuse(path: str, what: str, instead: str) -> NoReturn:
  raise config.ConfigError(
    f'--clip_norm_from={path} {what}; {instead} a finished private run with '
    f'{_AGGREGATOR} on the clients of this run.'
  )
