"""The script of `make corpus`, with stand-ins for apt and dpkg."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_TOOLS = ('bash', 'dirname', 'mkdir', 'mv', 'rm', 'cp', 'tar', 'xz', 'touch')
_SENTENCES = [
  f'/* The {word} of the list is in the table. */'
  for word in ('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight')
]


@pytest.fixture
def machine(tmp_path):
  """Returns a function that runs the script with stand-ins, and their folder.

  `apt-get` writes a package, and `dpkg-deb` unpacks an archive like that of a
  real package. Both record that they ran. `python` prepares nothing.
  """
  tree = tmp_path / 'linux-source-9'
  tree.mkdir()
  (tree / 'a.c').write_text('\n'.join(_SENTENCES))
  (tree / 'b.c').write_text('/* Too little of it is in here. */')
  archive = tmp_path / 'linux-source-9.tar.xz'
  subprocess.run(
    ['tar', '-cJf', archive, '-C', tmp_path, tree.name], check=True
  )
  tools = tmp_path / 'bin'
  tools.mkdir()
  for name in _TOOLS:
    (tools / name).symlink_to(str(shutil.which(name)))
  scripts = {
    'apt-get': f'touch {tmp_path}/fetched-$3\n'
    '[ $3 = linux-source-9 ] && touch linux-source-9_1_all.deb',
    'dpkg-deb': f'touch {tmp_path}/unpacked\nmkdir -p $3/usr/src\n'
    f'cp {archive} $3/usr/src/',
    'python': f'mkdir -p {tmp_path}/data\n'
    f'touch {tmp_path}/data/stackoverflow.sqlite',
  }
  for name, script in scripts.items():
    path = tools / name
    path.write_text(f'#!{shutil.which("bash")}\n{script}\n')
    path.chmod(0o755)

  def run(package='linux-source-9', python=str(tools / 'python')):
    return subprocess.run(
      [_ROOT / '.ci' / 'make_corpus', str(tmp_path / 'data'), package],
      env={**os.environ, 'PATH': str(tools), 'PYTHON': python},
      capture_output=True,
      text=True,
      check=False,
    )

  return run, tools


def test_it_is_fetched_unpacked_and_prepared_once(machine, tmp_path):
  run, _ = machine
  done = run(python=sys.executable)
  assert done.returncode == 0, done.stderr
  data = tmp_path / 'data'
  summary = json.loads((data / 'preparation.json').read_text())
  # The second file has fewer than eight sentences.
  assert sum(summary['clients'].values()) == 1
  assert sum(summary['sentences'].values()) == 8
  assert not (data / '.fetching').exists()
  (tmp_path / 'fetched-linux-source-9').unlink()
  again = run()
  assert again.returncode == 0
  assert again.stdout == f'{data}/stackoverflow.sqlite is there already.\n'
  assert not (tmp_path / 'fetched-linux-source-9').exists()


def test_it_continues_after_an_interrupt(machine, tmp_path):
  """It reuses the package, but not a half-unpacked tree."""
  run, _ = machine
  work = tmp_path / 'data' / '.fetching'
  (work / 'unpacking' / 'linux-source-9').mkdir(parents=True)
  (work / 'package.deb').touch()
  done = run()
  assert done.returncode == 0, done.stderr
  assert not (tmp_path / 'fetched-linux-source-9').exists()
  assert (tmp_path / 'unpacked').exists()
  assert (tmp_path / 'data' / 'stackoverflow.sqlite').exists()


def test_without_apt_it_says_what_to_do(machine):
  run, tools = machine
  (tools / 'apt-get').unlink()
  done = run()
  assert done.returncode == 2
  assert done.stderr.startswith('make corpus needs apt-get, as on Debian')
  assert '--source=comments --input=TREE' in done.stderr


def test_a_package_that_apt_lacks(machine, tmp_path):
  run, _ = machine
  done = run('linux-source-8')
  assert done.returncode == 2
  assert done.stderr.startswith('apt-get found no linux-source-8: run')
  assert not (tmp_path / 'data' / 'stackoverflow.sqlite').exists()
  # Nothing obstructs another package.
  assert run().returncode == 0
