"""Tests of the tables' exact text."""

from __future__ import annotations

import math

import pytest

from si_federated import reporting
from si_federated.reporting import tables


def _compare(*folders):
  return reporting.compare([reporting.read_run(folder) for folder in folders])


def test_table_for_the_terminal(make_run):
  comparison = _compare(
    make_run('fine'),
    make_run(
      'wild',
      model='si_cifg:units=256,embedding_size=96',
      perplexities=(4000, 80.25, math.nan),
      total_rounds=30,
      finished=False,
    ),
  )
  assert reporting.groups_table(comparison) is None
  table = reporting.runs_table(comparison)
  assert dict(zip(table.columns, zip(*table.rows))) == {
    'run': ('fine', 'wild'),
    'model': ('cifg', 'si_cifg'),
    'parameters': ('1,412,730', '–'),
    'rounds': ('30', '20'),
    'final perplexity': ('200.0', 'not finite'),
    'best perplexity': ('200.0', '80.2'),
    'best at round': ('30', '10'),
    'accuracy': ('1.5 %', '1.0 %'),
    'secs a round': ('2', '2'),
    'wall time': ('1 min 00 s', '40 s'),
    'up a client': ('4.7 MB', '4.7 MB'),
    'down a client': ('4.7 MB', '4.7 MB'),
    'state': ('finished', 'diverged at round 20'),
  }
  lines = table.as_text().splitlines()
  assert [line[:46] for line in lines] == [
    'run   model    parameters  rounds  final perpl',
    '----  -------  ----------  ------  -----------',
    'fine  cifg      1,412,730      30             ',
    'wild  si_cifg           –      20        not f',
  ]


def test_table_of_repeated_runs(make_run):
  comparison = _compare(
    make_run('a0', perplexities=(9000, 1000, 1100)),
    make_run('a1', perplexities=(9000, 2000, 1300), model_seed=1),
    make_run('b0', perplexities=(9000, 5.0, math.inf), clients_per_round=5),
  )
  table = reporting.groups_table(comparison)
  assert table is not None
  assert table.rows == (
    (
      'clients a round 20',
      '2',
      '1,200 ± 141.4',
      '1,150 ± 212.1',
      '0',
    ),
    ('clients a round 5', '1', 'known for 0 of 1', '5.00', '1'),
  )


def test_settings_determined_by_others_have_a_table_of_their_own(make_run):
  noise = {'clip_norm': 1.0, 'target_epsilon': 8.0}
  comparison = _compare(
    *(
      make_run(
        f'{model}{rate}{private}',
        model=f'{model}:units={units}',
        client_learning_rate=rate,
        aggregator='blt' if private else 'mean',
        **(noise if private else {}),
      )
      for model, units in (('cifg', 256), ('si_cifg', 128))
      for rate in (0.3, 1.0)
      for private in (True, False)
    )
  )
  table = reporting.runs_table(comparison)
  assert table.columns[:4] == ('run', 'model', 'client lr', 'aggregator')
  assert table.columns[4] == 'parameters'
  implied = tables.implied_table(comparison)
  assert implied is not None
  assert implied.columns == (
    'setting', 'cifg, blt', 'cifg, mean', 'si_cifg, blt', 'si_cifg, mean',
  )  # fmt: skip
  assert implied.rows == (
    ('model units', '256', '256', '128', '128'),
    ('clip norm', '1', '–', '1', '–'),
    ('target epsilon', '8', '–', '8', '–'),
  )
  assert tables.implied_table(_compare(make_run('alone'))) is None


def test_columns_without_values_are_left_out(make_run):
  folder = make_run('a', finished=False)
  (folder / 'metrics.csv').write_text('round_num,train/loss\n1,7\n')
  table = reporting.runs_table(_compare(folder))
  assert table.columns == ('run', 'rounds', 'state')
  assert table.rows == (('a', '1', 'unfinished, 1 of 30 rounds'),)


def test_bars_in_cells_do_not_break_markdown():
  table = tables.Table(('a', 'b'), (('x|y', '1'),), (False, True))
  assert table.as_markdown() == '| a | b |\n| --- | ---: |\n| x\\|y | 1 |'


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (None, '–'),
    (1.0, '1.00'),
    (97.44, '97.4'),
    (12345.6, '12,346'),
    (5.3e38, '5.3e+38'),
  ],
)
def test_perplexities_as_text(value, text):
  assert tables.number(value) == text


@pytest.mark.parametrize(
  ('secs', 'text'),
  [
    (59.2, '59 s'),
    (59.7, '1 min 00 s'),
    (119.8, '2 min 00 s'),
    (3599.9, '1 h 00 min'),
    (7384, '2 h 03 min'),
    (5e6, '1,388 h 53 min'),
  ],
)
def test_durations_as_text(secs, text):
  assert tables.duration(secs) == text
