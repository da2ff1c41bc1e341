"""Blending weights don't decay, wherever there is a weight decay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from si_federated import config, experiment, layers
from si_federated.algorithms import OPTIMIZERS, for_variables, weight_decay

NAMES = (
  'block_1/feed_forward/intermediate/kernel:0',
  'block_1/feed_forward/blending/blending_weights:0',
  'block_1/feed_forward/blending/swish_beta:0',
)


def test_the_names_are_those_of_the_layer():
  layer = layers.AdaptiveBlendingUnit()
  layer.build(None)
  assert all(weight_decay.is_exempt(w.name) for w in layer.weights)
  assert not weight_decay.is_exempt('blending_weights/kernel:0')


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('sgd', {'weight_decay': 0.1}),
    ('sgd', {'weight_decay': 0.1, 'gradient_clip_norm': 1e6}),
    ('adamw', {'weight_decay': 0.1}),
    ('adamw', {'weight_decay': 0.1, 'gradient_clip_norm': 1e6}),
  ],
)
def test_spared_variables_follow_the_optimizer_without_decay(name, options):
  def follow(optimizer, steps=3):
    weights = tuple(tf.constant(v) for v in ([[2.0, -3.0]], [0.5, 0.5], 1.0))
    state = optimizer.initialize(
      tuple(tf.TensorSpec(w.shape, w.dtype) for w in weights)
    )
    for step in range(steps):
      gradients = tuple(tf.ones_like(w) * (step + 0.3) for w in weights)
      state, weights = optimizer.next(state, weights, gradients)
    return state, [w.numpy() for w in weights]

  decaying = OPTIMIZERS[name](learning_rate=0.1, **options)
  state, actual = follow(for_variables(decaying, NAMES))
  decayed_state, decayed = follow(decaying)
  _, plain = follow(
    OPTIMIZERS[name](learning_rate=0.1, **{**options, 'weight_decay': 0.0})
  )
  np.testing.assert_array_equal(actual[0], decayed[0])
  assert not np.allclose(actual[0], plain[0])
  for index in (1, 2):
    np.testing.assert_array_equal(actual[index], plain[index])
  # A checkpoint's structure must not depend on the decay.
  tf.nest.assert_same_structure(state, decayed_state)
  tf.nest.map_structure(np.testing.assert_array_equal, state, decayed_state)


def _round(**changes):
  """Returns shapes and weights before and after a round of tiny gradients."""
  values = {
    'task': 'synthetic:num_clients=12',
    'model': 'transformer:embedding_size=8,num_heads=2,intermediate_dim=8,'
    'num_layers=1,activation=abu',
    'server_optimizer': 'sgd',
    'client_optimizer': 'sgd',
    **changes,
  }
  parts: dict[str, Any] = {
    key: config.ComponentSpec.parse(value) for key, value in values.items()
  }
  built = experiment.build(
    config.ExperimentConfig(
      'x',
      vocab_size=20,
      sequence_length=6,
      clients_per_round=2,
      num_validation_examples=16,
      max_elements_per_client=8,
      client_learning_rate=1e-7,
      server_learning_rate=1.0,
      **parts,
    )
  )
  state = built.process.initialize()
  before = built.process.get_model_weights(state).trainable
  output = built.process.next(state, built.sample_cohort(1))
  after = built.process.get_model_weights(output.state).trainable
  return [(np.shape(a), a, b) for a, b in zip(before, after)]


_SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [
    {
      'server_optimizer': 'sgd:weight_decay=0.5',
      'client_optimizer': 'sgd:weight_decay=1000000',
    },
    # With a large epsilon the decay has an effect, but not the gradient.
    pytest.param(
      {'server_optimizer': 'adamw:weight_decay=0.5,epsilon=1000000'},
      marks=_SLOW,
    ),
    pytest.param(
      {
        'client_optimizer': 'sgd:weight_decay=1000000',
        'algorithm': 'partial_training:fraction=1.0',
      },
      marks=_SLOW,
    ),
  ],
  ids=['sgd', 'adamw', 'partial_training'],
)
def test_a_round_decays_all_but_blending_weights(changes):
  for shape, before, after in _round(**changes):
    norm = np.linalg.norm(before)
    if shape == (5,) or shape == ():  # Blending weights, Swish's beta.
      np.testing.assert_allclose(after, before, rtol=1e-4)
    elif norm:
      assert np.linalg.norm(after) < 0.95 * norm
