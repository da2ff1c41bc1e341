"""The ledger's epsilon, round by round."""

from __future__ import annotations

from si_federated.privacy import (
  accounting,
  ledger,
  participation,
  schedules,
  strategies,
)


def test_rows_under_sampling_do_not_end_above_the_promise():
  rounds, delta = 20, 1e-5
  record = accounting.PrivacyRecord(
    strategies.identity(rounds),
    0.7,
    participation.Participation(rounds, rounds, 1),
    schedules.Amplification('poisson', 0.1),
  )
  promised = record.epsilon(delta)
  assert record.epsilon(delta, method='rdp') > 1.05 * promised
  book = ledger.Ledger(mechanism='gaussian', delta=delta, record=record)
  rows = []
  for round_num in range(1, rounds + 1):
    book.record(round_num, [0, round_num])
    rows.append(book.row()['privacy/epsilon'])
  assert rows[-1] <= promised
  assert rows == sorted(rows)
  assert rows[0] < rows[-1]
