"""The documents are correct: examples run, commands parse, links resolve.

Blocks of ```python are executed; blocks of ```shell are read by bash with
every program replaced by a recorder, and the recorded command lines are parsed
by the flags of the binaries that they name.
"""

from __future__ import annotations

import collections
import json
import pathlib
import re
import runpy
import shutil
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_ROOMS = (
  'experiments/configs',
  'experiments/results',
  'si_federated/aggregators',
  'si_federated/algorithms',
  'si_federated/compression',
  'si_federated/layers',
  'si_federated/models',
  'si_federated/personalization',
  'si_federated/preparation',
  'si_federated/privacy',
  'si_federated/reporting',
  'si_federated/runtime',
  'si_federated/sweeps',
  'si_federated/tasks',
)
_DOCUMENTS = sorted(
  [
    *_ROOT.glob('*.md'),
    *(_ROOT / 'si_federated').glob('*/README.md'),
    *(_ROOT / 'experiments').glob('*/README.md'),
  ]
)
# Programs that are not ours and that documents may call.
_OTHER_PROGRAMS = {
  'cp',
  'git',
  'mkdir',
  'pip',
  'pre-commit',
  'python3.11',
  'ray',
  'tar',
  'uv',
}
# Prints the arguments of each program instead of running it.
_RECORDER = r"""
command_not_found_handle() { printf '%s\x1f' "$@"; printf '\x1e'; }
python() { command_not_found_handle python "$@"; }
.venv/bin/python() { command_not_found_handle python "$@"; }
.() { :; }
cd() { :; }
PATH=/nowhere
"""
# Parses each command line by the flags of one binary.
_PARSER = r"""
import importlib, json, sys
from absl import app, flags
binary = importlib.import_module(sys.argv[1])
if hasattr(binary, 'define_flags'): binary.define_flags()
app.define_help_flags()
flags.FLAGS.set_gnu_getopt(True)
errors = []
for arguments in json.load(sys.stdin):
  flags.FLAGS.unparse_flags()
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  try:
    flags.FLAGS(['', *arguments])
  except SystemExit:
    if not [a for a in arguments if a.startswith('--help')]:
      errors.append([arguments, 'exits'])
  except flags.Error as error:
    errors.append([arguments, str(error)])
print(json.dumps(errors))
"""


def _name(path: pathlib.Path) -> str:
  return str(path.relative_to(_ROOT))


def _blocks(path: pathlib.Path, language: str) -> list[str]:
  text = path.read_text(encoding='utf-8')
  return re.findall(rf'^```{language}\n(.*?)^```', text, re.DOTALL | re.M)


_PYTHON_BLOCKS = [
  pytest.param(block, id=f'{_name(path)}-{number}')
  for path in _DOCUMENTS
  if path.name == 'README.md'
  for number, block in enumerate(_blocks(path, 'python'), start=1)
]


@pytest.mark.parametrize('block', _PYTHON_BLOCKS)
def test_python_runs(block, checkout_like_folder):
  # From a file, since AutoGraph reads the source of functions.
  example = checkout_like_folder / 'example.py'
  example.write_text(block, encoding='utf-8')
  assert runpy.run_path(str(example), run_name='__main__')


def _commands(path: pathlib.Path) -> list[list[str]]:
  """Returns the command lines of the shell blocks, expanded by bash."""
  bash = shutil.which('bash')
  assert bash
  commands = []
  for block in _blocks(path, 'shell'):
    done = subprocess.run(
      [bash, '--norc', '-c', _RECORDER + block],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
      timeout=30,
      env={},
    )
    assert not done.stderr, f'{path}: {done.stderr}'
    commands += [
      command.split('\x1f')[:-1]
      for command in done.stdout.split('\x1e')
      if command.strip()
    ]
  return commands


def _our_binary(command: list[str]) -> tuple[str, list[str]] | None:
  """Returns the module and the arguments if the command runs one of ours."""
  program, *arguments = command
  if program.startswith('si-federated-'):
    return f'experiments.{program.removeprefix("si-federated-")}', arguments
  if program == 'python' and arguments[0] == '-m':
    module = arguments[1]
    return (module, arguments[2:]) if 'experiments.' in module else None
  return None


def test_shell_commands_exist_and_their_flags_parse():
  targets = re.findall(r'^([\w-]+):', (_ROOT / 'Makefile').read_text(), re.M)
  calls: dict[str, list[list[str]]] = collections.defaultdict(list)
  for path in _DOCUMENTS:
    for command in _commands(path):
      for file in re.findall(
        r'experiments/[\w./]+\.(?:flags|xz|md|py)\b', ' '.join(command)
      ):
        assert (_ROOT / file).exists(), f'{_name(path)}: {file}'
      ours = _our_binary(command)
      if ours is not None:
        module, arguments = ours
        file = module.replace('.', '/') + '.py'
        assert (_ROOT / file).exists(), f'{_name(path)}: {module}'
        calls[module].append(arguments)
      elif command[0] == 'make':
        named = [
          word for word in command[1:] if '=' not in word and word[0] != '-'
        ]
        assert set(named) <= set(targets), f'{_name(path)}: {command}'
      elif command[0] == 'python':
        assert command[1] == '-m' and command[2] in ('pip', 'pytest', 'venv')
      else:
        assert command[0] in _OTHER_PROGRAMS, f'{_name(path)}: {command}'
  assert len(calls) >= 5
  for module, command_lines in calls.items():
    done = subprocess.run(
      [sys.executable, '-c', _PARSER, module],
      input=json.dumps(command_lines),
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
      timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [], module


def _anchors(path: pathlib.Path) -> set[str]:
  """Returns the anchors that GitHub gives to a document's headings."""
  text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.DOTALL | re.M)
  headings = re.findall(r'^#+ (.*)$', text, re.M)
  return {
    re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
    for heading in headings
  }


@pytest.mark.parametrize('path', _DOCUMENTS, ids=_name)
def test_links_resolve(path):
  text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.DOTALL | re.M)
  links = re.findall(r'\]\(([^)\s]+)\)', text) + re.findall(
    r'(?:src|href)="([^"]+)"', text
  )
  for link in links:
    if '://' in link:
      continue
    file, _, anchor = link.partition('#')
    target = path.parent / file if file else path
    assert target.exists(), link
    if anchor:
      assert anchor in _anchors(target), link


@pytest.mark.parametrize('path', _DOCUMENTS, ids=_name)
def test_files_that_are_named_exist(path):
  if path.name == 'CHANGELOG.md':
    pytest.skip('It also names earlier files.')
  text = re.sub(r'^```.*?^```', '', path.read_text(), flags=re.DOTALL | re.M)
  for name in re.findall(r'`([\w./-]+\.(?:py|md|ipynb|svg|flags))`', text):
    places = (
      _ROOT,
      _ROOT / 'si_federated',
      _ROOT / 'experiments' / 'configs',
      path.parent,
    )
    assert '/' not in name or any(
      (place / name).exists() for place in places
    ), name


def test_the_readme_is_short():
  assert (_ROOT / 'README.md').stat().st_size <= 9_000


@pytest.mark.parametrize('room', _ROOMS)
def test_a_room_has_an_example(room):
  path = _ROOT / room / 'README.md'
  assert _blocks(path, 'python') or _blocks(path, 'shell')
