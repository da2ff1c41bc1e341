"""Privacy report cards of trained runs and of handmade folders."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
from scipy import stats

from si_federated import experiment, reporting
from si_federated.privacy import (
  accounting,
  ledger,
  participation,
  schedules,
  strategy_files,
)
from si_federated.privacy import strategies as strategies_lib
from si_federated.reporting import privacy_card
from tests import tiny


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The folder of a private run."""
  root = tmp_path_factory.mktemp('runs')
  private = tiny.tiny_config(
    'private',
    aggregator='blt:num_buffers=1',
    participation='min_separation',
    min_separation=3,
    max_participations=2,
    clip_norm=0.5,
    target_epsilon=4.0,
    delta=1e-5,
    noise_seed=1,
    total_rounds=6,
  )
  experiment.run(private, str(root))
  return root / 'private'


def _compare(*folders):
  return reporting.compare([reporting.read_run(folder) for folder in folders])


def _rows(card):
  return {row[0]: list(row[1:]) for row in card.numbers.rows}


def test_the_card_of_a_run(trained, make_run, tmp_path):
  comparison = _compare(trained, _handmade(make_run, 'open', None))
  (card,) = privacy_card.build(comparison)
  facts = json.loads((trained / 'privacy.json').read_text())
  promised, so_far = facts['promised'], facts['so_far']
  assert card.heading == 'private'
  assert card.guarantee == (
    'ε 4.000 at δ 1e-05, for the whole run; '
    f'{so_far["epsilon"]:.3f} after 6 rounds. It is simulated: this run itself '
    'does not provide it.'
  )
  statements = {name: '; '.join(texts) for name, texts in card.statements}
  for name, text in (
    ('Unit of privacy', 'all the updates of one client'),
    ('Neighbouring data sets', 'zero-out'),
    ('Trust model', 'the server is trusted'),
    ('Released with noise', 'the models after all rounds'),
    ('Released without noise', 'train/clip_fraction'),
    (
      'Participation promised',
      '6 rounds, at most 2 participations of a client, 3 rounds or more apart '
      '(--participation=min_separation)',
    ),
    ('Participation observed', '6 rounds, '),
    ('Sampling that amplifies', 'none'),
    ('Mechanism', 'blt:num_buffers=1 (kind blt), clip norm 0.5, noise mult'),
    ('Not covered', 'validation clients'),
    ('Simulated, not real, because', '--noise_seed'),
  ):
    assert text in statements[name], name
  # Sensitivity over noise is mu, which determines the rest.
  mu = promised['sensitivity'] / promised['noise_multiplier']
  assert card.numbers.columns == ('', 'the whole run', 'rounds so far')
  rows = _rows(card)
  assert float(rows['μ (Gaussian DP)'][0]) == pytest.approx(mu, rel=1e-3)
  assert float(rows['ρ (zCDP)'][0]) == pytest.approx(mu**2 / 2, rel=1e-3)
  assert rows['ε at δ 1e-05'][0] == '4'
  assert float(rows['ε at δ 1e-08'][0]) == pytest.approx(
    accounting.gaussian_epsilon(1 / mu, 1e-8), rel=1e-3
  )
  for percent in (0.1, 1, 10):
    row = rows[f'true positives of the best attack at {percent:g} % false ones']
    true = stats.norm.cdf(stats.norm.ppf(percent / 100) + mu)
    assert row[0] == f'{100 * true:.2f} %'
  assert card.picture is not None

  written = reporting.write_report(comparison, tmp_path, 'Two runs')
  names = {path.name for path in written}
  assert {'privacy.html', 'privacy.md', 'privacy_noise_1.png'} <= names
  page = (tmp_path / 'privacy.html').read_text()
  text = (tmp_path / 'privacy.md').read_text()
  for content in (page, text):
    for words in [card.guarantee, *statements, *rows, card.picture.caption]:
      assert words in content.replace('&#39;', "'")
  assert '![privacy noise 1](privacy_noise_1.png)' in text
  assert page.count('<svg') == 1 and not re.search(r'(src|href)="[^#]', page)
  report = (tmp_path / 'report.md').read_text()
  assert 'privacy.html shows the guarantee and its limits' in report


def test_a_run_without_noise_has_no_card(make_run, tmp_path):
  # Not clipped either, and clipped but without noise.
  clipped = accounting.PrivacyRecord(
    strategies_lib.identity(4), 0.0, participation.Participation(4, 4, 1)
  )
  comparison = _compare(
    _handmade(make_run, 'open', None), _handmade(make_run, 'clipped', clipped)
  )
  assert privacy_card.build(comparison) == []
  written = reporting.write_report(comparison, tmp_path, 'Two runs')
  assert not [path for path in written if 'privacy' in path.name]
  assert 'privacy' not in (tmp_path / 'report.md').read_text()


