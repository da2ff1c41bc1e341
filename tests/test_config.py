from __future__ import annotations

import dataclasses
import json
import math

import pytest

from si_federated import config


def _build_part(*, size: int, rate: float = 0.5, kind: str = 'a'):
  if kind == 'bad':
    raise ValueError('kind must not be bad.')
  return size, rate, kind


_REGISTRY = {'part': _build_part, 'other': _build_part}


@pytest.mark.parametrize(
  ('text', 'options'),
  [
    ('part', {}),
    ('part:rate=1', {'rate': 1}),
    ('part:rate=1e-3,kind=b', {'rate': 1e-3, 'kind': 'b'}),
    ('part:a=true,b=False,c=none', {'a': True, 'b': False, 'c': None}),
    (' part:rate = 2 ', {'rate': 2}),
  ],
)
def test_parse(text, options):
  spec = config.ComponentSpec.parse(text)
  assert spec.name == 'part'
  assert dict(spec.options) == options
  assert config.ComponentSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
  'text',
  ['', ':', 'part:', 'part:rate', 'part:=1', 'part:rate=', 'a b', 'p:a=1,a=2'],
)
def test_parse_refuses(text):
  with pytest.raises(config.ConfigError):
    config.ComponentSpec.parse(text)


def test_build_passes_options_and_given():
  spec = config.ComponentSpec.parse('part:rate=0.25')
  assert spec.build(_REGISTRY, 'model', size=3) == (3, 0.25, 'a')


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('prat', ["'prat'", "'part'", '--model']),
    ('part:rat=1', ["'rat'", "'rate'", '--model=part:rat=1']),
    # A value of a flag can't be given as an option too.
    ('part:size=1', ["'size'"]),
    ('part:kind=bad', ['kind must not be bad', '--model=part:kind=bad']),
  ],
)
def test_build_names_what_is_wrong_and_near_matches(text, words):
  with pytest.raises(config.ConfigError) as error:
    config.ComponentSpec.parse(text).build(_REGISTRY, 'model', size=1)
  for word in words:
    assert word in str(error.value)
  assert '\n' not in str(error.value)


def test_experiment_json_round_trip():
  experiment = config.ExperimentConfig(
    'x',
    model=config.ComponentSpec.parse('si_cifg:units=670,embedding_size=96'),
    client_learning_rate=0.3,
    data_dir='d',
  )
  text = experiment.to_json()
  assert json.loads(text)['model'] == 'si_cifg:units=670,embedding_size=96'
  assert config.ExperimentConfig.from_json(text) == experiment


@pytest.mark.parametrize(
  ('text', 'upload', 'download'),
  [
    ('none', None, None),
    ('ternary', 'ternary', None),
    (
      'uniform:bits=8,rotation=hadamard',
      'uniform:bits=8,rotation=hadamard',
      None,
    ),
    ('download=uniform:bits=16', None, 'uniform:bits=16'),
    (
      'upload=uniform:bits=8,rotation=hadamard,download=uniform:bits=16',
      'uniform:bits=8,rotation=hadamard',
      'uniform:bits=16',
    ),
    (' download=ternary, upload=uniform:bits=4', 'uniform:bits=4', 'ternary'),
  ],
)
def test_compression_of_both_ways(text, upload, download):
  spec = config.CompressionSpec.parse(text)
  for found, expected in ((spec.upload, upload), (spec.download, download)):
    assert found == (expected and config.ComponentSpec.parse(expected))
  assert config.CompressionSpec.parse(str(spec)) == spec
  experiment = config.ExperimentConfig('x', compression=spec)
  assert config.ExperimentConfig.from_json(experiment.to_json()) == experiment


@pytest.mark.parametrize(
  'text', ['', 'upload=', 'upload=a,upload=b', '8bit', 'up=uniform:bits=8']
)
def test_compression_that_is_none(text):
  with pytest.raises(config.ConfigError):
    config.CompressionSpec.parse(text)


def test_json_from_before_there_was_an_entry_has_its_default():
  experiment = config.ExperimentConfig('x', sequence_length=7)
  values = json.loads(experiment.to_json())
  assert values.pop('vocabulary') == 'words'
  assert config.ExperimentConfig.from_json(json.dumps(values)) == experiment


@pytest.mark.parametrize(
  'text', ['', '[]', '{"experiment_name": 3}', '{"a": 1}']
)
def test_experiment_from_garbled_json(text):
  with pytest.raises(config.ConfigError):
    config.ExperimentConfig.from_json(text)


def test_differences_name_the_flag_and_both_values():
  one = config.ExperimentConfig('x')
  other = dataclasses.replace(one, client_learning_rate=7.0)
  assert one.differences(one) == []
  (difference,) = one.differences(other)
  assert '--client_learning_rate' in difference
  assert '7.0' in difference


@pytest.mark.parametrize(
  'values',
  [
    {'clients_per_round': 0},
    {'total_rounds': -1},
    {'client_learning_rate': -0.1},
    {'server_learning_rate': float('nan')},
    {'server_momentum': 1.0},
    {'sequence_length': 0},
    {'clip_norm': 1e-300},  # Zero in float32.
    {'clip_norm': 1e300},
    {'noise_multiplier': 1e300},
    {'noise_multiplier': math.nan},
    {'target_epsilon': math.inf},
    {'model_seed': -1},
    {'model_seed': 1 << 32},
    {'experiment_name': '../up'},
    {'experiment_name': ''},
  ],
)
def test_experiment_refuses_values_out_of_range(values):
  with pytest.raises(config.ConfigError, match='--' + next(iter(values))):
    config.ExperimentConfig(**{'experiment_name': 'x', **values})
