"""Each model under each algorithm: results of JAX and of the local runtime."""

from __future__ import annotations

import pytest

from si_federated import runtime
from tests.runtime import jax_runs

pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings('error:A computation goes to TFF'),
]


@pytest.fixture(autouse=True)
def _local_again():
  """Restores the tests' own runtime for other tests."""
  yield
  runtime.set_local_context()


@pytest.mark.parametrize(
  'model',
  [
    'lstm:units=8,embedding_size=4',
    'gru:units=8,embedding_size=4',
    'si_cifg:units=8,embedding_size=4',
    'cifg:units=8,embedding_size=4,projection_units=4,num_layers=2',
    'si_lstm:units=8,embedding_size=4',
    'si_gru:units=8,embedding_size=4',
    'transformer:embedding_size=8,num_heads=2,intermediate_dim=8,num_layers=1',
    'si_transformer:embedding_size=8,num_heads=2,intermediate_dim=8,'
    'num_layers=1',
    'conformer:embedding_size=8,num_heads=2,num_layers=1',
    'cifg:units=8,embedding_size=4,dropout=0.3',
    'transformer:embedding_size=8,num_heads=2,intermediate_dim=8,num_layers=1,'
    'dropout=0.3',
    'si_conformer:embedding_size=8,num_heads=2,num_layers=1',
  ],
)
def test_models(model):
  jax_runs.assert_close(
    jax_runs.run('jax', model=model), jax_runs.run('local', model=model)
  )


_SMALL = 'embedding_size=8,num_heads=2,num_layers=1'


@pytest.mark.parametrize(
  'algorithm', ['fed_prox', 'fed_sgd', 'mime_lite', 'partial_training']
)
@pytest.mark.parametrize(
  ('model', 'options'),
  [
    ('lstm:units=8,embedding_size=4', {}),
    ('si_cifg:units=8,embedding_size=4', {}),
    (f'transformer:{_SMALL},intermediate_dim=8', {'transform': 'lora:rank=2'}),
    (f'si_transformer:{_SMALL},intermediate_dim=8', {}),
    (f'conformer:{_SMALL}', {}),
    (f'si_conformer:{_SMALL}', {'transform': 'freeze:variables=embedding'}),
  ],
  ids=lambda value: str(value).partition(':')[0],
)
def test_models_under_other_algorithms(model, options, algorithm):
  # `test_models` covers them under federated averaging.
  options = {'rounds': 1, 'model': model, 'algorithm': algorithm, **options}
  jax_runs.assert_close(
    jax_runs.run('jax', **options), jax_runs.run('local', **options)
  )
