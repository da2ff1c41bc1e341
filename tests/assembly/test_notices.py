"""What a user is told before the first round."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from si_federated import experiment
from si_federated.assembly import task_and_model
from tests import tiny


def _notices(transform):
  settings = tiny.tiny_config(transform=transform)
  model = task_and_model.build_model(settings, vocab_size=24)
  return task_and_model.frozen_at_random(model)


def test_nothing_frozen_is_no_notice():
  assert _notices('none') == []


def test_frozen_weights_are_named():
  (notice,) = _notices('freeze:variables=embedding')
  assert 'random values: embedding/embeddings.' in notice
  assert '--initial_model' in notice
  for transform in ('lora:rank=2', 'ffa_lora:rank=2'):
    (notice,) = _notices(transform)
    assert 'kernel' in notice
    assert 'lora_a' not in notice


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


@pytest.mark.parametrize(
  ('model', 'random'),
  [
    ('cifg:units=4,embedding_size=2', False),
    ('cifg:units=4,embedding_size=2,dropout=0.1', True),
    (
      'transformer:embedding_size=4,intermediate_dim=4,num_heads=1,'
      'num_layers=1,dropout=0.1',
      True,
    ),
  ],
)
@pytest.mark.slow
def test_rounds_that_can_not_be_done_again_are_saved_each(model, random):
  private: dict[str, Any] = {'aggregator': 'gaussian', 'clip_norm': 1.0}
  settings = tiny.tiny_config(
    model=model, rounds_per_checkpoint=5, **private, noise_multiplier=1.0
  )
  built = experiment.build(settings)
  assert built.rounds_per_checkpoint == (1 if random else 5)
  assert ['every round is saved' in text for text in built.notices] == (
    [True] if random else []
  )
  without_noise = dataclasses.replace(settings, noise_multiplier=0.0)
  assert experiment.build(without_noise).rounds_per_checkpoint == 5


def test_a_resumed_run_has_its_weights():
  built = experiment.build(
    tiny.tiny_config(transform='freeze:variables=embedding'), resumed=True
  )
  assert list(built.notices) == []