def _copy(trained, tmp_path, content):
  folder = shutil.copytree(trained, tmp_path / 'private')
  if content is None:
    (folder / 'privacy.json').unlink()
  else:
    (folder / 'privacy.json').write_text(content)
  return folder


def test_a_missing_file_is_reported_in_one_sentence(trained, tmp_path):
  comparison = _compare(_copy(trained, tmp_path, None))
  assert privacy_card.build(comparison) == []
  assert privacy_card.sentences(comparison) == [
    'private has an ε but no privacy.json, and thus no privacy report card.'
  ]


@pytest.mark.parametrize(
  'content',
  [
    '{"private": tr',
    '[]',
    '{"private": true}',
    '{"private": 1, "promised": 3}',
  ],
)
def test_a_damaged_file_is_reported_in_one_sentence(trained, tmp_path, content):
  folder = _copy(trained, tmp_path, content)
  with pytest.raises(ValueError, match=r'privacy\.json is not .* restore it'):
    privacy_card.build(_compare(folder))


def _handmade(make_run, name, record, observe=True):
  """Returns a run folder with the privacy.json of a ledger."""
  folder = make_run(name)
  strategy = getattr(record, 'strategy', None)
  book = ledger.Ledger(
    mechanism='gaussian',
    delta=1e-5,
    record=record,
    facts={
      'strategy': strategy and strategy_files.facts(strategy),
      'participation': 'poisson',
      'clip_norm': 1.0,
    },
  )
  if observe:
    book.record(1, [0, 1])
    book.record(2, [0])
  (folder / 'privacy.json').write_text(json.dumps(book.summary()))
  if strategy and not isinstance(strategy, strategies_lib.Tree):
    strategy_files.save(folder / 'strategy.npz', strategy)
  return folder


def test_with_and_without_amplification_side_by_side(make_run):
  record = accounting.PrivacyRecord(
    strategies_lib.identity(8),
    1.0,
    participation.Participation(8, 8, 1),
    schedules.Amplification('poisson', 0.1),
  )
  (card,) = privacy_card.build(_compare(_handmade(make_run, 'a', record)))
  assert card.numbers.columns[1:] == (
    'the whole run',
    'the whole run, without amplification',
    'rounds so far',
    'rounds so far, without amplification',
  )
  rows = _rows(card)
  # Amplified noise is not a Gaussian mechanism. Without amplification it is 8
  # rounds with noise 1, so far 2 rounds.
  assert rows['μ (Gaussian DP)'] == ['–', '2.828', '–', '1.414']
  epsilons = [float(cell) for cell in rows['ε at δ 1e-05']]
  assert epsilons == pytest.approx(
    [
      record.epsilon(1e-5),
      accounting.gaussian_epsilon(8**-0.5, 1e-5),
      dataclasses.replace(
        record, contract=participation.Participation(2, 2, 1)
      ).epsilon(1e-5),
      accounting.gaussian_epsilon(2**-0.5, 1e-5),
    ],
    rel=1e-3,
  )
  attack = rows['true positives of the best attack at 10 % false ones']
  assert (
    attack[1] == f'{100 * stats.norm.cdf(stats.norm.ppf(0.1) + 8**0.5):.2f} %'
  )
  assert 10 < float(attack[0][:-2]) < float(attack[1][:-2])
  statements = dict(card.statements)
  assert 'probability 0.1' in statements['Sampling that amplifies'][0]
  assert 'one client' in statements['Neighbouring data sets'][0]


def test_runs_of_the_same_privacy_share_a_card(make_run):
  record = accounting.PrivacyRecord(
    strategies_lib.Tree(4), 2.0, participation.Participation(4, 1, 4)
  )
  other = record.with_noise(3.0)
  folders = [
    _handmade(make_run, 'a', record),
    _handmade(make_run, 'b', record),
    _handmade(make_run, 'c', other, observe=False),
  ]
  cards = privacy_card.build(_compare(*folders))
  assert [card.heading for card in cards] == ['a, b', 'c']
  assert cards[1].numbers.columns == ('', 'the whole run')
  assert all(card.picture for card in cards)


