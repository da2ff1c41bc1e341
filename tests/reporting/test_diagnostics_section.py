"""Tests of the figures of diagnostics, from handmade folders."""

from __future__ import annotations

import json

import numpy as np
import pytest

from si_federated import reporting
from si_federated.reporting import diagnostics_section

LAYERS = [f'block_{i}/part' for i in range(1, 4)]


def _write(folder, quantities, *, rounds=(0, 10, 20), blending=()):
  generator = np.random.default_rng(0)
  lines = ['round_num,layer,quantity,value']
  for round_num in rounds:
    for layer in (*LAYERS, 'model'):
      for quantity in quantities:
        value = generator.uniform(0.01, 1.0)
        lines.append(f'{round_num},{layer},{quantity},{value:.6g}')
    for layer in blending:
      for function in ('relu', 'tanh'):
        lines.append(f'{round_num},{layer},blending_{function},0.5')
  (folder / 'diagnostics.csv').write_text('\n'.join(lines) + '\n')


def _draw(*folders):
  runs = [reporting.read_run(folder) for folder in folders]
  return {
    picture.name: picture
    for picture in diagnostics_section.draw(reporting.compare(runs))
  }


def test_no_file_no_figures(make_run):
  assert not _draw(make_run('a'), make_run('b', model='lstm'))
  assert not len(diagnostics_section.read(make_run('c')))


def test_figures_of_measurements(make_run):
  plain, measured = make_run('a'), make_run('b', model='transformer')
  _write(
    measured,
    ['effective_learning_rate', 'gradient_weight_cosine', 'client_drift'],
    blending=['block_1/blending', 'block_2/blending'],
  )
  pictures = _draw(plain, measured)
  assert set(pictures) == {
    'diagnostics_effective_learning_rate',
    'diagnostics_client_drift',
    'diagnostics_1_blending',
    'diagnostics_1_layers',
  }
  for picture in pictures.values():
    assert picture.png.startswith(b'\x89PNG')
    assert '<svg' in picture.svg


def test_parts_of_the_model_are_compared(make_run, monkeypatch):
  lines = {
    'cifg': [
      '1,embedding,weight_norm,2',
      '1,recurrent_1/cell,weight_norm,3',
      '1,recurrent_1/dense,weight_norm,4',
      '1,model,weight_norm,9',
    ],
    'si_cifg': [
      '1,embedding,weight_norm,7',
      '1,recurrent_1/cell,update_norm,3',
      '1,recurrent_1/cell,effective_learning_rate,0.5',
      '1,recurrent_1/dense,update_norm,4',
      '1,recurrent_1/dense,effective_learning_rate,0.5',
    ],
  }
  drawn = []
  band = diagnostics_section.plotting.draw_band

  def draw_band(axes, x, mean, *args, **options):
    drawn.append((options['label'], list(x), list(mean)))
    return band(axes, x, mean, *args, **options)

  monkeypatch.setattr(diagnostics_section.plotting, 'draw_band', draw_band)
  folders = []
  for model, rows in lines.items():
    folders.append(make_run(model, model=model))
    text = '\n'.join(['round_num,layer,quantity,value', *rows, ''])
    (folders[-1] / 'diagnostics.csv').write_text(text)
  # One part has no picture; the second run measured no step of embeddings.
  assert set(_draw(*folders)) >= {'diagnostics_weight_norm_by_part'}
  # Two layers of norms 3 and 4 have norm 5 together.
  assert drawn == [
    ('cifg', [1], [2.0]),
    ('si_cifg', [1], [7.0]),
    ('cifg', [1], [5.0]),
  ]


def test_steps_of_parts_are_relative_to_their_weights(make_run):
  run = make_run('a')
  rows = [
    'round_num,layer,quantity,value',
    '1,embedding,update_norm,1',
    '1,embedding,effective_learning_rate,0.5',
    '1,cell/a,update_norm,3',
    '1,cell/a,effective_learning_rate,0.3',
    '1,cell/b,update_norm,4',
    '1,cell/b,effective_learning_rate,0.25',
  ]
  (run / 'diagnostics.csv').write_text('\n'.join(rows) + '\n')
  pictures = _draw(run)
  assert 'diagnostics_effective_learning_rate_by_part' in pictures
  series = diagnostics_section.part_series(diagnostics_section.read(run))
  step = series['diagnostics/effective_learning_rate/cell'][1]
  # A step of norm 5 on weights of norms 10 and 16.
  np.testing.assert_allclose(step, 5 / np.hypot(10, 16))


def test_constant_and_non_finite_values_are_drawn(make_run):
  run = make_run('a')
  lines = ['round_num,layer,quantity,value']
  for quantity, value in (
    ('effective_learning_rate', 'nan'),
    ('effective_learning_rate', '0'),
    ('dead_gates', '0'),
    ('gradient_weight_cosine', '0'),
  ):
    lines += [f'{r},block_1/a,{quantity},{value}' for r in (0, 5)]
  (run / 'diagnostics.csv').write_text('\n'.join(lines) + '\n')
  assert set(_draw(run)) == {'diagnostics_1_layers'}


def test_only_the_first_runs_have_figures_of_their_own(make_run):
  runs = []
  for index in range(6):
    runs.append(make_run(f'r{index}', client_learning_rate=0.1 * (index + 1)))
    _write(runs[-1], ['dead_gates'], rounds=(0, 10))
  names = set(_draw(*runs))
  assert sum(name.endswith('_layers') for name in names) == 4
  assert 'diagnostics_dead_gates' in names


@pytest.mark.parametrize('content', ['', 'a,b\n1,2\n', '\x00', 'round_num,'])
def test_garbled_files_are_errors(make_run, content):
  run = make_run('a')
  (run / 'diagnostics.csv').write_text(content)
  with pytest.raises(ValueError, match='not a file of diagnostics'):
    diagnostics_section.read(run)


def test_report_names_diagnostics_outside_the_privacy_guarantee(
  make_run, tmp_path
):
  run = make_run('a')
  _write(run, ['client_drift'])
  summary = json.loads((run / 'summary.json').read_text())
  summary['diagnostics'] = {
    'file': 'diagnostics.csv',
    'outside_the_guarantee': ['client_drift', 'clip_fraction'],
  }
  (run / 'summary.json').write_text(json.dumps(summary))
  comparison = reporting.compare([reporting.read_run(run)])
  written = reporting.write_report(comparison, tmp_path / 'report', 'x')
  names = {path.name for path in written}
  assert {'diagnostics_1_layers.svg', 'diagnostics_client_drift.png'} <= names
  text = (tmp_path / 'report' / 'report.md').read_text()
  assert 'a: its diagnostics (client_drift, clip_fraction)' in text


def test_diagnostics_do_not_distinguish_runs(make_run):
  runs = [
    make_run('a', diagnostics='none'),
    make_run('b', diagnostics='rounds:every=5', model_seed=1),
  ]
  comparison = reporting.compare([reporting.read_run(run) for run in runs])
  assert len(comparison.groups) == 1
