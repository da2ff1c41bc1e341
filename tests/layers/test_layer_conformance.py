"""Properties of every layer, as a table with one line per layer."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Tuple

import numpy as np
import pytest
import tensorflow as tf

from si_federated import layers
from si_federated.layers import legacy_keras


class Case(NamedTuple):
  """A layer under test.

  Attributes:
    make: Builds the layer, given keyword arguments for Keras.
    shape: Shape of an input without the batch.
    output_shape: Shape of its output without the batch.
    keeps_mask: Whether the mask of the input is that of the output.
    mixes_steps: Whether it sees more than one step of a sequence at a time.
    tflite: Whether it can be converted to TensorFlow Lite.
  """

  make: Callable[..., Any]
  shape: Tuple[int, ...]
  output_shape: Tuple[int, ...]
  keeps_mask: bool = True
  mixes_steps: bool = True
  tflite: bool = False


def _cells(cell_class):
  return lambda **kwargs: tf.keras.layers.RNN(
    cell_class(4, **kwargs), return_sequences=True, **kwargs
  )


def _sequences(layer_class, **options):
  return lambda **kwargs: layer_class(
    4, return_sequences=True, **options, **kwargs
  )


CASES = {
  'lora_dense': Case(
    lambda **kwargs: layers.LoRADense(
      4, rank=2, alpha=6, activation='relu', a_initializer='ones', **kwargs
    ),
    (5, 3),
    (5, 4),
    mixes_steps=False,
    tflite=True,
  ),
  'dropout': Case(
    lambda **kwargs: layers.Dropout(0.1, **kwargs),
    (5, 3),
    (5, 3),
    mixes_steps=False,
    tflite=True,
  ),
  'lstm': Case(_sequences(layers.LSTM), (5, 3), (5, 4), tflite=True),
  'cifg': Case(_sequences(layers.CIFG), (5, 3), (5, 4), tflite=True),
  'si_cifg': Case(_sequences(layers.SICIFG), (5, 3), (5, 4), tflite=True),
  'si_lstm': Case(_sequences(layers.SILSTM), (5, 3), (5, 4), tflite=True),
  'gru': Case(_sequences(layers.GRU), (5, 3), (5, 4), tflite=True),
  'si_gru': Case(_sequences(layers.SIGRU), (5, 3), (5, 4), tflite=True),
  'cifg_projected': Case(
    _sequences(layers.CIFG, projection_units=2, recurrent_dropout=0.1),
    (5, 3),
    (5, 2),
  ),
  'si_cifg_projected': Case(
    _sequences(layers.SICIFG, projection_units=2, dropout=0.1),
    (5, 3),
    (5, 2),
  ),
  'si_gru_projected': Case(
    _sequences(layers.SIGRU, projection_units=2, recurrent_dropout=0.1),
    (5, 3),
    (5, 2),
  ),
  'si_cifg_last_step': Case(
    lambda **kwargs: layers.SICIFG(
      4, kernel_regularizer='l2', unroll=False, **kwargs
    ),
    (5, 3),
    (4,),
    keeps_mask=False,
  ),
  'lstm_cell': Case(_cells(layers.LSTMCell), (5, 3), (5, 4)),
  'cifg_cell': Case(_cells(layers.CIFGCell), (5, 3), (5, 4)),
  'gru_cell': Case(_cells(layers.GRUCell), (5, 3), (5, 4)),
  'si_lstm_cell': Case(_cells(layers.SILSTMCell), (5, 3), (5, 4)),
  'si_cifg_cell': Case(_cells(layers.SICIFGCell), (5, 3), (5, 4)),
  'si_gru_cell': Case(_cells(layers.SIGRUCell), (5, 3), (5, 4)),
  'attention': Case(
    lambda **kwargs: layers.MultiHeadAttention(2, 3, **kwargs),
    (5, 4),
    (5, 4),
    tflite=True,
  ),
  'si_attention': Case(
    lambda **kwargs: layers.MultiHeadAttention(
      2, 3, value_dim=2, scale_invariant=True, dropout=0.1, **kwargs
    ),
    (5, 4),
    (5, 4),
    tflite=True,
  ),
  'transformer_block': Case(
    lambda **kwargs: layers.TransformerBlock(
      6, 2, activation='gelu', normalize_first=False, **kwargs
    ),
    (5, 4),
    (5, 4),
    tflite=True,
  ),
  'si_transformer_block': Case(
    lambda **kwargs: layers.TransformerBlock(
      6, 2, scale_invariant=True, dropout=0.1, **kwargs
    ),
    (5, 4),
    (5, 4),
    tflite=True,
  ),
  'conformer_block': Case(
    lambda **kwargs: layers.ConformerBlock(6, 2, kernel_size=3, **kwargs),
    (5, 4),
    (5, 4),
    tflite=True,
  ),
  'si_conformer_block': Case(
    lambda **kwargs: layers.ConformerBlock(
      6, 2, kernel_size=3, scale_invariant=True, **kwargs
    ),
    (5, 4),
    (5, 4),
    tflite=True,
  ),
  'feed_forward': Case(
    lambda **kwargs: layers.FeedForward(6, dropout=0.1, **kwargs),
    (5, 4),
    (5, 4),
    mixes_steps=False,
    tflite=True,
  ),
  'blending_unit': Case(
    lambda **kwargs: layers.AdaptiveBlendingUnit('absolute', **kwargs),
    (5, 4),
    (5, 4),
    mixes_steps=False,
    tflite=True,
  ),
  'feed_forward_blending': Case(
    lambda **kwargs: layers.FeedForward(6, 'abu_softmax', **kwargs),
    (5, 4),
    (5, 4),
    mixes_steps=False,
    tflite=True,
  ),
  'conformer_block_blending': Case(
    lambda **kwargs: layers.ConformerBlock(
      6, 2, kernel_size=3, activation='abu', **kwargs
    ),
    (5, 4),
    (5, 4),
  ),
  'layer_normalization': Case(
    lambda **kwargs: layers.LayerNormalization(epsilon=0.0, **kwargs),
    (5, 4),
    (5, 4),
    mixes_steps=False,
    tflite=True,
  ),
  'gain': Case(
    lambda **kwargs: layers.Gain(2, **kwargs),
    (5, 4),
    (5, 4),
    mixes_steps=False,
    tflite=True,
  ),
  'positions': Case(
    lambda **kwargs: layers.PositionEmbedding(
      'learned', max_length=7, **kwargs
    ),
    (5, 4),
    (5, 4),
    mixes_steps=False,
    tflite=True,
  ),
}
BATCH = 6
# Other cases take the same paths, so these cases' expensive tests are slow.
ALIKE = {
  'attention',
  'cifg',
  'cifg_cell',
  'cifg_projected',
  'conformer_block',
  'feed_forward_blending',
  'gru',
  'gru_cell',
  'lstm',
  'lstm_cell',
  'si_gru_cell',
  'si_gru_projected',
  'si_lstm',
  'si_lstm_cell',
  'transformer_block',
}


def _compiled(*names):
  slow = pytest.mark.slow
  return pytest.mark.parametrize(
    'case',
    [pytest.param(n, marks=slow) if n in ALIKE else n for n in names],
    indirect=True,
  )


def test_the_table_has_every_public_layer():
  made = [case.make() for case in CASES.values()]
  covered = {type(getattr(layer, 'cell', layer)) for layer in made}
  covered |= {type(layer) for layer in made}
  public = {
    part
    for part in (getattr(layers, name) for name in layers.__all__)
    if isinstance(part, type)
  }
  # Its inputs are ids: tests/layers/test_embedding.py.
  assert public - covered == {layers.TiedEmbedding}


@pytest.fixture(name='case', params=list(CASES))
def _case(request):
  tf.keras.utils.set_random_seed(0)
  return CASES[request.param]


def _inputs(case):
  generator = np.random.default_rng(1)
  return generator.normal(size=(BATCH, *case.shape)).astype('float32')


def _model(case, **kwargs):
  inputs = tf.keras.Input(case.shape)
  return tf.keras.Model(inputs, case.make(**kwargs)(inputs))


def test_configuration_round_trip(case):
  layer = case.make(name='some_name')
  expected = layer(_inputs(case))
  again = type(layer).from_config(layer.get_config())
  assert again.get_config() == layer.get_config()
  serialized = tf.keras.layers.serialize(layer)
  for copy in (again, tf.keras.layers.deserialize(serialized)):
    copy(_inputs(case))
    copy.set_weights(layer.get_weights())
    np.testing.assert_allclose(copy(_inputs(case)), expected, atol=1e-6)


def test_shapes(case):
  layer = case.make()
  assert layer(_inputs(case)).shape == (BATCH, *case.output_shape)
  symbolic = case.make()(tf.keras.Input(case.shape))
  assert tuple(symbolic.shape) == (None, *case.output_shape)
  computed = layer.compute_output_shape((BATCH, *case.shape))
  assert tuple(computed) == (BATCH, *case.output_shape)


def test_unknown_length(case):
  inputs = tf.keras.Input((None, case.shape[-1]))
  model = tf.keras.Model(inputs, case.make()(inputs))
  assert model(_inputs(case)).shape == (BATCH, *case.output_shape)


def test_masked_steps_have_no_effect(case):
  layer = case.make()
  x = _inputs(case)
  mask = tf.sequence_mask([5, 4, 3, 2, 1, 2], case.shape[0])
  other = np.where(mask[..., tf.newaxis], x, 100.0).astype('float32')
  if case.mixes_steps:
    outputs = []
    for value in (x, other):
      value = tf.constant(value)
      value._keras_mask = mask
      outputs.append(layer(value))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)
  inputs = tf.keras.Input(case.shape)
  hidden = tf.keras.layers.Masking(100.0)(inputs)
  output = case.make()(hidden)
  assert (getattr(output, '_keras_mask', None) is not None) == case.keeps_mask


def test_gradients_are_finite_for_extreme_inputs(case):
  model = _model(case)
  x = _inputs(case)
  for inputs in (x, 0 * x, 1e-30 * x, 1e6 * x, -np.abs(x)):
    with tf.GradientTape() as tape:
      inputs = tf.constant(inputs)
      tape.watch(inputs)
      loss = tf.reduce_sum(model(inputs, training=True))
    for gradient in tape.gradient(loss, [inputs, *model.trainable_variables]):
      assert np.all(np.isfinite(gradient))


@_compiled(*CASES)
def test_trains_in_keras(case):
  model = _model(case)
  before = [w.numpy() for w in model.weights]
  model.compile('sgd', 'mse')
  x = _inputs(case)
  target = np.random.default_rng(2).normal(size=(BATCH, *case.output_shape))
  # Two steps, since in the first a zero factor of LoRA blocks the other one.
  model.fit(x, target, epochs=2, verbose=0)
  for weight, old in zip(model.weights, before):
    assert np.any(weight.numpy() != old) == weight.trainable, weight.name
    assert np.all(np.isfinite(weight))


# Each case takes a file; two cases represent loops and blocks.
@pytest.mark.parametrize(
  'case',
  [
    name
    if name in ('si_cifg_projected', 'si_conformer_block')
    else pytest.param(name, marks=pytest.mark.slow)
    for name in CASES
  ],
  indirect=True,
)
@pytest.mark.skipif(
  legacy_keras.IS_KERAS_3, reason='Keras 3 exports, but loads none.'
)
def test_saved_model(case, tmp_path):
  _save_and_load(_model(case), tmp_path / 'saved_model')


@_compiled(*CASES)
def test_h5_file(case, tmp_path):
  model = _model(case)
  if type(model.layers[1]) is tf.keras.layers.RNN:
    pytest.skip('Keras finds no custom cell of its own RNN in an H5 file.')
  _save_and_load(model, tmp_path / 'model.h5')


def test_keras_file(case, tmp_path):
  _save_and_load(_model(case), tmp_path / 'model.keras')


def _save_and_load(model, path):
  model.save(path)
  loaded = tf.keras.models.load_model(path)
  x = np.random.default_rng(1).normal(size=(BATCH, *model.input_shape[1:]))
  x = x.astype('float32')
  np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)
  with tf.GradientTape() as tape:
    loss = tf.reduce_sum(loaded(x) ** 2)
  for gradient in tape.gradient(loss, loaded.trainable_variables):
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize('policy', ['mixed_float16', 'mixed_bfloat16'])
def test_mixed_precision(case, policy):
  exact = _model(case)
  model = _model(case, dtype=policy)
  model.set_weights(exact.get_weights())
  x = _inputs(case)
  with tf.GradientTape() as tape:
    output = model(x)
    loss = tf.reduce_sum(tf.cast(output, tf.float32))
  assert output.dtype.name == policy[len('mixed_') :]
  np.testing.assert_allclose(tf.cast(output, tf.float32), exact(x), atol=0.1)
  for variable, gradient in zip(
    model.trainable_variables, tape.gradient(loss, model.trainable_variables)
  ):
    assert variable.dtype == gradient.dtype == tf.float32
    assert np.all(np.isfinite(gradient))


@_compiled(*[name for name, case in CASES.items() if case.tflite])
def test_tensorflow_lite(case):
  inputs = tf.keras.Input(case.shape, batch_size=BATCH)
  model = tf.keras.Model(inputs, case.make()(inputs))
  converted = tf.lite.TFLiteConverter.from_keras_model(model).convert()
  interpreter = tf.lite.Interpreter(model_content=converted)
  interpreter.allocate_tensors()
  x = _inputs(case)
  interpreter.set_tensor(interpreter.get_input_details()[0]['index'], x)
  interpreter.invoke()
  actual = interpreter.get_tensor(interpreter.get_output_details()[0]['index'])
  np.testing.assert_allclose(actual, model(x), atol=1e-5)
