"""The ledger's epsilon, round by round."""

from __future__ import annotations

import pathlib
import re

from si_federated.privacy import (
  accounting,
  ledger,
  participation,
  schedules,
  strategies,
)

_ROOT = pathlib.Path(__file__).parents[2]


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


def test_under_sampling_an_empty_cohort_costs_as_much_as_any_other():
  rounds, delta = 6, 1e-5
  contract = participation.Participation(rounds, rounds, 1)
  record = accounting.PrivacyRecord(
    strategies.identity(rounds),
    1.0,
    contract,
    schedules.Amplification('poisson', 0.1),
  )
  found = []
  for cohort in ([], [3, 5]):
    book = ledger.Ledger(mechanism='gaussian', delta=delta, record=record)
    book.record(1, cohort)
    book.record(2, [])
    found.append((book.epsilon(), book.summary()['epsilon']))
  # The epsilon of two rounds, whoever was drawn.
  two = participation.Participation(2, 2, 1)
  expected = record.after(two)
  assert (
    found[0]
    == found[1]
    == (
      min(expected.epsilon(delta, method='rdp'), record.epsilon(delta)),
      expected.epsilon(delta),
    )
  )
  # If it is known who takes part, nobody took part.
  book = ledger.Ledger(
    mechanism='gaussian', delta=delta, record=record.without_amplification()
  )
  book.record(1, [])
  assert book.epsilon() == book.summary()['epsilon'] == 0


def test_tuning_is_named_as_not_covered():
  told = ledger.Ledger(mechanism='gaussian', delta=1e-5).summary()
  assert any('hyper-parameters' in text for text in told['not_covered'])


def test_each_pitfall_has_a_test():
  readme = _ROOT / 'si_federated' / 'privacy' / 'README.md'
  table = readme.read_text().partition('## Pitfalls')[2].partition('\n## ')[0]
  rows = [line for line in table.splitlines() if line.startswith('| ')][2:]
  assert len(rows) > 20
  for row in rows:
    names = re.findall(r'`([a-z_/]+[.]py)::(test_[a-z_]+)`', row)
    assert names, row
    for file, name in names:
      assert f'\ndef {name}(' in (_ROOT / 'tests' / file).read_text(), name
