"""Tests of the figure of final results against a number."""

from __future__ import annotations

import json

import numpy as np
import pytest

from si_federated.reporting import number_figures, run_groups, runs

_COUNTS = (1, 2, 4, 8)


def _accuracy(model, count, seed):
  return (0.8 if model == 'bert' else 0.5) - 0.05 * np.log2(count) + 0.01 * seed


@pytest.fixture(name='classifiers')
def _classifiers(make_run):
  """Two models with 1 to 8 clients, two seeds each, without perplexity."""
  folders = []
  for model in ('bert', 'albert'):
    for count in _COUNTS:
      for seed in range(2):
        folder = make_run(
          f'{model}{count}.{seed}',
          task={'name': 'topics', 'reference_accuracy': {'most frequent': 0.1}},
          model=model,
          model_seed=seed,
          client_seed=seed,
          clients_per_round=count,
        )
        config = json.loads((folder / 'config.json').read_text())
        config['task'] = f'text_classification:num_clients={count}'
        (folder / 'config.json').write_text(json.dumps(config))
        accuracy = _accuracy(model, count, seed)
        (folder / 'metrics.csv').write_text(
          'round_num,train/loss,eval/loss,eval/perplexity,eval/accuracy\n'
          f'0,,2.3,,0.1\n1,2.3,2.2,,0.2\n2,2.0,1.5,,{accuracy}\n'
        )
        folders.append(folder)
  return run_groups.compare([runs.read_run(folder) for folder in folders])


def test_accuracy_against_the_number_of_clients(classifiers):
  assert number_figures.varied_number(classifiers) == 'task.num_clients'
  picture = number_figures.by_number(classifiers)
  assert picture is not None
  assert picture.name == 'final_by_task_num_clients'
  assert 'accuracy' in picture.caption
  assert 'most frequent class' in picture.caption
  assert picture.png.startswith(b'\x89PNG')
  assert 'bert' in picture.svg and 'albert' in picture.svg


def test_no_figure_of_two_values_or_of_words(make_run):
  folders = [make_run(f'a{n}', clients_per_round=n) for n in (5, 10)]
  comparison = run_groups.compare([runs.read_run(f) for f in folders])
  assert number_figures.by_number(comparison) is None
