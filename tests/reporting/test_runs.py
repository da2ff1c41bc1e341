"""Tests of reading run folders, including broken and unfinished ones."""

from __future__ import annotations

import json
import math

import pytest

from si_federated import reporting
from si_federated.reporting import runs


def test_whole_run_is_read(make_run):
  run = reporting.read_run(make_run('a'))
  assert run.name == 'a'
  assert run.finished
  assert run.last_round == 30
  assert run.total_rounds == 30
  assert run.num_parameters == 1412730
  assert run.reference_perplexity == {'unigram': 512.3}
  assert run.divergence is None
  assert run.notes == ()
  assert run.finite('eval/perplexity').to_dict() == {
    0: 4000,
    10: 800,
    20: 400,
    30: 200,
  }
  assert len(run.finite('train/loss')) == 30
  assert run.wall_secs()[30] == 60.0
  assert not len(run.finite('no such column'))


def test_run_folders_are_found_in_natural_order(make_run, tmp_path):
  for name in ('lr10', 'lr3', 'lr0.3', 'b'):
    make_run(name)
  (tmp_path / 'runs' / 'report').mkdir()
  found = reporting.find_runs([str(tmp_path / 'runs')])
  assert [path.name for path in found] == ['b', 'lr0.3', 'lr3', 'lr10']


def test_named_folders_keep_their_order_and_come_once(make_run):
  one, two = make_run('a'), make_run('b')
  found = reporting.find_runs([str(two), str(one), str(two), f'{one}/'])
  assert found == [two, one]


def test_missing_folder_and_folder_without_runs(tmp_path):
  with pytest.raises(FileNotFoundError, match='no folder .*nowhere'):
    reporting.find_runs([str(tmp_path / 'nowhere')])
  with pytest.raises(FileNotFoundError, match='has a metrics.csv'):
    reporting.find_runs([str(tmp_path)])
  with pytest.raises(FileNotFoundError, match='metrics.csv does not exist'):
    reporting.read_run(tmp_path)


@pytest.mark.parametrize(
  'end', ['31,7.6', '31,7.6,,,,,2.0,62.0,47000', '3', '31,"7', '\xff']
)
def test_torn_last_line_is_left_out_and_noted(make_run, end):
  folder = make_run('a', finished=False)
  with open(folder / 'metrics.csv', 'ab') as file:
    file.write(end.encode('latin-1') if end != '\xff' else b'31,\xc3')
  run = reporting.read_run(folder)
  assert run.last_round == 30
  assert run.notes == ('the incomplete last line of metrics.csv was left out.',)
  assert not run.finished


def test_header_alone_is_a_run_without_rounds(make_run):
  folder = make_run('a', finished=False)
  header = (folder / 'metrics.csv').read_text().splitlines()[0]
  (folder / 'metrics.csv').write_text(header + '\n')
  run = reporting.read_run(folder)
  assert run.last_round == 0
  assert run.divergence is None
  assert not len(run.wall_secs())


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', r'metrics\.csv is empty'),
    (b'\n\n', r'metrics\.csv is empty'),
    (b'\xff\xfe\x00\x01\n', 'is not a CSV file'),
    (b'a,b\n1,2\n', 'has no column round_num'),
    (b'round_num,x\n1,2\n', 'none of the columns train/loss'),
    (b'round_num,train/loss\n1,2,3\n', 'line 2, has 3 fields instead of 2'),
    (b'round_num,train/loss\n1,2\n2\n', 'line 3, has 1 fields instead of 2'),
    (b'round_num,train/loss\n1,low\n', "column train/loss: 'low' is not a num"),
    (b'round_num,train/loss\n1.5,2\n', 'line 2, has no whole number in column'),
    (b'round_num,train/loss\n,2\n', 'line 2, has no whole number in column'),
    (b'round_num,train/loss\nnan,2\n', 'line 2, has no whole number in col'),
  ],
)
def test_bad_metrics_end_with_one_sentence(make_run, content, message):
  folder = make_run('a')
  (folder / 'metrics.csv').write_bytes(content)
  with pytest.raises(ValueError, match=message) as caught:
    reporting.read_run(folder)
  assert str(folder) in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('content', ['', '{"a": 1', '[1]', '\x00'])
