"""Tests of the benchmark: its parts, and the command as a user runs it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarking import (
  flops,
  plan,
  protocol,
  steps,
  table,
  workload,
)

_ROOT = pathlib.Path(__file__).parents[2]


def test_step_flops_are_those_of_the_formula():
  settings = workload.Settings(folder='')
  lstm = flops.step_flops(settings, 'lstm')
  tokens, vocabulary = 16 * 20, 10_004
  assert lstm == 6 * tokens * (
    96 * 4 * 670 + 670 * 4 * 670 + 670 * 96 + 96 * vocabulary
  )
  assert lstm == pytest.approx(5.9e9, rel=0.01)
  gate = 6 * tokens * 670 * (96 + 670)
  assert lstm - flops.step_flops(settings, 'cifg') == gate
  assert flops.step_flops(settings, 'si_cifg') == lstm - gate


def test_full_sentences_have_no_padding_and_depend_on_the_seed():
  settings = workload.Settings(folder='', num_words=30, sequence_length=5)
  ids = workload.full_sentences(settings, 200)
  assert ids.shape == (200, 6) and ids.dtype == np.int32
  assert set(ids[:, 0]) == {32}
  assert ids[:, 1:].min() == 1 and ids[:, 1:].max() == 30
  assert np.array_equal(ids, workload.full_sentences(settings, 200))
  counts = np.bincount(ids[:, 1:].ravel())
  assert counts[1] > 3 * counts[10]


def test_cohorts_and_weights_are_saved_and_loaded(tmp_path):
  settings = workload.Settings(folder=str(tmp_path), batch_size=2)
  clients = [
    np.array([[9, 1, 2], [9, 3, 0]]),
    np.array([[9, 4, 5], [9, 6, 7], [9, 8, 0]]),
  ]
  workload.save_cohort(settings, 'uneven', clients)
  loaded = workload.load_cohort(settings, 'uneven')
  assert [client.tolist() for client in loaded] == [
    client.tolist() for client in clients
  ]
  assert workload.num_steps(settings, loaded) == 1 + 2
  assert workload.num_tokens(loaded) == 3 + 5
  path = str(tmp_path / 'weights.npz')
  weights = [np.full([i + 1], float(i)) for i in range(12)]
  workload.save_weights(path, weights)
  assert [w.tolist() for w in workload.load_weights(path)] == [
    w.tolist() for w in weights
  ]
  assert (
    workload.Settings.from_json({**settings.as_json(), 'more': 1}) == settings
  )


def test_disagreement_is_relative_to_the_update():
  initial = [np.zeros([2]), np.ones([1])]
  reference = [np.array([3.0, 0.0]), np.array([5.0])]
  other = [np.array([3.0, 0.0]), np.array([5.5])]
  assert workload.disagreement(other, reference, initial) == pytest.approx(0.1)
  assert workload.disagreement(reference, reference, initial) == 0


def test_plan_finds_records_and_leaves_out():
  made = plan.Plan(workload.Settings(folder=''), contestants=['local', 'pfl'])
  made.record('round', contestant='local', seconds=1)
  made.record('round', contestant='pfl', seconds=2)
  assert [r['seconds'] for r in made.found('round', contestant='pfl')] == [2]
  made.leave_out('pfl', 'none')
  assert made.present(['pfl', 'local']) == ['local']
  assert made.notes == ['pfl is left out: none']


def test_table_is_aligned():
  assert table.table([{'a': 'ccc'}, {'a': 'd', 'bb': 'e'}]) == [
    '| a   | bb |',
    '|-----|----|',
    '| ccc |    |',
    '| d   | e  |',
  ]


def test_our_cohorts_have_the_same_batches():
  from experiments.benchmarking import ours

  settings = workload.Settings(
    folder='', num_words=5, sequence_length=3, batch_size=2
  )
  # Words 1..5, unknown 6, beginning 7, end 8.
  clients = [
    np.array([[7, 1, 6, 5], [7, 2, 8, 0], [7, 3, 4, 8]]),
    np.array([[7, 8, 0, 0]]),
  ]
  for cohort in (
    ours.cohort(settings, clients),
    ours.tff_cohort(settings, clients),
  ):
    for client, dataset in zip(clients, cohort):
      batches = list(dataset.as_numpy_iterator())
      assert max(len(x) for x, _ in batches) <= 2
      x, y = (np.concatenate(part) for part in zip(*batches))
      # Batches may be cut to their longest sentence.
      width = x.shape[1]
      assert x.tolist() == client[:, :-1][:, :width].tolist()
      assert y.tolist() == client[:, 1:][:, :width].tolist()
      assert not client[:, 1:][:, width:].any()


def _benchmark(*args, **options):
  return subprocess.run(
    [sys.executable, '-m', 'experiments.benchmark', *map(str, args)],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
    **options,
  )


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--contestants=local,flower', "--contestants has 'flower'; choose from"),
    ('--sections=', '--sections is empty'),
    ('--pfl_python=nowhere/python', '--pfl_python=nowhere/python does not'),
    ('--repetitions=0', 'repetitions'),
    ('--accelerator_clients=ten', '--accelerator_clients=ten must be numbers'),
    ('--record=experiments', '--record=experiments is not empty'),
  ],
)
def test_wrong_flags_end_with_a_sentence(tmp_path, flag, message):
  done = _benchmark(flag, f'--output_dir={tmp_path / "out"}')
  assert done.returncode == 2, done.stderr
  assert message in done.stderr and 'Traceback' not in done.stderr
  assert not (tmp_path / 'out').exists()


class _FakeContestant:
  """Answers like a child process of the section on steps."""

  def __init__(self, name, module, settings, **unused_options):
    self._name, self._settings = name, settings
    self._seconds = iter((9.0, 3.0, 5.0, 1.0))

  def __enter__(self):
    return self

  def __exit__(self, *unused_error):
    pass

  def close(self, *, at_once):
    assert at_once

  def about(self):
    if self._name == 'ray':
      raise protocol.ChildError('ray ended with code 1: no ray')
    if self._name != 'workload':
      return {'how': 'somehow'}
    settings = workload.Settings.from_json(self._settings)
    path = workload.weights_file(settings, 'cifg')
    workload.save_weights(path, [np.zeros([2])])
    numbers = {'clients': 3, 'steps': 4, 'tokens': 60, 'sentences': 12}
    return {'clients': dict.fromkeys(self._settings['kinds'], numbers)}

  def ask(self, command, *, path=None, **unused_fields):
    if command == 'update':
      workload.save_weights(path, [np.array([3.0, 4.0])])
      return {}
    return {'seconds': next(self._seconds)}


def test_steps_are_medians_of_rounds(monkeypatch, tmp_path):
  monkeypatch.setattr(protocol, 'Child', _FakeContestant)
  made = plan.Plan(
    workload.Settings(folder=str(tmp_path)),
    contestants=('local', 'ray'),
    models=('cifg',),
    kinds=('single', 'uneven'),
    repetitions=2,
  )
  lines = steps.measure_steps(made)
  rounds = made.found('round')
  # The kinds take turns.
  assert [(r['kind'], r['seconds']) for r in rounds] == [
    *(('single', 9.0), ('uneven', 3.0), ('single', 5.0), ('uneven', 1.0)),
  ]
  single, uneven = made.found('steps')
  assert single['round_seconds'] == 7.0 and uneven['round_seconds'] == 2.0
  assert uneven['steps_per_second'] == pytest.approx(4 / 2)
  assert steps.seconds_a_step(made, 'local', 'cifg', 'single') == 7 / 4
  assert steps.seconds_a_step(made, 'ray', 'cifg', 'single') is None
  assert 'ray is left out: ray ended with code 1: no ray' in made.notes
  assert '| cifg  | single  | local ' in lines[2] and '(reference)' in lines[2]


def _records(folder):
  text = (folder / 'benchmark.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_quick_run_measures_steps(tmp_path):
  out = tmp_path / 'out'
  done = _benchmark(
    '--quick',
    '--contestants=local',
    '--models=cifg',
    '--client_kinds=single,uneven',
    '--sections=steps',
    f'--output_dir={out}',
  )
  assert done.returncode == 0, done.stderr
  assert sorted(path.name for path in out.iterdir()) == [
    'benchmark.jsonl',
    'machine.json',
    'table.md',
  ]
  records = _records(out)
  rounds = [r for r in records if r['record'] == 'round']
  assert [(r['kind'], r['repetition']) for r in rounds] == [
    ('single', 0),
    ('uneven', 0),
    ('single', 1),
    ('uneven', 1),
  ]
  (single,) = [
    r for r in records if r['record'] == 'steps' and r['kind'] == 'single'
  ]
  median = np.median([r['seconds'] for r in rounds if r['kind'] == 'single'])
  assert single['round_seconds'] == pytest.approx(median)
  assert single['steps_per_second'] == pytest.approx(3 / median)
  machine = json.loads((out / 'machine.json').read_text())
  assert machine['cores'] == len(os.sched_getaffinity(0))
  table_text = (out / 'table.md').read_text()
  assert '| cifg  | single  | local ' in table_text
  assert 'figures mean nothing' in table_text


@pytest.mark.slow
def test_every_section_with_tff(tmp_path):
  out = tmp_path / 'out'
  done = _benchmark(
    '--quick',
    '--contestants=local,tff',
    '--models=lstm',
    f'--output_dir={out}',
  )
  assert done.returncode == 0, done.stderr
  records = _records(out)
  agreements = [r for r in records if r['record'] == 'agreement']
  assert {r['kind'] for r in agreements} == set(workload.KINDS)
  assert all(r['same_work'] for r in agreements)
  ways = [r['way'] for r in records if r.get('name') == 'square']
  assert ways == ['one product on all cores', 'a product a core']
  (limit,) = [r for r in records if r['record'] == 'limit']
  square = max(
    r['flops_per_second'] for r in records if r.get('name') == 'square'
  )
  assert limit['limit_seconds'] == pytest.approx(limit['step_flops'] / square)
  memory = [r for r in records if r['record'] == 'peak_memory']
  assert [r['clients'] for r in memory] == [2, 4]
  assert all(100e6 < r['bytes'] < 20e9 for r in memory)
  for record in ('start_up', 'empty_client'):
    assert {r['contestant'] for r in records if r['record'] == record} == {
      'local',
      'tff',
    }
