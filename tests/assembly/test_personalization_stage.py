"""Experts and personalization evaluation, from flags to files."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest

from si_federated import config, experiment
from si_federated.assembly import (
  client_schedule,
  expert_options,
  private_mechanism,
)
from si_federated.personalization import client_hashing
from si_federated.tasks import ClientPopulation

_PARSE = config.ComponentSpec.parse
_EXPERTS = (
  'expert_personalization:opt_out=0.4,num_clients=4,max_epochs=1,gate_units=4'
)
_CONFIG = config.ExperimentConfig(
  'x',
  task=_PARSE('synthetic:num_clients=40'),
  model=_PARSE('cifg:units=8,embedding_size=4'),
  algorithm=_PARSE(_EXPERTS),
  vocab_size=20,
  sequence_length=6,
  clients_per_round=4,
  client_batch_size=8,
  total_rounds=1,
  rounds_per_eval=1,
  num_validation_examples=16,
  personalize_epochs=1,
  personalize_clients=3,
)


@pytest.fixture(name='built', scope='module')
def _built():
  return experiment.build(_CONFIG)


def _are_out(population):
  return {
    name
    for name in map(population.client_id, range(len(population)))
    if client_hashing.has_opted_out(name, seed=0, fraction=0.4)
  }


def test_clients_that_opted_out_have_no_number_in_the_rounds(built):
  everyone, train = built.whole_task.train, built.task.train
  names = {train.client_id(i) for i in range(len(train))}
  out = _are_out(everyone)
  assert 4 <= len(out) < len(everyone)
  assert not names & out
  assert len(names | out) == len(everyone) == len(train) + len(out)
  with pytest.raises(IndexError, match=f'{len(train)} clients'):
    train.examples(len(train))
  sampled = {
    client
    for round_num in range(1, 40)
    for client in built.sample_cohort(round_num).clients
  }
  assert sampled == set(range(len(train)))


@pytest.fixture(name='sealed')
def _sealed(built, monkeypatch):
  """Raises if anything reads a sentence of a client that has opted out."""
  everyone = built.whole_task.train
  out = _are_out(everyone)
  forbidden: set[int] = set()
  for index in range(len(everyone)):
    if everyone.client_id(index) in out:
      start, stop = everyone.arrays.client_offsets[index : index + 2]
      forbidden |= set(range(start, stop))
  read = ClientPopulation.ids_of

  def ids_of(self, sentences):
    if self.arrays is everyone.arrays and forbidden & set(
      np.asarray(sentences).tolist()
    ):
      raise AssertionError('Opened data of a client that has opted out.')
    return read(self, sentences)

  monkeypatch.setattr(ClientPopulation, 'ids_of', ids_of)


def test_rounds_never_read_clients_that_opted_out(built, sealed):
  state = built.process.initialize()
  for round_num in (1, 2):
    state = built.process.next(state, built.sample_cohort(round_num)).state
  # Every client that can be sampled, and everything computed from their text.
  for client in range(len(built.task.train)):
    built.task.train.client_batches(client, batch_size=8, seed=0)
  built.task.facts(built.validation_examples)
  # The seal works: the same rounds on the whole task break it.
  whole = dataclasses.replace(built, task=built.whole_task)
  with pytest.raises(Exception, match='a client that has opted out'):
    for client in range(len(built.whole_task.train)):
      whole.task.train.client_batches(client, batch_size=8, seed=0)
  with pytest.raises(Exception, match='a client that has opted out'):
    for round_num in range(1, 4):
      state = whole.process.next(state, whole.sample_cohort(round_num)).state


def test_rounds_train_on_the_training_part_alone(built):
  train, everyone = built.task.train, built.whole_task.train
  numbers = {everyone.client_id(i): i for i in range(len(everyone))}
  checked = 0
  for index in range(len(train)):
    name = train.client_id(index)
    whole = everyone.examples(numbers[name])
    parts = client_hashing.split_rows(
      len(whole), (0.6, 0.2, 0.2), 'experts', 0, name
    )
    expected = whole if parts is None else whole[parts[0]]
    np.testing.assert_array_equal(train.examples(index), expected)
    assert train.num_examples(index) == len(expected)
    passes = train.training_examples(index, epochs=2, seed=5)
    np.testing.assert_array_equal(
      np.sort(passes, axis=0),
      np.sort(np.concatenate([expected, expected]), axis=0),
    )
    rows = [
      np.concatenate([x.numpy(), y.numpy()[:, -1:]], axis=1)
      for x, y in train.client_batches(
        index, batch_size=3, seed=5, max_elements=7
      )
    ]
    assert all(len(batch) == 3 for batch in rows[:-1])
    np.testing.assert_array_equal(
      np.concatenate(rows),
      train.training_examples(index, seed=5, max_elements=7),
    )
    checked += parts is not None
  assert checked > 5


def test_privacy_covers_the_clients_of_the_rounds(built):
  summary = built.ledger.summary()
  train = built.task.train
  assert built.ledger.facts['num_clients'] == len(train)
  assert summary['delta'] == pytest.approx(len(train) ** -1.1)


def test_limits_of_a_guarantee(built):
  private = dataclasses.replace(
    _CONFIG,
    aggregator=_PARSE('gaussian'),
    participation=_PARSE('fixed_cycles'),
    clip_norm=0.5,
    noise_multiplier=0.5,
  )
  clients = len(built.task.train)
  schedule = client_schedule.build_schedule(private, clients)
  ledger = private_mechanism.build_ledger(
    private,
    private_mechanism.build_mechanism(private, schedule),
    train_metrics=['loss'],
    num_clients=clients,
  )
  told = ' '.join(ledger.summary()['not_covered'])
  assert 'clients/' in told and 'personalization.json' in told


@pytest.fixture(name='folder', scope='module')
def _folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  return root / 'x', experiment.run(_CONFIG, str(root))


@pytest.mark.slow
def test_files_and_summary(folder, built):
  path, summary = folder
  assert summary == {
    **json.loads((path / 'summary.json').read_text()),
    'privacy': summary['privacy'],  # Its epsilon is infinite.
  }
  personal = json.loads((path / 'personalization.json').read_text())
  assert personal['summary'] == summary['personalization']
  assert personal['settings']['learning_rate'] == 1.0
  with open(path / 'personalization.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  population = built.task.validation
  names = [population.client_id(i) for i in range(len(population))]
  assert {row['client'] for row in rows} <= set(names)
  assert len(rows) == summary['personalization']['num_clients']
  medians = [float(row['after/loss']) for row in rows]
  assert personal['metrics']['loss']['after']['quantiles'][
    '50'
  ] == pytest.approx(np.median(medians))

  experts = json.loads((path / 'experts.json').read_text())
  assert experts['summary'] == summary['experts']
  assert 'no guarantee' in experts['what']
  with open(path / 'experts.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(list((path / 'clients').iterdir())) == 4
  out = _are_out(built.whole_task.train)
  for row in rows:
    assert row['opted_in'] == str(row['client'] not in out)
    assert float(row['own/mixture/loss']) > 0
  # Clients that opted out have an entry, too.
  assert summary['experts']['num_opted_out'] == sum(
    row['client'] in out for row in rows
  )
  assert 0 < summary['experts']['num_opted_out'] < 4


@pytest.mark.parametrize(
  ('algorithm', 'message'),
  [
    ('opt_out=1', 'opt_out is a share of the clients, from 0 to below 1'),
    ('opt_out=half', 'opt_out=half'),
    ('num_clients=0', 'num_clients must be a whole number of at least 1'),
    ('mix=sum', 'mix must be one of probabilities'),
    ('patience=0', 'patience must be a whole number of at least 1'),
    ('patiense=3', "did you mean 'patience'"),
  ],
)
def test_refused_before_data_are_read(algorithm, message):
  changed = dataclasses.replace(
    _CONFIG, algorithm=_PARSE(f'expert_personalization:{algorithm}')
  )
  with pytest.raises(config.ConfigError, match=message) as error:
    experiment.check(changed)
  assert '\n' not in str(error.value)


def test_mixed_clients_can_not_opt_out():
  changed = dataclasses.replace(_CONFIG, client_similarity=0.5)
  with pytest.raises(config.ConfigError, match='leave out one of the two'):
    expert_options.check(changed)


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('personalize_epochs', -1),
    ('personalize_clients', 0),
    ('personalize_learning_rate', 0.0),
  ],
)
def test_numbers_out_of_range(name, value):
  with pytest.raises(config.ConfigError, match=f'--{name} must be'):
    dataclasses.replace(_CONFIG, **{name: value})


def test_personalization_may_differ_when_a_run_is_resumed():
  other = dataclasses.replace(
    _CONFIG, personalize_epochs=5, personalize_clients=7
  )
  assert not _CONFIG.differences(other)
  assert config.ExperimentConfig.from_json(other.to_json()) == other


@pytest.mark.slow
def test_again_on_a_finished_run(folder):
  path, summary = folder
  before = {
    file.name: file.read_bytes() for file in (path / 'clients').iterdir()
  }
  changed = dataclasses.replace(_CONFIG, personalize_epochs=2)
  again = experiment.run(changed, str(path.parent))
  assert again['experts'] == summary['experts']
  assert again['personalization'] != summary['personalization']
  after = {
    file.name: file.read_bytes() for file in (path / 'clients').iterdir()
  }
  assert after == before
  held = json.loads((path / 'config.json').read_text())
  assert held['personalize_epochs'] == 2


@pytest.mark.slow
def test_the_same_with_the_runtime_of_tff(folder, tmp_path):
  _, summary = folder
  changed = dataclasses.replace(_CONFIG, runtime=_PARSE('tff'))
  other = experiment.run(changed, str(tmp_path))
  for part in ('experts', 'personalization'):
    for name, value in summary[part].items():
      assert other[part][name] == pytest.approx(value, rel=1e-4), name
