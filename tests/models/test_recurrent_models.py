"""Tests of the recurrent language models."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from si_federated.models import MODELS

SMALL = {'embedding_size': 6, 'units': 8}
NAMES = ['lstm', 'cifg', 'gru', 'si_lstm', 'si_cifg', 'si_gru']
ALL = pytest.mark.parametrize('name', NAMES)
# For compiled tests, which depend mostly on the layers' common code.
SOME = pytest.mark.parametrize(
  'name',
  [
    name
    if name in ('lstm', 'si_cifg', 'si_gru')
    else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
  ],
)
IDS = np.array([[7, 1, 2, 3, 4], [7, 5, 9, 0, 0], [0, 0, 0, 0, 0]], np.int32)


def test_untied_lstm_is_the_stack_overflow_baseline_of_tff():
  baselines = pytest.importorskip(
    'tensorflow_federated.python.simulation.baselines.stackoverflow'
    '.word_prediction_models'
  )
  baseline = baselines.create_recurrent_model(
    12, embedding_size=6, num_lstm_layers=2, lstm_size=8
  )
  model = MODELS['lstm'](12, tied_embeddings=False, num_layers=2, **SMALL)
  assert [w.shape for w in model.weights] == [w.shape for w in baseline.weights]
  model.set_weights(baseline.get_weights())
  np.testing.assert_allclose(model(IDS), baseline(IDS), atol=1e-6)


@ALL
@pytest.mark.parametrize('options', [{}, {'projection_units': 6}])
def test_tied_logits_are_products_with_the_embedding(name, options):
  tf.keras.utils.set_random_seed(0)
  model = MODELS[name](12, num_layers=2, **SMALL, **options)
  logits = model(IDS)
  assert logits.shape == (3, 5, 12)
  last = model.get_layer('recurrent_2' if options else 'projection_2')
  hidden = tf.keras.Model(model.input, last.output)(IDS)
  embeddings = model.get_layer('embedding').get_weights()[0]
  np.testing.assert_allclose(logits, hidden.numpy() @ embeddings.T, atol=1e-6)


@pytest.mark.parametrize(
  ('name', 'tied_embeddings'),
  [
    ('si_cifg', True),
    pytest.param('si_gru', True, marks=pytest.mark.slow),
    ('lstm', False),
  ],
)
def test_clone_configuration_and_files_keep_the_model(
  name, tied_embeddings, tmp_path
):
  tf.keras.utils.set_random_seed(0)
  model = MODELS[name](12, tied_embeddings=tied_embeddings, **SMALL)
  expected = model(IDS)
  copies = [
    tf.keras.models.clone_model(model),
    tf.keras.Model.from_config(model.get_config()),
  ]
  for copy in copies:
    assert len(copy.weights) == len(model.weights)
    copy.set_weights(model.get_weights())
  for path in (tmp_path / 'model.keras', tmp_path / 'saved', tmp_path / 'm.h5'):
    model.save(path)
    copies.append(tf.keras.models.load_model(path))
  for copy in copies:
    np.testing.assert_allclose(copy(IDS), expected, atol=1e-6)
    assert copy.count_params() == model.count_params()


@pytest.mark.slow
def test_saved_models_without_the_classes_and_imports_without_tff(tmp_path):
  models = {name: MODELS[name](12, **SMALL) for name in ('cifg', 'si_gru')}
  for name, model in models.items():
    model.save(tmp_path / name)
  code = f"""
import sys
import si_federated
assert 'tensorflow' not in sys.modules
import numpy as np, tensorflow as tf
for name in {list(models)}:
  model = tf.saved_model.load({str(tmp_path)!r} + '/' + name)
  outputs = model.signatures['serving_default'](tf.constant({IDS.tolist()}))
  np.save({str(tmp_path)!r} + f'/{{name}}.npy', [*outputs.values()][0].numpy())
before = set(sys.modules)
assert not [name for name in before if name.startswith('si_federated.')]
import si_federated.models, si_federated.layers
new = set(sys.modules) - before
new = {{name.partition('.')[0] for name in new}}
# TensorFlow loads Keras lazily. From 2.16 on that is tf_keras, which brings
# scipy and more.
if 'tf_keras' in new:
  assert not new & {{'keras', 'tensorflow_federated', 'absl', 'dp_accounting'}}
else:
  assert new <= {{'keras', 'si_federated'}}
