"""Dropout of clients: a function of seed, round, client and step."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from si_federated import experiment, layers
from si_federated.algorithms import dropout_keys
from si_federated.assembly import built_experiment
from tests import tiny

_DROPOUT = 'cifg:units=8,embedding_size=4,dropout=0.5'


def test_keys_depend_on_round_client_and_step():
  word = dropout_keys.round_word(seed=3, round_num=2)
  assert word != dropout_keys.round_word(seed=3, round_num=1)
  assert word != dropout_keys.round_word(seed=4, round_num=2)
  ids = np.arange(6, dtype=np.int32).reshape([3, 2])
  batches = tf.data.Dataset.from_tensor_slices((ids, ids)).batch(2)
  keyed = list(dropout_keys.add_keys(batches, word=word, client=8))
  for step, ((x, y), rows) in enumerate(zip(keyed, (ids[:2], ids[2:]))):
    np.testing.assert_array_equal(y, rows)
    got, words = dropout_keys.split(x, 2)
    np.testing.assert_array_equal(got, rows)
    assert words is not None
    np.testing.assert_array_equal(words, [word, 8, step])
    np.testing.assert_array_equal(x[:, 2:], [[word, 8, step]] * len(rows))
  assert dropout_keys.split(tf.constant(ids), 2)[1] is None


def _model(*between):
  return tf.keras.Sequential([tf.keras.layers.InputLayer([3, 2]), *between])


class _Block(tf.keras.layers.Layer):
  """A layer of another package, with Keras's dropout."""

  def __init__(self):
    super().__init__()
    self.inner = tf.keras.layers.Dropout(0.5)

  def call(self, inputs):
    return self.inner(inputs)


def test_dropout_of_keras_is_made_to_draw_from_keys():
  model = _model(_Block(), tf.keras.layers.Dropout(0.5))
  assert dropout_keys.takes_keys(model)
  assert dropout_keys.draw_from_keys(model) is model
  x = tf.ones([4, 3, 2])
  results = []
  for words in ([1, 2, 3], [1, 2, 3], [1, 2, 4]):
    with dropout_keys.drawing(tf.constant(words)):
      results.append(model(x, training=True).numpy())
  np.testing.assert_array_equal(results[0], results[1])
  assert not np.array_equal(results[0], results[2])
  # Two masks, each with a factor of two.
  assert set(np.unique(results[0])) == {0.0, 4.0}
  np.testing.assert_array_equal(model(x, training=False), x)


@pytest.mark.parametrize(
  ('make_layer', 'takes'),
  [
    (lambda: tf.keras.layers.Dropout(0.5, noise_shape=[4, 1, 2]), False),
    (lambda: tf.keras.layers.SpatialDropout1D(0.5), False),
    (lambda: tf.keras.layers.SpatialDropout1D(0.0), True),
    (lambda: tf.keras.layers.LSTM(2, dropout=0.5), False),
    (lambda: tf.keras.layers.LSTM(2), True),
    (lambda: layers.CIFG(2, dropout=0.5, recurrent_dropout=0.5), True),
    (lambda: layers.GRU(2, dropout=0.5), True),
    (lambda: layers.LSTM(2, recurrent_dropout=0.5), True),
  ],
)
def test_layers_with_generators_take_no_keys(make_layer, takes):
  assert dropout_keys.takes_keys(_model(make_layer())) == takes


@pytest.mark.slow
def test_an_interrupted_run_and_threads_change_no_bit(tmp_path, monkeypatch):
  def settings(name, threads, **changes):
    return tiny.tiny_config(
      name,
      **{
        'model': _DROPOUT,
        'runtime': f'local:num_threads={threads}',
        'clients_per_round': 3,
        'total_rounds': 4,
        'rounds_per_checkpoint': 2,
        **changes,
      },
    )

  whole, cut = settings('x', 2), settings('x', 1)
  experiment.run(whole, str(tmp_path / 'whole'))
  sample = built_experiment.Experiment.sample_cohort

  def interrupted(self, round_num):
    if round_num == 4:
      raise KeyboardInterrupt
    return sample(self, round_num)

  with monkeypatch.context() as patch:
    patch.setattr(built_experiment.Experiment, 'sample_cohort', interrupted)
    with pytest.raises(KeyboardInterrupt):
      experiment.run(cut, str(tmp_path / 'cut'))
  experiment.run(cut, str(tmp_path / 'cut'))
  tiny.assert_same_run(tmp_path / 'whole' / 'x', tmp_path / 'cut' / 'x')
  # Training drops something, evaluation does not.
  experiment.run(
    settings('x', 2, model=_DROPOUT.replace('0.5', '0')), str(tmp_path / 'none')
  )
  some, others = (
    tiny.read_newest_checkpoint(tmp_path / name / 'x')
    for name in ('whole', 'none')
  )
  assert any(not np.array_equal(some[key], others[key]) for key in some)
