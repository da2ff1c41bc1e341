"""Tests the table of allowed imports between rooms."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import subprocess
import sys

import pytest

import si_federated
from si_federated.assembly.registries import REGISTRIES

_ROOT = pathlib.Path(__file__).parents[1]
_OURS = 'si_federated'
_FEDERATED = {'tensorflow_federated', 'tensorflow_privacy'}

# For each room, the rooms that it may import, and the external packages that it
# must not (None: only the standard library).
_ALLOWED: dict[str, tuple[set[str], set[str] | None]] = {
  'config': (set(), None),
  'files': (set(), None),
  'signatures': (set(), None),
  'layers': (set(), {'absl', *_FEDERATED}),
  'privacy': (set(), {'tensorflow', 'keras', 'absl', *_FEDERATED}),
  'models': ({'layers', 'signatures'}, {'absl', *_FEDERATED}),
  'tasks': ({'files'}, {'absl'}),
  'aggregators': ({'privacy', 'signatures'}, {'absl'}),
  'algorithms': ({'layers', 'signatures'}, {'absl'}),
  'compression': (set(), {'absl'}),
  'runtime': ({'files'}, {'absl'}),
  'training': ({'config', 'files', 'privacy'}, set()),
  'personalization': ({'files', 'tasks'}, {'absl.flags'}),
  'reporting': (
    {'config', 'files', 'privacy'},
    {'tensorflow', 'absl', *_FEDERATED},
  ),
  'sweeps': (
    {'config', 'files', 'training'},
    {'tensorflow', 'absl', *_FEDERATED},
  ),
  'preparation': ({'files', 'tasks'}, {'absl', *_FEDERATED}),
  'help_texts': (set(), None),
  'flags': ({'config', 'help_texts'}, {'tensorflow', *_FEDERATED}),
  'weights': (
    {'algorithms', 'config', 'files', 'models', 'tasks', 'training'},
    {'absl'},
  ),
  'diagnostics': (
    {'files', 'layers', 'tasks', 'training', 'weights'},
    {'absl'},
  ),
}
_LEVEL_2 = {*_ALLOWED} - {'flags', 'help_texts'}
_ALLOWED['assembly'] = (_LEVEL_2, {'absl'})
_ALLOWED['pretraining'] = (_LEVEL_2 | {'assembly'}, {'absl'})
_ALLOWED['experiment'] = (_LEVEL_2 | {'assembly', 'pretraining'}, {'absl'})
_ALLOWED['inference'] = (_LEVEL_2 | {'assembly'}, {'absl'})
_BINARIES_MAY = {
  'config',
  'flags',
  'assembly',
  'privacy',
  'experiment',
  'inference',
  'pretraining',
  'models',
  'reporting',
  'sweeps',
  'preparation',
  'files',
}


def _imports(path):
  """Returns dotted names of all imports in a file, nested ones too."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: imports are absolute'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def _part(path):
  return path.relative_to(_ROOT / _OURS).with_suffix('').parts[0]


_FILES = sorted((_ROOT / _OURS).rglob('*.py'))


@pytest.mark.parametrize(
  'path', _FILES, ids=lambda path: str(path.relative_to(_ROOT))
)
def test_imports_of_the_package(path):
  part = _part(path)
  if part == '__init__':
    assert not {n for n in _imports(path) if n.split('.')[0] == _OURS}
    return
  ours, others = _ALLOWED[part]
  for name in _imports(path):
    top, *rest = name.split('.')
    if top == _OURS:
      assert rest and rest[0] in {part, *ours}, f'{path} imports {name}'
    elif others is None:
      assert top in sys.stdlib_module_names, f'{path} imports {name}'
    else:
      assert top not in others, f'{path} imports {name}'


@pytest.mark.parametrize(
  'path', sorted((_ROOT / 'experiments').glob('*.py')), ids=lambda p: p.name
)
def test_imports_of_the_binaries(path):
  for name in _imports(path):
    top, *rest = name.split('.')
    # Not each other, but the folder with the parts of a binary.
    assert top != 'experiments' or (_ROOT / top / rest[0]).is_dir(), (
      f'{path} imports {name}'
    )
    if top == _OURS:
      assert rest[0] in _BINARIES_MAY, f'{path} imports {name}'


@pytest.mark.parametrize(
  ('module', 'absent'),
  [
    # This imports si_federated.layers as well.
    ('models', _FEDERATED),
    ('privacy', {'tensorflow', *_FEDERATED}),
    ('reporting', {'tensorflow', *_FEDERATED}),
    ('flags', {'tensorflow', *_FEDERATED}),
    ('config', {'tensorflow', 'numpy', *_FEDERATED}),
  ],
)
def test_importing_loads_nothing_heavier(module, absent):
  code = (
    f'import sys, {_OURS}.{module}; '
    f'print(*[m for m in {sorted(absent)!r} if m in sys.modules])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split() == []


def _room_imports():
  """Returns for each room the rooms that its files import."""
  rooms: dict[str, set[str]] = {part: set() for part in _ALLOWED}
  for path in _FILES:
    if _part(path) != '__init__':
      rooms[_part(path)] |= {
        name.split('.')[1]
        for name in _imports(path)
        if name.startswith(f'{_OURS}.')
      } - {_part(path)}
  return rooms


def test_rooms_are_at_most_six_floors_high():
  rooms = _room_imports()

  @functools.cache
  def floors(room):
    return 1 + max(map(floors, rooms[room]), default=0)

  assert max(map(floors, rooms)) <= 6


def test_the_map_lists_the_rooms_by_level():
  level, levels = -1, {}
  for line in si_federated.__doc__.splitlines():
    if found := re.fullmatch(r'([0-3 ]) (\w+)  +\S.*', line):
      level = int(found[1]) if found[1].strip() else level
      levels[found[2]] = level
  assert (
    set(levels) == set(_ALLOWED) == {_part(p) for p in _FILES} - {'__init__'}
  )
  for room, imported in _room_imports().items():
    for other in imported:
      assert levels[other] <= levels[room], f'{room} imports {other}'


_ABOVE_PARTS = (
  'assembly',
  'diagnostics',
  'experiment',
  'inference',
  'pretraining',
  'training',
  'weights',
)


@pytest.mark.parametrize(
  'path',
  [path for path in _FILES if _part(path) in _ABOVE_PARTS],
  ids=lambda path: str(path.relative_to(_ROOT)),
)
def test_no_comparison_with_names_of_parts(path):
  names = {name for registry in REGISTRIES.values() for name in registry}
  names -= {'float32'}  # A compressor, but also a type.
  compared = {
    constant.value
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, (ast.Compare, ast.Match))
    for constant in ast.walk(node)
    if isinstance(constant, ast.Constant)
  }
  assert not compared & names
