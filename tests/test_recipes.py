"""Every recipe parses and names existing parts; a slow test runs two rounds."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags as absl_flags

from si_federated import config, experiment, flags, preparation

_ROOT = pathlib.Path(__file__).parents[1]
# Corpora with recipes of their own, which another task reads.
_TASKS = {'comments': 'stackoverflow'}
_RECIPES = sorted((_ROOT / 'experiments' / 'configs').glob('*.flags'))


def _config(recipe, *args):
  """Returns the configuration of a recipe and further flags."""
  values = absl_flags.FlagValues()
  names = [field.name for field in dataclasses.fields(config.ExperimentConfig)]
  flags.define_config_flags(names, values)
  values(['train', f'--flagfile={recipe}', '--experiment_name=x', *args])
  return flags.experiment_from_flags(values)


def test_there_are_recipes():
  assert len(_RECIPES) >= 2


@pytest.mark.parametrize('recipe', _RECIPES, ids=lambda path: path.name)
def test_name_and_head(recipe):
  """A recipe is named task.model.aggregator and states its own command."""
  text = recipe.read_text()
  values = dict(
    line[2:].split('=', 1) for line in text.splitlines() if line[:2] == '--'
  )
  task, model, aggregator = recipe.name.split('.')[:3]
  assert values['task'].split(':')[0] == _TASKS.get(task, task)
  assert values['model'].split(':')[0] == model
  assert values.get('aggregator', 'mean').split(':')[0] == aggregator
  head = [line for line in text.splitlines() if line.startswith('#')]
  assert f'experiments/configs/{recipe.name}' in '\n'.join(head)


@pytest.mark.parametrize('recipe', _RECIPES, ids=lambda path: path.name)
def test_parts_and_options_exist(recipe):
  experiment.check(_config(recipe))


@pytest.fixture(name='small_stackoverflow', scope='session')
def _small_stackoverflow(tmp_path_factory):
  """Client data of 1,500 users."""
  folder = tmp_path_factory.mktemp('stackoverflow')
  lines = [
    json.dumps(
      {'text': f'to be word{i % 7} or not to be. ' * 3, 'client_id': f'u{i}'}
    )
    for i in range(1500)
  ]
  (folder / 'texts.jsonl').write_text('\n'.join(lines) + '\n')
  preparation.prepare(
    preparation.Settings(
      source='jsonl',
      input=str(folder / 'texts.jsonl'),
      output=str(folder / 'data'),
    )
  )
  return folder / 'data'


def _small_model(recipe):
  """Returns the recipe's model with small sizes."""
  found = re.search(r'^--model=(.*)$', recipe.read_text(), re.MULTILINE)
  assert found
  small = {
    'units': '16',
    'embedding_size': '8',
    'projection_units': '8',
    'intermediate_dim': '16',
  }
  name, _, text = found[1].partition(':')
  options = dict(option.split('=') for option in text.split(','))
  options |= {key: small[key] for key in options if key in small}
  if 'size' in options:
    del options['size']
    options |= {'embedding_size': '16', 'num_layers': '1'}
  elif 'projection_units' in options:
    options['embedding_size'] = '8'
  return f'{name}:' + ','.join(f'{k}={v}' for k, v in options.items())


def test_the_study_has_a_recipe_at_every_scale():
  """Checks the recipes of `make reproduce` by the Makefile's own rule."""
  makefile = (_ROOT / 'Makefile').read_text()
  tasks = re.findall(r'^TASK\.\w+ := (\w+)$', makefile, re.MULTILINE)
  assert len(tasks) == 4
  names = {recipe.name for recipe in _RECIPES}
  for task in tasks:
    for model in ('cifg', 'si_cifg', 'transformer', 'si_transformer'):
      for aggregator in ('mean', 'blt'):
        assert f'{task}.{model}.{aggregator}.flags' in names


@pytest.mark.parametrize(
  'recipe',
  sorted((_ROOT / 'experiments' / 'configs' / 'sweeps').glob('*.flags')),
  ids=lambda path: path.name,
)
def test_recipes_of_sweeps_plan_runs(recipe, tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'experiments.sweep',
      f'--flagfile={recipe}',
      '--experiment_name=x',
      f'--root_output_dir={tmp_path}',
      '--dry_run',
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  head = recipe.read_text()
  assert f'{len(done.stdout.splitlines())} runs' in head
  assert f'experiments/configs/sweeps/{recipe.name}' in head


@pytest.mark.slow
@pytest.mark.parametrize('recipe', _RECIPES, ids=lambda path: path.name)
def test_two_rounds(recipe, tmp_path, request):
  options = ['--total_rounds=2', '--num_validation_examples=100']
  if recipe.name.startswith('shakespeare'):
    # Its data are not installed anywhere.
    lines = [
      json.dumps({'text': 'To be, or not to be. ' * 4, 'client_id': f'role{i}'})
      for i in range(200)
    ]
    (tmp_path / 'speeches.jsonl').write_text('\n'.join(lines) + '\n')
    options.append(f'--data_dir={tmp_path}')
  if recipe.name.startswith(('stackoverflow', 'comments')):
    data = request.getfixturevalue('small_stackoverflow')
    options.append(f'--data_dir={data}')
    # Three clients a round, 342 rounds apart, need 1,026 users; one client a
    # round, 800 rounds apart, needs 800.
    clients = 1 if recipe.name.startswith('comments') else 3
    options.append(f'--clients_per_round={clients}')
    options.append(f'--model={_small_model(recipe)}')
  given = _config(recipe)
  # Two rounds allow at most two bands, and a few experts suffice.
  for flag, key, value in (
    ('aggregator', 'bands', 1),
    ('algorithm', 'num_clients', 2),
    ('algorithm', 'max_epochs', 2),
  ):
    spec = getattr(given, flag)
    if key in dict(spec.options):
      changed = dataclasses.replace(
        spec, options=tuple({**dict(spec.options), key: value}.items())
      )
      given = dataclasses.replace(given, **{flag: changed})
      options = [o for o in options if not o.startswith(f'--{flag}=')]
      options.append(f'--{flag}={changed}')
  summary = experiment.run(_config(recipe, *options), str(tmp_path))
  assert summary['rounds'] == 2
  assert np.isfinite(summary['final']['eval/loss'])
  tf.keras.backend.clear_session()
