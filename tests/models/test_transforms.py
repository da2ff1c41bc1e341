"""Tests of freezing and of stable variable names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from si_federated.layers import legacy_keras
from si_federated.models import MODELS, TRANSFORMS
from si_federated.models.transforms import match_names, stable_names

X = np.array([[7, 1, 2, 3, 4], [7, 5, 9, 0, 0]], np.int32)
Y = np.array([[1, 2, 3, 4, 8], [5, 9, 8, 0, 0]], np.int32)


# KerasNLP's models cannot be built in TensorFlow 1 graphs.
_BERT = ('albert', 'bert', 'distilbert')


def _build(name):
  if name in _BERT:
    pytest.importorskip('keras_nlp')
    sizes = {'num_layers': 1, 'num_heads': 2, 'hidden_dim': 4}
    return MODELS[name](12, 3, intermediate_dim=8, **sizes)
  if name == 'transformer_classifier':
    return MODELS[name](12, 3, embedding_size=4, num_layers=1)
  if name.endswith('former'):
    return MODELS[name](
      12, embedding_size=4, num_heads=2, intermediate_dim=8, num_layers=1
    )
  return MODELS[name](12, units=8, embedding_size=4)


def _names(variables):
  return stable_names(v.name for v in variables)


@pytest.mark.parametrize('name', sorted(MODELS))
def test_names_are_the_same_in_each_build(name):
  first = _names(_build(name).variables)
  assert len(set(first)) == len(first)
  assert _names(_build(name).variables) == first
  if name in _BERT:
    return
  with tf.Graph().as_default():
    assert _names(_build(name).variables) == first


def test_numbers_stay_where_names_would_collide():
  assert stable_names(
    ['block_1/dense/kernel:0', 'block_1/dense_1/kernel:0', 'a_2/b_3/c_4:0']
  ) == ['block_1/dense/kernel', 'block_1/dense_1/kernel', 'a_2/b/c_4']


@pytest.mark.parametrize(
  ('name', 'pattern', 'frozen'),
  [
    ('cifg', 'embedding', {'embedding/embeddings'}),
    (
      'si_cifg',
      'recurrent_1/.*kernel',
      {
        'recurrent_1/sicifg_cell/kernel',
        'recurrent_1/sicifg_cell/recurrent_kernel',
      },
    ),
    ('transformer', 'block_1/|final_norm', None),
  ],
)
def test_freezes_by_variable(name, pattern, frozen):
  tf.keras.utils.set_random_seed(0)
  model = _build(name)
  names = _names(model.variables)
  before = dict(zip(names, model.get_weights()))
  if frozen is None:
    frozen = {n for n in names if n.startswith(('block_1/', 'final_norm'))}
  assert frozen <= set(names)
  model = TRANSFORMS['freeze'](model, variables=pattern)
  assert set(_names(model.non_trainable_variables)) == frozen
  assert set(_names(model.trainable_variables)) == set(names) - frozen
  # Keras now lists the variables in another order.
  assert set(_names(model.variables)) == set(names)

  model.compile(
    'sgd', tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  )
  model.fit(X, Y, verbose=0)
  after = dict(zip(_names(model.variables), model.get_weights()))
  for key, value in before.items():
    same = np.array_equal(value, after[key])
    assert same == (key in frozen) or not value.any()


def test_patterns_matching_nothing_or_everything_are_refused():
  model = _build('cifg')
  for pattern in ('no_such', '.', 'e'):
    with pytest.raises(ValueError, match='embedding/embeddings') as caught:
      TRANSFORMS['freeze'](model, variables=pattern)
    assert repr(pattern) in str(caught.value)
  assert not model.non_trainable_variables
  bad: Any
  for bad in ('(', True, 3, ''):
    with pytest.raises(ValueError, match='regular expression'):
      TRANSFORMS['freeze'](model, variables=bad)


def test_long_lists_of_names_are_cut():
  names = [f'layer_{i}/kernel' for i in range(100)]
  with pytest.raises(ValueError, match='and 60 more'):
    match_names(names, 'nothing')
  assert match_names(names, '_7/|_8/') == ['layer_7/kernel', 'layer_8/kernel']


@pytest.mark.parametrize('transform', ['freeze', 'lora', 'ffa_lora'])
def test_refused_with_keras_3(transform, monkeypatch):
  model = _build('cifg')
  monkeypatch.setattr(legacy_keras, 'IS_KERAS_3', True)
  with pytest.raises(
    ValueError, match='needs Keras 2, but tf.keras is Keras 3'
  ):
    TRANSFORMS[transform](model, variables='embedding')


def test_none_leaves_the_model():
  model = _build('lstm')
  assert TRANSFORMS['none'](model) is model
  assert len(model.trainable_variables) == len(model.variables)