@pytest.mark.parametrize('name', ['config', 'task', 'summary'])
def test_bad_json_names_the_file(make_run, name, content):
  folder = make_run('a')
  (folder / f'{name}.json').write_text(content)
  with pytest.raises(ValueError, match=rf'{name}\.json is not a JSON object'):
    reporting.read_run(folder)


def test_only_metrics_are_needed(make_run):
  folder = make_run('a', config=False, finished=False)
  (folder / 'task.json').unlink()
  run = reporting.read_run(folder)
  assert run.name == 'a'
  assert run.total_rounds is None
  assert run.num_parameters is None
  assert run.reference_perplexity == {}
  assert 'config.json is missing' in run.notes[0]


def test_text_columns_of_others_are_ignored(make_run):
  folder = make_run('a')
  (folder / 'metrics.csv').write_text(
    'round_num,train/loss,comment\n1,7.0,warm\n2,6.0,3\n'
  )
  assert reporting.read_run(folder).last_round == 2


def test_last_row_of_a_round_counts_and_rounds_are_sorted(make_run):
  folder = make_run('a')
  (folder / 'metrics.csv').write_text(
    'round_num,train/loss\n3,7\n1,9\n2,8\n2,5\n'
  )
  run = reporting.read_run(folder)
  assert list(run.series['train/loss'].items()) == [(1, 9), (2, 5), (3, 7)]


def test_perplexity_is_computed_from_the_loss_if_missing(make_run):
  folder = make_run('a')
  (folder / 'metrics.csv').write_text(
    'round_num,eval/loss\n0,2.0\n1,\n2,1000\n'
  )
  run = reporting.read_run(folder)
  assert run.series['eval/perplexity'][0] == pytest.approx(math.e**2)
  assert run.series['eval/perplexity'][2] == math.inf
  assert run.divergence is not None
  assert run.divergence.round_num == 2


def test_wall_time_falls_back_to_the_rounds_seconds(make_run):
  folder = make_run('a')
  (folder / 'metrics.csv').write_text(
    'round_num,train/loss,round_secs\n1,7,5\n2,6,2\n3,5,\n4,5,3\n'
  )
  assert reporting.read_run(folder).wall_secs().to_dict() == {1: 5, 2: 7, 4: 10}


@pytest.mark.parametrize(
  ('perplexities', 'losses', 'round_num', 'reason'),
  [
    ((50, 40, 30), {12: math.nan}, 12, 'training loss became non-finite'),
    ((50, 40, 30), {12: -math.inf}, 12, 'training loss became non-finite'),
    ((50, 40, math.inf), {}, 20, 'its perplexity became non-finite'),
    ((50, 40, 501), {}, 20, 'passed 10 times its starting value'),
    ((50, 40, 101), {}, 20, 'last perplexity is over 2 times its starting'),
    ((50, 501, math.nan), {19: math.nan}, 10, 'passed 10 times'),
    ((50, 501, 30), {3: math.nan}, 3, 'training loss became non-finite'),
  ],
)
def test_divergence_is_found_where_it_starts(
  make_run, perplexities, losses, round_num, reason
):
  run = reporting.read_run(
    make_run('a', perplexities=perplexities, losses=losses)
  )
  assert run.divergence is not None
  assert run.divergence.round_num == round_num
  assert reason in run.divergence.reason


def test_ten_times_the_start_is_not_yet_divergence(make_run):
  run = reporting.read_run(make_run('a', perplexities=(50, 500, 30)))
  assert run.divergence is None


def test_useless_reference_lines_are_dropped(make_run):
  task = {'reference_perplexity': {'a': None, 'b': -1, 'c': math.nan, 'd': 3}}
  folder = make_run('a', task=task)
  assert reporting.read_run(folder).reference_perplexity == {'d': 3.0}
  (folder / 'task.json').write_text(json.dumps({'reference_perplexity': 3}))
  assert runs.read_run(folder).reference_perplexity == {}
