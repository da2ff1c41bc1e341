"""Encodes structures of variables, and counts the bytes.

An encoded update is a bitmap with a bit per variable, in the order of
`tf.nest.flatten`, and the bytes of each variable whose bit is set. Variables
that are all zeros, such as frozen ones, are not sent: their bit is 0. Both
sides know shapes and compressor, which determine the lengths.

In a graph, where shapes are static, the encoded update has bytes for all
variables; those of variables that are not sent are zeros and don't count.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from si_federated.compression import bit_packing, compressors, keys


def check_type(specs: Sequence[tf.TensorSpec]) -> None:
  """Raises `TypeError` unless all variables are floats of known shapes."""
  for spec in specs:
    if not spec.dtype.is_floating or not spec.shape.is_fully_defined():
      raise TypeError(
        'Variables are sent as floats of known shapes; one is of type '
        f'{spec.dtype.name}, shape {spec.shape}.'
      )


def encode_update(
  update: Any, compressor: compressors.Compressor, seed: tf.Tensor
) -> collections.OrderedDict[str, Any]:
  """Encodes a structure of variables.

  Args:
    update: Float tensors of known shapes in any structure.
    compressor: Encodes those of at least `compressor.threshold` entries.
    seed: From `keys.round_seed`.

  Returns:
    `present`, the bitmap of shape `[ceil(n / 8)]`, and `variables`, a tuple of
    n vectors of bytes: all uint8.
  """
  present, variables = [], []
  for index, part in enumerate(tf.nest.flatten(update)):
    count = part.shape.num_elements()
    encode, _ = _functions(_compressor_for(compressor, count), count)
    is_present, sent = encode(
      tf.reshape(tf.cast(part, tf.float32), [count]),
      keys.variable_seed(seed, index),
    )
    present.append(tf.cast(is_present, tf.uint8))
    variables.append(sent)
  bits = tf.stack(present) if present else tf.zeros([0], tf.uint8)
  return collections.OrderedDict(
    present=bit_packing.pack(bits, 1), variables=tuple(variables)
  )


def decode_update(
  encoded: Any, compressor: compressors.Compressor, specs: Any
) -> Any:
  """Decodes a structure of variables.

  Args:
    encoded: From `encode_update` or `deserialize`.
    compressor: The one that encoded them.
    specs: The `tf.TensorSpec` of each variable, in any structure.

  Returns:
    The variables in the structure of `specs`.
  """
  present = _is_present(encoded)
  parts = []
  for index, spec in enumerate(tf.nest.flatten(specs)):
    count = spec.shape.num_elements()
    _, decode = _functions(_compressor_for(compressor, count), count)
    part = decode(encoded['variables'][index], present[index])
    parts.append(tf.cast(tf.reshape(part, spec.shape), spec.dtype))
  return tf.nest.pack_sequence_as(specs, parts)


def num_bytes(encoded: Any) -> tf.Tensor:
  """Returns the length of `serialize(encoded)`, an int64 scalar."""
  sizes = [int(part.shape[0]) for part in encoded['variables']]
  total = tf.constant(int(encoded['present'].shape[0]), tf.int64)
  if sizes:
    sent = tf.cast(_is_present(encoded), tf.int64)
    total += tf.reduce_sum(sent * tf.constant(sizes, tf.int64))
  return total


def serialize(encoded: Any) -> bytes:
  """Returns the bytes to send: the bitmap, then the variables in it.

  Args:
    encoded: From `encode_update`, with evaluated tensors.
  """
  bitmap = np.asarray(encoded['present'], np.uint8)
  present = _bits(bitmap, len(encoded['variables']))
  sent = [part for part, bit in zip(encoded['variables'], present) if bit]
  return b''.join(
    np.asarray(part, np.uint8).tobytes() for part in [bitmap, *sent]
  )


def deserialize(
  data: bytes, compressor: compressors.Compressor, specs: Any
) -> collections.OrderedDict[str, Any]:
  """Inverts `serialize`.

  Args:
    data: The bytes.
    compressor: The one that encoded them.
    specs: The `tf.TensorSpec` of each variable, in any structure.

  Returns:
    The result of `encode_update`, as arrays.

  Raises:
    ValueError: If the bytes are not an update of such variables.
  """
  flat = tf.nest.flatten(specs)
  length = bit_packing.packed_size(len(flat), 1)
  array = np.frombuffer(data, np.uint8)
  bitmap = array[:length]
  present = _bits(bitmap, len(flat))
  if len(bitmap) < length or np.unpackbits(bitmap).sum() != present.sum():
    raise ValueError(
      f'The encoded update is not one of {len(flat)} variables; decode it with '
      'the model that it was made for.'
    )
  counts = [spec.shape.num_elements() for spec in flat]
  full_sizes = [
    _compressor_for(compressor, count).encoded_size(count) for count in counts
  ]
  sizes = [size if bit else 0 for size, bit in zip(full_sizes, present)]
  expected = length + sum(sizes)
  if len(array) != expected:
    raise ValueError(
      f'The encoded update has {len(array)} bytes instead of {expected}; it is '
      'truncated, or belongs to another model or compressor.'
    )
  starts = np.cumsum([length, *sizes])
  variables = tuple(
    array[start : start + size] if size else np.zeros(full_size, np.uint8)
    for start, size, full_size in zip(starts, sizes, full_sizes)
  )
  return collections.OrderedDict(present=bitmap, variables=variables)


def _compressor_for(
  compressor: compressors.Compressor, count: int
) -> compressors.Compressor:
  return compressors.Float32() if count < compressor.threshold else compressor


def _is_present(encoded):
  return tf.cast(
    bit_packing.unpack(encoded['present'], len(encoded['variables']), 1),
    tf.bool,
  )


def _bits(bitmap: np.ndarray, count: int) -> np.ndarray:
  return np.unpackbits(bitmap, bitorder='little')[:count].astype(bool)


@functools.cache
def _functions(compressor: compressors.Compressor, count: int) -> Any:
  """Returns functions that encode and decode a variable.

  Variables of one size share these functions, since each has hundreds of
  operations, for which TFF's compiler takes long.
  """
  size = compressor.encoded_size(count)
  # Zeros are then encoded as zeros, without a condition.
  is_exact = isinstance(compressor, compressors.Float32)

  @tf.function(
    autograph=False,
    input_signature=[
      tf.TensorSpec([count]),
      tf.TensorSpec([2], tf.int64),
    ],
  )
  def encode(values, seed):
    # NaN differs from zero, too.
    is_present = tf.reduce_any(tf.not_equal(values, 0.0))
    if is_exact:
      return is_present, compressor.encode(values, seed)
    sent = _if_present(
      is_present, lambda: compressor.encode(values, seed), [size], tf.uint8
    )
    return is_present, sent

  @tf.function(
    autograph=False,
    input_signature=[
      tf.TensorSpec([size], tf.uint8),
      tf.TensorSpec([], tf.bool),
    ],
  )
  def decode(sent, is_present):
    if is_exact:
      return compressor.decode(sent, [count])
    return _if_present(
      is_present, lambda: compressor.decode(sent, [count]), [count], tf.float32
    )

  return encode, decode


def _if_present(is_present, make, shape, dtype):
  """Returns `make()`, or zeros, without calling it, for absent variables."""
  result = tf.cond(is_present, make, lambda: tf.zeros(shape, dtype))
  result.set_shape(shape)
  return result
