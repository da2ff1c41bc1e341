"""The tutorials run, and are stored with their outputs."""

from __future__ import annotations

import os
import pathlib
import re
import runpy
import tempfile

import matplotlib.pyplot as plt
import nbclient
import nbformat
import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_TUTORIALS = sorted((_ROOT / 'experiments' / 'tutorials').glob('*.ipynb'))


def _read(path):
  return nbformat.read(path, as_version=4)


def _outputs(notebook):
  return [
    output
    for cell in notebook.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
  ]


def _pictures(notebook):
  return [o for o in _outputs(notebook) if 'image/png' in o.get('data', {})]


def test_there_are_four():
  assert [path.name[0] for path in _TUTORIALS] == list('1234')


def test_the_one_on_privacy_shows_a_report_card():
  outputs = ''.join(map(str, _outputs(_read(_TUTORIALS[2]))))
  for words in ('Trust model', 'Not covered', 'best attack'):
    assert words in outputs


# The first trains and predicts as the tests of these binaries do.
@pytest.mark.parametrize('path', _TUTORIALS[1:], ids=lambda path: path.stem)
def test_code_runs_and_draws(path, checkout_like_folder, monkeypatch):
  """Runs in this process, which saves starting a kernel."""
  monkeypatch.setenv('SI_FEDERATED_SHORT', '1')
  monkeypatch.setattr(tempfile, 'tempdir', str(checkout_like_folder / 'temp'))
  (checkout_like_folder / 'temp').mkdir()
  plt.switch_backend('agg')
  plt.close('all')
  cells = [c.source for c in _read(path).cells if c.cell_type == 'code']
  code = re.sub(r'^%.*$', '', '\n'.join(cells), flags=re.M)
  # From a file, since AutoGraph reads the source of functions.
  script = checkout_like_folder / 'tutorial.py'
  script.write_text(code, encoding='utf-8')
  runpy.run_path(str(script), run_name='__main__')
  assert plt.get_fignums()
  plt.close('all')


@pytest.mark.slow
@pytest.mark.parametrize('path', _TUTORIALS, ids=lambda path: path.stem)
def test_runs_from_a_clean_kernel(path, tmp_path):
  notebook = _read(path)
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      cell.outputs = []
  client = nbclient.NotebookClient(
    notebook,
    timeout=600,
    kernel_name='python3',
    resources={'metadata': {'path': str(tmp_path)}},
  )
  # An error in a cell is raised.
  client.execute(
    env={**os.environ, 'SI_FEDERATED_SHORT': '1', 'PYTHONPATH': str(_ROOT)}
  )
  assert _pictures(notebook)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('path', _TUTORIALS, ids=lambda path: path.stem)
def test_is_stored_with_outputs(path):
  notebook = _read(path)
  nbformat.validate(notebook)
  run = [c for c in notebook.cells if c.cell_type == 'code']
  assert [c.execution_count for c in run] == list(range(1, len(run) + 1))
  assert _pictures(notebook)
  assert not [o for o in _outputs(notebook) if o.output_type == 'error']
  # Readers need neither warnings nor paths of another machine.
  text = path.read_text(encoding='utf-8')
  assert not re.search(r'"name": "stderr"', text)
  assert not re.search(r'/(tmp|home|root)/', text)
