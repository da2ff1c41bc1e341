"""Privacy without TensorFlow: participation, strategies and accounting.

- `participation`, `schedules`, `amplification`: contracts, the cohorts that
  meet them, and amplification by sampling;
- `workloads`, `toeplitz`, `blt`, `gram`, `binary_tree`: matrices and their
  optima;
- `strategies`, `strategy_files`, `comparison`: records of strategies, their
  files and their errors;
- `sensitivity`, `record`, `accounting`, `discrete_noise`, `ledger`, `auditing`:
  their privacy.

README.md explains the contract, the matrices and the accounting.
"""

from si_federated.privacy.accounting import PrivacyRecord, calibrate
from si_federated.privacy.comparison import build, compare, format_rows
from si_federated.privacy.participation import (
  Participation,
  ParticipationRecorder,
)
from si_federated.privacy.sensitivity import Sensitivity

__all__ = [
  'Participation',
  'ParticipationRecorder',
  'PrivacyRecord',
  'Sensitivity',
  'build',
  'calibrate',
  'compare',
  'format_rows',
]