"""
  subprocess.run([sys.executable, '-c', code], check=True)
  for name, model in models.items():
    actual = np.load(tmp_path / f'{name}.npy')
    np.testing.assert_allclose(actual, model(IDS), atol=1e-6)


@SOME
def test_padding_changes_neither_logits_nor_training(name):
  tf.keras.utils.set_random_seed(1)
  model = MODELS[name](12, **SMALL)
  padded = np.pad(IDS[:2], ((0, 0), (0, 3)))
  np.testing.assert_allclose(model(padded)[:, :5], model(IDS[:2]), atol=1e-6)
  weights = model.get_weights()
  model.compile(
    tf.keras.optimizers.SGD(1.0),
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
  )
  results = []
  for fill in (0, 11):
    model.set_weights(weights)
    labels = np.where(padded > 0, np.roll(padded, -1, axis=1), fill)
    history = model.fit(padded, labels, verbose=0)
    results.append([history.history['loss'], *model.get_weights()])
  for first, second in zip(*results):
    np.testing.assert_allclose(first, second, atol=1e-6)
  assert np.abs(results[0][1] - weights[0]).max() > 1e-4


@SOME
def test_learns_a_repeated_sentence(name):
  tf.keras.utils.set_random_seed(2)
  model = MODELS[name](12, embedding_size=16, units=24)
  model.compile(
    tf.keras.optimizers.Adam(0.02),
    tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
  )
  sentences = np.array([[1, 2, 3, 2, 4, 2], [5, 2, 6, 2, 7, 2]] * 8, np.int32)
  losses = model.fit(
    sentences[:, :-1], sentences[:, 1:], epochs=120, verbose=0
  ).history['loss']
  # The word after the second 2 depends on the word before the first 2.
  assert losses[-1] < 0.2


@ALL
def test_seeds_make_a_model_reproducible(name):
  results = []
  for seed in (3, 3, 4):
    tf.keras.utils.set_random_seed(seed)
    model = MODELS[name](12, dropout=0.5, **SMALL)
    results.append((model(IDS).numpy(), model(IDS, training=True).numpy()))
  np.testing.assert_array_equal(results[0][0], results[1][0])
  np.testing.assert_array_equal(results[0][1], results[1][1])
  assert np.abs(results[0][0] - results[2][0]).max() > 1e-4
  assert np.abs(results[0][0] - results[0][1]).max() > 1e-5


@pytest.mark.parametrize('name', ['si_lstm', 'si_cifg', 'si_gru'])
def test_embedding_is_normalised_before_the_recurrence(name):
  tf.keras.utils.set_random_seed(4)
  model = MODELS[name](12, **SMALL)
  hidden = tf.keras.Model(model.input, model.get_layer('normalization').output)(
    IDS
  )
  np.testing.assert_allclose(np.mean(hidden, -1), 0, atol=1e-5)
  np.testing.assert_allclose(np.std(hidden, -1), 1, atol=0.01)
  names = [
    layer.name
    for layer in MODELS[name](12, normalize_embedding=False, **SMALL).layers
  ]
  assert 'normalization' not in names


@ALL
def test_options_reach_the_layers(name):
  options = {'dead_gate_slope': 0.3} if name.startswith('si_') else {}
  if name in ('si_lstm', 'si_cifg'):
    options.update(unit_forget_bias=True, scale_invariant_output=False)
  model = MODELS[name](12, dropout=0.25, **SMALL, **options)
  config = model.get_layer('recurrent_1').get_config()
  for option, value in {'dropout': 0.25, **options}.items():
    assert config[option] == value
  kind = name[3:].upper() if name.startswith('si_') else name.upper()
  prefix = 'SI' if name.startswith('si_') else ''
  assert type(model.get_layer('recurrent_1')).__name__ == prefix + kind


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'size': 'medium'}, "size must be one of small, large, .*'medium'"),
    ({'size': 'small', 'units': 512}, 'size=.small. sets units=2048'),
    ({'size': 'small', 'units': 670}, 'size=.small. sets units=2048'),
    ({'size': 'large', 'embedding_size': 96}, 'sets embedding_size=1024'),
    ({'projection_units': 32}, 'projection_units=32 must equal'),
    ({'units': 0}, 'units must be a positive'),
    ({'num_layers': 0}, 'num_layers must be a positive'),
    ({'vocab_size': 0}, 'vocab_size must be a positive'),
    ({'dropout': 1.0}, 'dropout must be'),
  ],
)
@ALL
def test_bad_options_are_refused(name, options, message):
  with pytest.raises(ValueError, match=message):
    MODELS[name](**{'vocab_size': 12, **options})


@pytest.mark.parametrize('name', ['si_lstm', 'si_cifg', 'si_gru'])
def test_initial_scale_changes_no_output_and_shrinks_gradients(name):
  outputs, gradients = [], []
  for scale in (1.0, 4.0):
    tf.keras.utils.set_random_seed(0)
    model = MODELS[name](12, embedding_size=6, units=16, initial_scale=scale)
    with tf.GradientTape() as tape:
      output = model(tf.constant([[7, 1, 2, 3, 4], [7, 5, 9, 2, 1]]))
      loss = tf.reduce_sum(tf.square(output))
    kernel = model.get_layer('recurrent_1').cell.kernel
    outputs.append(output)
    gradients.append(tape.gradient(loss, kernel).numpy())
  np.testing.assert_array_equal(outputs[0], outputs[1])
  np.testing.assert_allclose(gradients[0], 4 * gradients[1], rtol=1e-4)
  assert np.any(gradients[0])
  with pytest.raises(ValueError, match='initial_scale must be above 0'):
    MODELS[name](12, initial_scale=0.0)


@pytest.mark.parametrize('name', ['cifg', 'lstm', 'gru'])
def test_invariant_models_with_plain_activations_are_the_plain_models(name):
  plain = MODELS[name](12, embedding_size=6, units=16)
  model = MODELS[f'si_{name}'](
    12,
    embedding_size=6,
    units=16,
    normalize_embedding=False,
    activation='tanh',
    recurrent_activation='sigmoid',
  )
  weights = [
    np.random.default_rng(i).normal(size=w.shape).astype(np.float32)
    for i, w in enumerate(plain.weights)
  ]
  plain.set_weights(weights)
  model.set_weights(weights)
  ids = tf.constant([[1, 5, 3, 7, 0]])
  np.testing.assert_allclose(model(ids), plain(ids), rtol=1e-5, atol=1e-5)
  # Each of the two changes the outputs.
  for options in ({'activation': 'tanh'}, {'recurrent_activation': 'sigmoid'}):
    mixed = MODELS[f'si_{name}'](
      12, embedding_size=6, units=16, normalize_embedding=False, **options
    )
    mixed.set_weights(weights)
    assert np.max(np.abs(mixed(ids) - plain(ids))) > 0.1
