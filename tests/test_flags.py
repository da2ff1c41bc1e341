from __future__ import annotations

import os
import subprocess
import sys

import pytest

from si_federated import config, flags

_MAIN = """
import sys
from si_federated import flags
def main():
  print('caf\\u00e9')
  print('na\\u00efve', file=sys.stderr)
  raise ValueError('\\u00fcber')
flags.run_main(main)
"""


@pytest.mark.parametrize(
  ('encoding', 'out', 'err'),
  [
    ('ascii', b'caf?\n', b'na?ve\nerror: ?ber\n'),
    ('utf-8', 'café\n'.encode(), 'naïve\nerror: über\n'.encode()),
  ],
)
def test_characters_that_the_output_cannot_show_are_replaced(
  encoding, out, err
):
  result = subprocess.run(
    [sys.executable, '-c', _MAIN],
    env={**os.environ, 'PYTHONIOENCODING': encoding},
    capture_output=True,
    check=False,
  )
  assert (result.returncode, result.stdout, result.stderr) == (1, out, err)


@pytest.mark.parametrize('mark', ['', '\ufeff', '\ufeff# by an editor\n'])
def test_a_file_of_flags_may_begin_with_a_mark(tmp_path, mark):
  first, nested = tmp_path / 'a.flags', tmp_path / 'b.flags'
  first.write_text(f'{mark}--task=synthetic\n--flagfile={nested}\n')
  nested.write_text(f'{mark}--clients_per_round=3\n--model=cifg\n')
  read = flags.experiment_from_arguments(
    ['--experiment_name=x', f'--flagfile={first}', '--total_rounds=2']
  )
  assert read.task.name == 'synthetic'
  assert read.clients_per_round == 3
  assert read.model.name == 'cifg'
  assert read.total_rounds == 2


def test_a_file_of_flags_in_another_encoding_is_named(tmp_path):
  path = tmp_path / 'a.flags'
  path.write_bytes('# café\n--task=synthetic\n'.encode('latin-1'))
  with pytest.raises(
    config.ConfigError, match=r'a\.flags is not utf-8 text .* position 5\)'
  ):
    flags.experiment_from_arguments([f'--flagfile={path}'])


_PATHS_MAIN = """
import sys
from absl import flags as absl_flags
from si_federated import flags
flags.define_experiment_flags()
more = ('run', 'output_dir', 'record', 'accelerator_python', 'figure')
for name in more:
  absl_flags.DEFINE_string(name, None, '')
def main():
  config = flags.experiment_from_flags()
  print(absl_flags.FLAGS.root_output_dir)
  print(*(absl_flags.FLAGS[name].value for name in more))
  print(config.data_dir, config.initial_model, config.task)
flags.run_main(main)
"""
_PATHS = (
  '--experiment_name=x',
  '--root_output_dir=~/runs',
  '--run=~/run',
  '--output_dir=~/tables',
  '--record=~/record',
  '--accelerator_python=~/bin/python',
  '--figure=~/a.png',
  '--data_dir=~/data',
  '--initial_model=~/model.h5',
  '--task=shakespeare:path=~/speeches.jsonl',
)


def test_memory_that_is_lacking_is_one_sentence(capsys, monkeypatch):
  def main():
    raise MemoryError('Unable to allocate 298. GiB')

  monkeypatch.setattr(sys, 'argv', ['binary'])
  with pytest.raises(SystemExit) as ended:
    flags.run_main(main)
  assert ended.value.code == 1
  error = 'error: Out of memory. Unable to allocate 298. GiB'
  assert capsys.readouterr().err == f'{error}\n'


def _run_with_home(home):
  return subprocess.run(
    [sys.executable, '-c', _PATHS_MAIN, *_PATHS],
    env={**os.environ, 'HOME': home},
    capture_output=True,
    check=False,
    text=True,
  )


def test_paths_in_a_home_folder_are_expanded():
  assert _run_with_home('/home/me').stdout.split() == [
    '/home/me/runs',
    '/home/me/run',
    '/home/me/tables',
    '/home/me/record',
    '/home/me/bin/python',
    '/home/me/a.png',
    '/home/me/data',
    '/home/me/model.h5',
    'shakespeare:path=/home/me/speeches.jsonl',
  ]


def test_without_a_home_such_a_path_is_refused():
  result = _run_with_home('~')
  assert result.returncode == 2
  assert result.stderr.startswith('error: ~/')
  assert 'set HOME' in result.stderr
