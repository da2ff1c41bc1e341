"""Reading the weights of Keras models by variable name."""

from __future__ import annotations

import os
import zipfile
from typing import Any

import h5py
import numpy as np
import tensorflow as tf

from si_federated.training import checkpoints

SUFFIXES = ('.h5', '.hdf5', '.keras', '.npz')


def read(path: str) -> dict[str, np.ndarray]:
  """Reads the weights of a model.

  Args:
    path: A file written by `save_weights` or `save` of a Keras model (`.h5`, or
      `.keras` for a whole model), or arrays by variable name (`.npz`).

  Returns:
    The weights by Keras's names of the variables.

  Raises:
    ValueError: If the file is of another kind, garbled or empty, or a weight is
      infinite or NaN.
  """
  suffix = os.path.splitext(path)[1].lower()
  if suffix not in SUFFIXES:
    raise ValueError(
      'Models are read from the folder of a run, or from files '
      f'{", ".join(SUFFIXES)}.'
    )
  try:
    if suffix == '.npz':
      with np.load(path, allow_pickle=False) as archive:
        weights = {name: archive[name] for name in archive.files}
    elif suffix == '.keras':
      weights = _read_keras(path)
    else:
      weights = _read_hdf5(path)
  except (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
  ) as error:
    reason = str(error).strip().partition('\n')[0]
    raise ValueError(
      f'It holds no weights that can be read ({reason}).'
    ) from error
  if not weights:
    raise ValueError('It holds no weights.')
  checkpoints.check_finite(weights, path)
  return weights


def _read_keras(path: str) -> dict[str, np.ndarray]:
  model = tf.keras.models.load_model(path, compile=False)
  weights = {}
  for layer in model.layers:
    for variable in layer.variables:
      # Layers built from a file omit their own names.
      begins = variable.name.startswith(f'{layer.name}/')
      name = variable.name if begins else f'{layer.name}/{variable.name}'
      weights[name] = variable.numpy()
  return weights


def _read_hdf5(path: str) -> dict[str, np.ndarray]:
  with h5py.File(path, 'r') as file:
    group = file.get('model_weights', file)
    return {
      _text(name): np.asarray(group[_text(layer)][_text(name)])
      for layer in group.attrs['layer_names']
      for name in group[_text(layer)].attrs['weight_names']
    }


def _text(name: Any) -> str:
  return name.decode() if isinstance(name, bytes) else str(name)
