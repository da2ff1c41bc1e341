"""Tests of the choice between Keras 2 and Keras 3."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import pathlib
import subprocess
import sys
import types

import pytest
import tensorflow as tf

from si_federated.layers import legacy_keras

_SWITCH = 'TF_USE_LEGACY_KERAS'


def _keras(module):
  layer = type('Layer', (), {'__module__': module})
  return types.SimpleNamespace(layers=types.SimpleNamespace(Layer=layer))


class _TensorFlow:
  """A stand-in that chooses a Keras as TensorFlow does, when first asked."""

  __name__ = 'a_tensorflow'

  def __init__(self, version):
    self.__version__ = version
    self.__path__ = ['own']
    self._keras = None

  @property
  def keras(self):
    if self._keras is None:
      is_two = os.environ.get(_SWITCH) == '1'
      self._keras = _keras('tf_keras.src' if is_two else 'keras.src')
    return self._keras


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
  # Setting it first ensures that it is restored.
  monkeypatch.setenv(_SWITCH, '1')
  monkeypatch.delenv(_SWITCH)
  spec = importlib.machinery.ModuleSpec(
    'tf_keras', None, origin='/site/tf_keras/__init__.py'
  )
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: spec)


def test_keras_3_gives_way_to_keras_2():
  tensorflow = _TensorFlow('2.21.0')
  legacy_keras.choose(tensorflow)
  assert tensorflow.keras.layers.Layer.__module__ == 'tf_keras.src'
  assert tensorflow.__path__ == ['/site/tf_keras/api/_v2', 'own']
  assert os.environ[_SWITCH] == '1'
  legacy_keras.choose(tensorflow)
  assert len(tensorflow.__path__) == 2


def test_tensorflow_with_keras_2_is_left_alone():
  tensorflow = _TensorFlow('2.15.1')
  legacy_keras.choose(tensorflow)
  assert tensorflow._keras is None
  assert tensorflow.__path__ == ['own']
  assert _SWITCH not in os.environ


def test_keras_3_in_use_stays():
  tensorflow = _TensorFlow('2.16.2')
  assert tensorflow.keras
  assert legacy_keras.choose(tensorflow)
  assert tensorflow.__path__ == ['own']
  assert _SWITCH not in os.environ


def test_keras_3_imported_by_name_stays(monkeypatch):
  monkeypatch.setitem(sys.modules, 'a_tensorflow.keras', _keras('keras.src'))
  assert legacy_keras.choose(_TensorFlow('2.16.2'))
  assert _SWITCH not in os.environ


def test_keras_3_by_request_stays(monkeypatch):
  monkeypatch.setenv(_SWITCH, '0')
  assert legacy_keras.choose(_TensorFlow('2.20.0'))
  assert os.environ[_SWITCH] == '0'


def test_keras_3_stays_without_another(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert legacy_keras.choose(_TensorFlow('2.19.1'))
  assert _SWITCH not in os.environ


_ONE_KERAS = tuple(map(int, tf.__version__.split('.')[:2])) < (2, 16)
_CHOICE = pytest.mark.skipif(_ONE_KERAS, reason='TensorFlow has one Keras')
_USE = """
from si_federated import layers
from tensorflow.keras import layers as imported_by_name
assert imported_by_name.Dense is tf.keras.layers.Dense
model = tf.keras.Sequential([layers.SICIFG(2), imported_by_name.Dense(3)])
assert model(tf.ones([1, 2, 3])).shape == (1, 3)
print(tf.keras.layers.Layer.__module__.partition('.')[0])
"""


@pytest.mark.parametrize(
  ('before', 'chosen'),
  [
    ('', 'tf_keras'),
    pytest.param('tf.keras.Sequential', 'keras', marks=_CHOICE),
    pytest.param('from tensorflow.keras import Model', 'keras', marks=_CHOICE),
  ],
)
def test_in_a_new_process(before, chosen):
  if _ONE_KERAS:
    chosen = 'keras'
  done = subprocess.run(
    [sys.executable, '-c', f'import tensorflow as tf\n{before}\n{_USE}'],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == [chosen]


def test_parts_that_need_keras_2_say_so(monkeypatch):
  monkeypatch.setattr(legacy_keras, 'IS_KERAS_3', True)
  with pytest.raises(ValueError, match=f'^Freezing needs .*set {_SWITCH}=1'):
    legacy_keras.check_keras_2('Freezing')
  monkeypatch.setattr(legacy_keras, 'IS_KERAS_3', False)
  legacy_keras.check_keras_2('Freezing')