def test_noise_of_an_unknown_strategy_is_not_drawn(make_run):
  record = accounting.PrivacyRecord(
    strategies_lib.Toeplitz(np.array([1.0, 0.5]), 4),
    2.0,
    participation.Participation(4, 1, 4),
  )
  folder = _handmade(make_run, 'a', record)
  other = strategies_lib.Toeplitz(np.array([1.0, 0.25]), 4)
  strategy_files.save(folder / 'strategy.npz', other)
  (card,) = privacy_card.build(_compare(folder))
  assert card.picture is None
  (text,) = dict(card.statements)['Noise over rounds']
  assert 'does not contain the strategy' in text
  # The numbers do not need it.
  mu = record.sensitivity.value / 2
  assert _rows(card)['μ (Gaussian DP)'][0] == f'{mu:.4g}'
  assert mu == pytest.approx(math.sqrt(1.25) / 2)


def _changed(make_run, name, record, **changes):
  """Returns a card of a run whose privacy.json was changed."""
  folder = _handmade(make_run, name, record)
  facts = json.loads((folder / 'privacy.json').read_text())
  promised = {**facts['promised'], **changes.pop('promised', {})}
  facts = {**facts, **changes, 'promised': promised}
  (folder / 'privacy.json').write_text(json.dumps(facts))
  (card,) = privacy_card.build(_compare(folder))
  return card


@pytest.mark.parametrize('simulated', [True, False])
def test_a_file_of_an_earlier_version_says_what_it_lacks(make_run, simulated):
  record = accounting.PrivacyRecord(
    strategies_lib.Toeplitz(np.array([1.0, 0.5]), 4),
    2.0,
    participation.Participation(4, 1, 4),
  )
  folder = _handmade(make_run, 'a', record)
  facts = json.loads((folder / 'privacy.json').read_text())
  for name in ('simulated_because', 'trust_model', 'released', 'strategy'):
    del facts[name]
  facts['simulated'] = simulated
  (folder / 'privacy.json').write_text(json.dumps(facts))
  (card,) = privacy_card.build(_compare(folder))
  statements = dict(card.statements)
  (text,) = statements['Not recorded']
  assert 'simulated_because, trust_model, released, strategy' in text
  assert ('Simulated, not real, because' in statements) == simulated
  # Independent noise would be the wrong picture.
  assert card.picture is None
  assert 'not shown' in statements['Noise over rounds'][0]
  assert _rows(card)['μ (Gaussian DP)'][0] == f'{1.25**0.5 / 2:.4g}'


def _tree(noise):
  return accounting.PrivacyRecord(
    strategies_lib.Tree(4), noise, participation.Participation(4, 1, 4)
  )


def test_noise_is_that_of_the_updates_of_this_cohort(make_run):
  plain = _changed(make_run, 'a', _tree(3.0)).picture
  # The noise of cohorts of 16, divided by 4 clients.
  larger = _changed(
    make_run, 'b', _tree(12.0), noise_cohort_size=16, clients_per_round=4
  ).picture
  # A count of clipped clients is released as well; updates get more noise.
  counted = _changed(
    make_run, 'c', _tree(2.0), update_noise_multiplier=3.0
  ).picture
  other = _changed(make_run, 'd', _tree(2.0)).picture
  assert plain and larger and counted and other
  assert plain.svg == larger.svg == counted.svg != other.svg


def test_sampling_and_earlier_runs_are_named(make_run):
  bins = {'kind': 'balls_in_bins', 'probability': 0.25, 'groups': 4}
  card = _changed(
    make_run,
    'a',
    _tree(3.0),
    promised={
      'amplification': bins,
      'epsilon_confidence': 0.999,
      'earlier': [
        {'kind': 'identity', 'noise_multiplier': 5.0, 'sensitivity': 2.0}
      ],
    },
  )
  statements = dict(card.statements)
  assert statements['Sampling that amplifies'] == [
    'balls in bins, each client in each of 4 groups with probability 0.25, '
    'accounted by Monte Carlo with confidence 0.999; who takes part must stay '
    'secret'
  ]
  assert statements['Counted with it'] == [
    'an earlier run on these clients (kind identity, noise multiplier 5, '
    'sensitivity 2 clip norms)'
  ]
  cut = {'kind': 'poisson', 'probability': 0.1, 'groups': 1}
  cut['max_cohort_size'] = 7
  card = _changed(make_run, 'c', _tree(3.0), promised={'amplification': cut})
  assert dict(card.statements)['Sampling that amplifies'] == [
    'Poisson, each client with probability 0.1 in each round, of whom at most '
    '7 at random take part; who takes part must stay secret'
  ]
  # There are two guarantees even if only the earlier run is sampled.
  other = {'epsilons': [{'delta': 1e-5, 'epsilon': 1.5}]}
  card = _changed(make_run, 'b', _tree(3.0), promised={'profile': other})
  assert len(card.numbers.columns) == 1 + 2 * 2
  assert ' without amplification' in card.guarantee
