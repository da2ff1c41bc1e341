"""Reading the weights of Keras models by variable name."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any, Optional

import h5py
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

from si_federated import files
from si_federated.training import checkpoints

_KINDS = (
  "Keras's .h5, .weights.h5 and .keras, a SavedModel, a checkpoint of "
  'TensorFlow, or .npz by variable name'
)
_SUFFIXES = ('.h5', '.hdf5', '.keras', '.npz')
_GRAPH = '_CHECKPOINTABLE_OBJECT_GRAPH'
# Entries of a checkpoint that belong to training, not to the model.
_OF_TRAINING = ('optimizer', 'metrics', 'keras_api', 'save_counter')


def find(path: str) -> Optional[str]:
  """Returns the path of weights in a file, a folder, or several files.

  Args:
    path: A file; the folder of a SavedModel or of TensorFlow checkpoints; or
      a checkpoint, by its name without or with `.index`.

  Returns:
    The path for `read`; None if there are no weights of Keras there.
  """
  prefix = path[: -len('.index')] if path.endswith('.index') else path
  if os.path.isfile(f'{prefix}.index'):
    return prefix
  if os.path.isdir(path):
    if os.path.isfile(os.path.join(path, 'saved_model.pb')):
      return path
    return tf.train.latest_checkpoint(path)
  return path if os.path.exists(path) else None


def read(path: str) -> tuple[dict[str, np.ndarray], bool]:
  """Reads the weights of a model, in a format that the content determines.

  Args:
    path: A result of `find`: a file from `save_weights` or `save` of a Keras
      model, or one of arrays by variable name (`.npz`).

  Returns:
    The weights, and whether their keys are Keras's names of the variables. The
    keys of a `.weights.h5` are places in the model instead; see `places`.

  Raises:
    ValueError: If the file is of another kind, garbled or empty, or a weight is
      infinite or NaN.
    OSError: If it cannot be read now.
  """
  try:
    weights, is_named = _read(path)
  except (*files.ARCHIVE_ERRORS, tf.errors.OpError) as error:
    files.raise_if_unreadable(error, path)
    reason = str(error).strip().partition('\n')[0]
    raise ValueError(
      f'It has no weights that can be read ({reason}).'
    ) from error
  if weights is None:
    if os.path.splitext(path)[1].lower() in _SUFFIXES:
      raise ValueError('It has no weights that can be read.')
    raise ValueError(
      f'Models are read from the folder of a run, or from {_KINDS}.'
    )
  if not weights:
    raise ValueError('It has no weights.')
  checkpoints.check_finite(weights, path)
  return weights, is_named


def places(
  model: tf.keras.Model, variables: Mapping[str, tf.Variable]
) -> dict[str, str]:
  """Returns the name of the variable at each place of a `.weights.h5` file.

  Only Keras knows the place of a variable. So this function makes Keras write a
  file in which the value of each variable is the variable's number.

  Args:
    model: The model; its values are overwritten.
    variables: Its variables by name.

  Returns:
    Names by place, both as strings.
  """
  names = list(variables)
  for number, name in enumerate(names):
    variable = variables[name]
    variable.assign(tf.fill(variable.shape, tf.cast(number, variable.dtype)))
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'places.weights.h5')
    model.save_weights(path)
    found, _ = read(path)
  return {
    place: names[int(values.flat[0])]
    for place, values in found.items()
    if values.size
  }


def _read(path: str) -> tuple[Optional[dict[str, np.ndarray]], bool]:
  if os.path.isdir(path):
    return _read_checkpoint(os.path.join(path, 'variables', 'variables')), True
  if not os.path.exists(path) or os.path.exists(f'{path}.index'):
    return _read_checkpoint(path), True
  if h5py.is_hdf5(path):
    with h5py.File(path, 'r') as file:
      group = file.get('model_weights', file)
      if 'layer_names' in group.attrs:
        return _by_layer(group), True
      return _by_place(file), False
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      is_model = 'config.json' in archive.namelist()
    if is_model:
      return _read_keras(path), True
    with np.load(path, allow_pickle=False) as arrays:
      return {name: arrays[name] for name in arrays.files}, True
  return None, True


def _read_keras(path: str) -> dict[str, np.ndarray]:
  with tempfile.TemporaryDirectory() as folder:
    # Keras infers the format from the name.
    link = os.path.join(folder, 'model.keras')
    os.symlink(os.path.abspath(path), link)
    model = tf.keras.models.load_model(link, compile=False)
  weights = {}
  for layer in model.layers:
    for variable in layer.variables:
      # Layers built from a file omit their own names.
      begins = variable.name.startswith(f'{layer.name}/')
      name = variable.name if begins else f'{layer.name}/{variable.name}'
      weights[name] = variable.numpy()
  return weights


def _by_layer(group: Any) -> dict[str, np.ndarray]:
  return {
    _text(name): np.asarray(group[_text(layer)][_text(name)])
    for layer in group.attrs['layer_names']
    for name in group[_text(layer)].attrs['weight_names']
  }


def _by_place(file: h5py.File) -> dict[str, np.ndarray]:
  weights: dict[str, np.ndarray] = {}

  def visit(name: str, value: Any) -> None:
    if isinstance(value, h5py.Dataset) and not _is_of_training(name):
      weights[name] = np.asarray(value)

  file.visititems(visit)
  return weights


def _read_checkpoint(prefix: str) -> dict[str, np.ndarray]:
  """Reads a TensorFlow checkpoint, which keeps the variables' names."""
  reader = tf.train.load_checkpoint(prefix)
  if not reader.has_tensor(_GRAPH):
    raise ValueError('it is not a TensorFlow 2 checkpoint')
  graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
    reader.get_tensor(_GRAPH)
  )
  return {
    attribute.full_name: reader.get_tensor(attribute.checkpoint_key)
    for node in graph.nodes
    for attribute in node.attributes
    if attribute.full_name and not _is_of_training(attribute.checkpoint_key)
  }


def _is_of_training(place: str) -> bool:
  return place.partition('/')[0] in _OF_TRAINING


def _text(name: Any) -> str:
  return name.decode() if isinstance(name, bytes) else str(name)
