"""Exports a trained model for servers and devices."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from typing import Any, Dict

import numpy as np
import tensorflow as tf

from si_federated import config, files
from si_federated.assembly import task_and_model
from si_federated.inference import trained_model
from si_federated.tasks.vocabulary_files import save_vocabulary
from si_federated.training import write_errors
from si_federated.weights import adapter_files

# The first two by default.
FORMATS = ('saved_model', 'tflite', 'adapters')
_TEMPORARY = '.saved_model.'
PRECISIONS = ('float32', 'float16', 'int8')


class NextToken(tf.Module):
  """The functions of an exported language model.

  Args:
    trained: The model of a run.
    top: K, the number of next tokens to suggest.
  """

  def __init__(self, trained: trained_model.TrainedModel, *, top: int) -> None:
    super().__init__()
    vocabulary = trained.vocabulary
    self.model = trained.model
    self._padding = vocabulary.padding
    self._top = top
    excluded = np.zeros([self.size], np.float32)
    excluded[vocabulary.never_suggested] = -np.inf
    self._excluded = tf.constant(excluded)

  @property
  def size(self) -> int:
    """The number of ids."""
    return self.model.output_shape[-1]

  def logits(self, ids: tf.Tensor) -> Dict[str, tf.Tensor]:
    """Returns `logits [B, T, V]` for ids `[B, T]`, padded with 0."""
    logits = tf.cast(self.model(ids, training=False), tf.float32)
    return {'logits': logits}

  def next_token(self, ids: tf.Tensor) -> Dict[str, tf.Tensor]:
    """Suggests the id after the last one of each row that is not padding.

    It never suggests padding, out-of-vocabulary or beginning.

    Args:
      ids: `[B, T]` int32, each row opened by the beginning id and padded with 0
        at its end.

    Returns:
      `ids [B, K]` int32, the most likely first, and `probabilities [B, K]`.
    """
    logits = self.logits(ids)['logits']
    valid = tf.cast(tf.not_equal(ids, self._padding), tf.int32)
    last = tf.maximum(tf.reduce_sum(valid, axis=1) - 1, 0)
    chosen = tf.gather(logits, last, axis=1, batch_dims=1)
    probabilities, best = tf.math.top_k(
      tf.nn.softmax(chosen + self._excluded), self._top
    )
    return {'ids': best, 'probabilities': probabilities}


def _concrete_functions(module: NextToken, shape: Any) -> Dict[str, Any]:
  spec = tf.TensorSpec(shape, tf.int32, name='ids')
  return {
    name: tf.function(getattr(module, name)).get_concrete_function(spec)
    for name in ('next_token', 'logits')
  }


def export_model(
  run: str,
  folder: str,
  *,
  formats: tuple[str, ...] = FORMATS[:2],
  top: int = 5,
  tflite_precision: str = 'float32',
) -> dict[str, Any]:
  """Exports the model of a run.

  Args:
    run: The run's folder.
    folder: The folder to write to; created if missing. Files of an earlier
      export are replaced, each once its successor is complete.
    formats: `saved_model`, for ids of any shape `[B, T]`; `tflite`, for ids
      `[1, T]` with T the run's sequence length; `adapters`, the adapters of a
      run that trains them, without the model. The first two merge adapters into
      the model.
    top: The number of next tokens that the signature `next_token` returns.
    tflite_precision: `float32`, or `float16` or `int8` for smaller, slightly
      less exact weights.

  Returns:
    The content of `export.json`: paths, sizes, the special ids, how to call the
    model, and its `privacy` as in `privacy.json`.

  Raises:
    config.ConfigError: If the run has no model, or an option does not exist.
  """
  for value, known, name in (
    *((f, FORMATS, 'format') for f in formats),
    (tflite_precision, PRECISIONS, 'precision'),
  ):
    if value not in known:
      raise config.ConfigError(
        f'{value!r} is not a {name} for exports; '
        f'{config.near_matches(value, known)}'
      )
  trained = trained_model.load_model(run)
  if trained.classes:
    raise config.ConfigError(
      f'{run} is a classifier, and only language models can be exported; load '
      'it by si_federated.inference.trained_model.load_model.'
    )
  vocabulary = trained.vocabulary
  if not 1 <= top <= vocabulary.size:
    raise config.ConfigError(
      f'--top must be from 1 to the {vocabulary.size} ids of the model, found '
      f'{top}.'
    )
  with files.lock_folder(folder, 'exporting to'):
    return _write(
      run, trained, folder, formats, top=top, tflite_precision=tflite_precision
    )


def _write(
  run: str,
  trained: trained_model.TrainedModel,
  folder: str,
  formats: tuple[str, ...],
  *,
  top: int,
  tflite_precision: str,
) -> dict[str, Any]:
  """Writes the files of an export; see `export_model`."""
  files.remove_leftovers(folder)
  # Cleans up after a killed export, which can have moved the model aside.
  for left in glob.glob(os.path.join(glob.escape(folder), f'{_TEMPORARY}*')):
    whole = os.path.join(folder, 'saved_model')
    if left.endswith('.old') and not os.path.exists(whole):
      os.rename(left, whole)
    shutil.rmtree(left, ignore_errors=True)
  vocabulary = trained.vocabulary
  save_vocabulary(vocabulary, folder)
  module = NextToken(trained, top=top)
  length = trained.config.sequence_length
  written: dict[str, Any] = {}
  if 'saved_model' in formats:
    path = os.path.join(folder, 'saved_model')
    _write_saved_model(module, path)
    written['saved_model'] = {'path': 'saved_model', 'bytes': _size(path)}
  if 'tflite' in formats:
    content = _tflite(module, length, tflite_precision)
    files.write_atomically(os.path.join(folder, 'model.tflite'), content)
    written['tflite'] = {
      'path': 'model.tflite',
      'bytes': len(content),
      'precision': tflite_precision,
      'input_shape': [1, length],
    }
  if 'adapters' in formats:
    path = os.path.join(folder, 'adapters.npz')
    kept = adapter_files.write(run, path, task_and_model.build_model)
    written['adapters'] = {
      'path': 'adapters.npz',
      'bytes': os.path.getsize(path),
      'weights': kept['weights'],
    }
  facts = {
    'checkpoint': os.path.abspath(trained.checkpoint),
    'model': str(trained.config.model),
    'privacy': dict(trained.privacy),
    'written': written,
    'vocabulary': vocabulary.FILE_NAME,
    'ids': {
      'padding': vocabulary.padding,
      'out_of_vocabulary': vocabulary.out_of_vocabulary,
      'beginning': vocabulary.beginning,
      'end': vocabulary.end,
      'size': vocabulary.size,
    },
    'signatures': {
      'next_token': 'ids [B, T] int32, opened by the beginning id, padded '
      f'with 0 -> ids [B, {top}], probabilities [B, {top}]',
      'logits': f'ids [B, T] int32 -> logits [B, T, {vocabulary.size}]',
    },
  }
  files.write_atomically(
    os.path.join(folder, 'export.json'), json.dumps(facts, indent=2) + '\n'
  )
  return facts


def _write_saved_model(module: NextToken, path: str) -> None:
  signatures = _concrete_functions(module, [None, None])
  parent = os.path.dirname(os.path.abspath(path))
  temporary = tempfile.mkdtemp(prefix=_TEMPORARY, dir=parent)
  try:
    with write_errors.named(path):
      tf.saved_model.save(
        module,
        temporary,
        signatures={**signatures, 'serving_default': signatures['next_token']},
      )
    os.chmod(temporary, 0o755)
    old = f'{temporary}.old'
    if os.path.exists(path):
      os.rename(path, old)
    os.rename(temporary, path)
    shutil.rmtree(old, ignore_errors=True)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _tflite(module: NextToken, length: int, precision: str) -> bytes:
  # With a fixed length the recurrence is unrolled and needs no tensor lists.
  functions = _concrete_functions(module, [1, length])
  with tempfile.TemporaryDirectory() as folder:
    with write_errors.named(folder):
      tf.saved_model.save(module, folder, signatures=functions)
    converter = tf.lite.TFLiteConverter.from_saved_model(
      folder, signature_keys=sorted(functions)
    )
    if precision != 'float32':
      converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == 'float16':
      converter.target_spec.supported_types = [tf.float16]
    return converter.convert()


def _size(folder: str) -> int:
  return sum(
    os.path.getsize(os.path.join(parent, name))
    for parent, _, names in os.walk(folder)
    for name in names
  )
