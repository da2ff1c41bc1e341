"""Every recipe parses and names what exists; the slow test runs two rounds."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags as absl_flags

from si_federated import config, experiment, flags

_ROOT = pathlib.Path(__file__).parents[1]
_RECIPES = sorted((_ROOT / 'experiments' / 'configs').glob('*.flags'))


def _train(recipe, tmp_path, *args):
  return subprocess.run(
    [
      sys.executable,
      '-m',
      'experiments.train',
      f'--flagfile={recipe}',
      '--experiment_name=x',
      f'--root_output_dir={tmp_path}',
      *args,
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


def test_there_are_recipes():
  assert len(_RECIPES) >= 2


@pytest.mark.parametrize('recipe', _RECIPES, ids=lambda path: path.name)
def test_name_and_head(recipe):
  """A recipe is named task.model.aggregator and tells its own command."""
  text = recipe.read_text()
  values = dict(
    line[2:].split('=', 1) for line in text.splitlines() if line[:2] == '--'
  )
  task, model, aggregator = recipe.name.split('.')[:3]
  assert values['task'].split(':')[0] == task
  assert values['model'].split(':')[0] == model
  assert values.get('aggregator', 'mean').split(':')[0] == aggregator
  head = [line for line in text.splitlines() if line.startswith('#')]
  assert f'experiments/configs/{recipe.name}' in '\n'.join(head)


@pytest.mark.parametrize('recipe', _RECIPES, ids=lambda path: path.name)
def test_parts_and_options_exist(recipe):
  values = absl_flags.FlagValues()
  names = [field.name for field in dataclasses.fields(config.ExperimentConfig)]
  flags.define_config_flags(names, values)
  values(['train', f'--flagfile={recipe}'])
  given = {
    name: getattr(config.ExperimentConfig, name).parse(value)
    if hasattr(getattr(config.ExperimentConfig, name, None), 'parse')
    else value
    for name, value in values.flag_values_dict().items()
    if name in names and value is not None
  }
  experiment.check(config.ExperimentConfig('x', **given))


def _small_stackoverflow(tmp_path):
  """Makes client data of 1,500 users with our own binary."""
  lines = [
    json.dumps(
      {'text': f'to be word{i % 7} or not to be. ' * 3, 'client_id': f'u{i}'}
    )
    for i in range(1500)
  ]
  (tmp_path / 'texts.jsonl').write_text('\n'.join(lines) + '\n')
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'experiments.prepare',
      '--source=jsonl',
      f'--input={tmp_path / "texts.jsonl"}',
      f'--output={tmp_path / "data"}',
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return tmp_path / 'data'


def _small_model(recipe):
  """Returns the recipe's model with small sizes."""
  found = re.search(r'^--model=(.*)$', recipe.read_text(), re.MULTILINE)
  assert found
  small = {
    'units': '16',
    'embedding_size': '8',
    'projection_units': '8',
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
  """What `make reproduce` runs, by the Makefile's own rule."""
  makefile = (_ROOT / 'Makefile').read_text()
  tasks = re.findall(r'^TASK\.\w+ := (\w+)$', makefile, re.MULTILINE)
  assert len(tasks) == 3
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
def test_two_rounds(recipe, tmp_path):
  options = ['--total_rounds=2', '--num_validation_examples=100']
  if recipe.name.startswith('shakespeare'):
    # Its data are not installed anywhere.
    lines = [
      json.dumps({'text': 'To be, or not to be. ' * 4, 'client_id': f'role{i}'})
      for i in range(200)
    ]
    (tmp_path / 'speeches.jsonl').write_text('\n'.join(lines) + '\n')
    options.append(f'--data_dir={tmp_path}')
  if recipe.name.startswith('stackoverflow'):
    options.append(f'--data_dir={_small_stackoverflow(tmp_path)}')
    # Three clients a round, 342 rounds apart, are 1,026 users.
    options += ['--clients_per_round=3', f'--model={_small_model(recipe)}']
  done = _train(recipe, tmp_path, *options)
  assert done.returncode == 0, done.stderr
