"""Holds the table of who may import whom."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_OURS = 'si_federated'
_FEDERATED = {'tensorflow_federated', 'tensorflow_privacy'}

# Of each part: what of ours it may import beside itself, and what of others it
# must not.
_ALLOWED: dict[str, tuple[set[str], set[str] | None]] = {
  'config': (set(), None),
  'files': (set(), None),
  'layers': (set(), {'absl', *_FEDERATED}),
  'privacy': (set(), {'tensorflow', 'keras', 'absl', *_FEDERATED}),
  'models': ({'layers'}, {'absl', *_FEDERATED}),
  'tasks': ({'files'}, {'absl'}),
  'aggregators': ({'privacy'}, {'absl'}),
  'algorithms': (set(), {'absl'}),
  'compression': (set(), {'absl'}),
  'runtime': (set(), {'absl'}),
  'training': ({'config', 'files'}, set()),
  'personalization': ({'files'}, {'absl.flags'}),
  'reporting': ({'config', 'files'}, {'tensorflow', 'absl', *_FEDERATED}),
  'sweeps': ({'config', 'files'}, {'tensorflow', 'absl', *_FEDERATED}),
  'preparation': ({'files', 'tasks'}, {'absl', *_FEDERATED}),
  'flags': ({'config'}, {'tensorflow', *_FEDERATED}),
  'weights': ({'config', 'files', 'models', 'tasks', 'training'}, {'absl'}),
  'diagnostics': (
    {'files', 'layers', 'tasks', 'training', 'weights'},
    {'absl'},
  ),
}
_LEVEL_2 = {*_ALLOWED} - {'flags'}
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
    # Not each other; a folder may hold what one of them is made of.
    assert top != 'experiments' or (_ROOT / top / rest[0]).is_dir(), (
      f'{path} imports {name}'
    )
    if top == _OURS:
      assert rest[0] in _BINARIES_MAY, f'{path} imports {name}'


@pytest.mark.parametrize(
  ('module', 'absent'),
  [
    ('layers', _FEDERATED),
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
