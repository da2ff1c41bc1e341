"""Tests of the installation: lock file, metadata, scripts, light imports."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOCK = ROOT / 'requirements.lock'
TOP_LEVEL = {
  '.ci',
  '.github',
  '.gitignore',
  '.pre-commit-config.yaml',
  'BUILD_NOTES.md',
  'CHANGELOG.md',
  'CITATION.cff',
  'CONTRIBUTING.md',
  'LICENSE',
  'Makefile',
  'README.md',
  'experiments',
  'pyproject.toml',
  'requirements.lock',
  'requirements.overrides',
  'ruff.toml',
  'setup.cfg',
  'si_federated',
  'tests',
}
OVERRIDES = ROOT / 'requirements.overrides'


def _setup_cfg() -> configparser.ConfigParser:
  parser = configparser.ConfigParser()
  parser.read(ROOT / 'setup.cfg', encoding='utf-8')
  return parser


def _lines(text: str) -> list[str]:
  return [line for line in text.splitlines() if line.strip()]


def _declared_requirements() -> list[Requirement]:
  parser = _setup_cfg()
  lines = _lines(parser['options']['install_requires'])
  for extra in parser['options.extras_require'].values():
    lines += _lines(extra)
  return [Requirement(line) for line in lines]


def _lock_entries() -> dict[str, tuple[str, list[str]]]:
  """Name -> (version, hashes) for every entry of the lock."""
  text = LOCK.read_text(encoding='utf-8').replace('\\\n', ' ')
  entries: dict[str, tuple[str, list[str]]] = {}
  for line in text.splitlines():
    if not line.strip() or line.lstrip().startswith('#'):
      continue
    pin, *options = line.split()
    name, separator, version = pin.partition('==')
    assert separator, f'not an exact pin: {line!r}'
    assert name not in entries, f'{name} is listed twice'
    hashes = [option for option in options if option.startswith('--hash=')]
    assert hashes == options, f'unexpected words in the entry of {name}'
    entries[canonicalize_name(name)] = (version, hashes)
  return entries


def _scripts() -> dict[str, tuple[str, str]]:
  """Script name -> (module, function) as setup.cfg declares them."""
  text = _setup_cfg()['options.entry_points']['console_scripts']
  scripts = {}
  for line in _lines(text):
    name, target = (part.strip() for part in line.split('='))
    module, function = target.split(':')
    scripts[name] = (module, function)
  return scripts


def test_lock_satisfies_every_declared_requirement():
  locked = _lock_entries()
  declared = _declared_requirements()
  assert len(declared) > 10
  wrong = [
    str(requirement)
    for requirement in declared
    if canonicalize_name(requirement.name) not in locked
    or not requirement.specifier.contains(
      locked[canonicalize_name(requirement.name)][0]
    )
  ]
  assert not wrong, f'run `make lock`: {wrong}'


def test_lock_has_the_overrides():
  locked = _lock_entries()
  lines = OVERRIDES.read_text(encoding='utf-8').splitlines()
  overrides = [
    Requirement(line) for line in lines if line and not line.startswith('#')
  ]
  assert {'jax', 'jaxlib'} <= {override.name for override in overrides}
  for override in overrides:
    assert override.specifier.contains(locked[override.name][0])


def test_lock_pins_one_jax_that_is_published():
  locked = _lock_entries()
  assert locked['jax'][0] == locked['jaxlib'][0] == '0.4.30'


def test_lock_has_sha256_hashes_for_every_entry():
  for name, (_, hashes) in _lock_entries().items():
    assert hashes, f'{name} has no hash'
    for value in hashes:
      assert re.fullmatch(r'--hash=sha256:[0-9a-f]{64}', value), name


def test_lock_names_no_host_and_no_path():
  for line in LOCK.read_text(encoding='utf-8').splitlines():
    assert '://' not in line
    assert '@' not in line
    assert not re.search(r'(^|[\s=:])(/|~/|\.\.?/|file:)', line), line
    assert not re.match(r'\s*(-[a-z]|--(?!hash=))', line), line


def test_locked_environment_is_the_one_that_runs():
  for name in ('tensorflow', 'tensorflow-federated', 'numpy', 'jaxlib'):
    assert importlib.metadata.version(name) == _lock_entries()[name][0]


def test_installed_version_is_the_declared_one():
  declared = _setup_cfg()['metadata']['version']
  assert importlib.metadata.version('si_federated') == declared


def test_top_level_has_no_other_files():
  listed = subprocess.run(
    ['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=False
  )
  if listed.returncode:
    pytest.skip('Not a git checkout.')
  assert {line.split('/')[0] for line in listed.stdout.split()} == TOP_LEVEL


def test_citation_has_the_declared_version_and_license():
  text = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
  metadata = _setup_cfg()['metadata']
  assert f'\nversion: {metadata["version"]}\n' in text
  assert f'\nlicense: {metadata["license"]}\n' in text


def test_pre_commit_has_the_locked_ruff():
  text = (ROOT / '.pre-commit-config.yaml').read_text(encoding='utf-8')
  assert f'rev: v{_lock_entries()["ruff"][0]}\n' in text


def test_core_needs_no_federated_packages():
  lines = _lines(_setup_cfg()['options']['install_requires'])
  assert {Requirement(line).name for line in lines} == {
    'tensorflow',
    'tf_keras',
    'numpy',
    'scipy',
    'dp-accounting',
  }


@pytest.mark.parametrize('name', sorted(_scripts()))
def test_console_script_is_named_after_its_module(name):
  module, _ = _scripts()[name]
  assert name == 'si-federated-' + module.rpartition('.')[2].replace('_', '-')


@pytest.mark.parametrize('name', sorted(_scripts()))
def test_console_script_points_to_a_function(name):
  module_name, function = _scripts()[name]
  spec = importlib.util.find_spec(module_name)
  assert spec and spec.origin, f'{module_name} is missing'
  # Not imported: flags of two binaries in one process may clash.
  code = ast.parse(pathlib.Path(spec.origin).read_text(encoding='utf-8'))
  assert function in [
    node.name for node in code.body if isinstance(node, ast.FunctionDef)
  ]


@pytest.mark.parametrize(
  ('module', 'absent'),
  [
    ('si_federated', ['tensorflow', 'tensorflow_federated']),
    (
      'si_federated.layers, si_federated.models',
      ['tensorflow_federated', 'dp_accounting', 'jax'],
    ),
  ],
)
def test_import_works_without(module, absent):
  # None in sys.modules makes an import fail, as if it were not installed.
  code = (
    'import sys; '
    f'sys.modules.update(dict.fromkeys({absent!r})); '
    f'import {module}; '
    'print("imported")'
  )
  result = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert result.returncode == 0, result.stderr[-2000:]
  assert result.stdout.strip() == 'imported'


@pytest.mark.slow
def test_readmes_in_a_bare_tensorflow_environment(tmp_path):
  """`pip install .` and the examples that only need TensorFlow."""
  checkout = tmp_path / 'checkout'
  checkout.mkdir()
  for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, checkout)
  for name in ('si_federated', 'experiments'):
    shutil.copytree(ROOT / name, checkout / name)
  constraints = tmp_path / 'constraints.txt'
  constraints.write_text(
    ''.join(
      f'{name}=={version}\n' for name, (version, _) in _lock_entries().items()
    )
  )
  python = tmp_path / 'env' / 'bin' / 'python'
  for command in (
    [sys.executable, '-m', 'venv', tmp_path / 'env'],
    [python, '-m', 'pip', 'install', '--quiet', '-c', constraints, checkout],
  ):
    subprocess.run(command, check=True, timeout=800)
  rooms = ROOT / 'si_federated'
  documents = [ROOT / 'README.md', *rooms.glob('layers/*.md')]
  documents += rooms.glob('models/*.md')
  blocks = [
    block
    for document in documents
    for block in re.findall(
      r'```python\n(.*?)```', document.read_text(encoding='utf-8'), re.DOTALL
    )
    if 'tensorflow_federated' not in block and 'runtime' not in block
  ]
  assert blocks
  for block in blocks:
    done = subprocess.run(
      [python, '-c', block],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      check=False,
      timeout=300,
    )
    assert done.returncode == 0, done.stderr
  absent = 'import importlib.util as u; assert not u.find_spec("{}")'
  for name in ('tensorflow_federated', 'tensorflow_privacy'):
    subprocess.run([python, '-c', absent.format(name)], check=True)
