"""Messages that users see before the first round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from si_federated import experiment
from si_federated.assembly import task_and_model
from si_federated.weights import initial_model
from tests import tiny


def _notices(transform, start=None):
  settings = tiny.tiny_config(transform=transform)
  task = experiment.build_task(settings)
  model = task_and_model.build_model(settings, **task.model_arguments)
  return task_and_model.frozen_at_random(settings, task, start, model)


def test_nothing_frozen_is_no_notice():
  assert _notices('none') == []


def test_frozen_weights_are_named():
  (notice,) = _notices('freeze:variables=embedding')
  assert 'freezes these weights at random values: embedding/embed' in notice
  assert '--initial_model' in notice
  assert 'leave them out of its option variables' in notice
  for transform in ('lora:rank=2', 'ffa_lora:rank=2'):
    (notice,) = _notices(transform)
    assert 'kernel' in notice
    assert 'lora_a' not in notice
    assert 'name them in its option trained' in notice


def test_frozen_weights_that_the_initial_model_does_not_give_are_named():
  weights = {'embedding/embeddings': np.zeros([1])}
  start = initial_model.Start(weights, {})
  assert _notices('freeze:variables=embedding', start) == []
  (notice,) = _notices('freeze:variables=embedding|bias', start)
  assert 'bias' in notice
  assert 'embeddings' not in notice
  assert 'leave them out of --reinitialized_variables' in notice


def test_a_run_shows_them_and_a_large_delta():
  built = experiment.build(
    tiny.tiny_config(
      transform='freeze:variables=embedding',
      aggregator='gaussian',
      clip_norm=1.0,
      noise_multiplier=1.0,
      delta=0.5,
      participation='poisson',
    )
  )
  frozen, delta = built.notices
  assert 'random values' in frozen
  assert '--delta=0.5 is above 1/' in delta


@pytest.mark.slow
def test_dropout_of_language_models_can_be_done_again():
  private: dict[str, Any] = {'aggregator': 'gaussian', 'clip_norm': 1.0}
  settings = tiny.tiny_config(
    model='cifg:units=4,embedding_size=2,dropout=0.1',
    rounds_per_checkpoint=5,
    **private,
    noise_multiplier=1.0,
  )
  built = experiment.build(settings)
  assert built.rounds_per_checkpoint == 5
  assert built.draws_from_keys
  assert not any('every round is saved' in text for text in built.notices)


def test_a_round_whose_noise_cannot_be_repeated_is_saved():
  settings = tiny.tiny_config(
    aggregator='distributed_dp',
    clip_norm=1.0,
    noise_multiplier=1.0,
    rounds_per_checkpoint=5,
  )
  built = experiment.build(settings)
  assert built.rounds_per_checkpoint == 1
  assert any('cost privacy twice' in text for text in built.notices)


def test_a_resumed_run_has_its_weights():
  built = experiment.build(
    tiny.tiny_config(transform='freeze:variables=embedding'), resumed=True
  )
  assert list(built.notices) == []
