"""TFF values as flat lists of tensors, or of arrays for other processes.

A value is flattened in the order of its TFF type. A dataset is one tensor, its
variant.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.types import (
  computation_types,
  type_conversions,
)
from tensorflow_federated.python.core.impl.utils import tensorflow_utils

from si_federated.runtime import tensorflow_function

Tensors = list[Any]


def flatten(value: Any, type_spec: tff.Type) -> Tensors:
  """Flattens a value.

  Args:
    value: A value of the type, in any container that TFF accepts; datasets are
      `tf.data.Dataset` or lists of elements.
    type_spec: The type.

  Returns:
    The arguments of a `TensorFlowFunction`.

  Raises:
    NotImplementedError: If the type contains functions.
    TypeError: If the value is not of the type.
  """
  if isinstance(type_spec, tff.TensorType):
    if isinstance(value, tf.Variable):
      value = value.read_value()
    tensor = tf.convert_to_tensor(value, type_spec.dtype)
    if not tensor.shape.is_compatible_with(type_spec.shape):
      raise TypeError(
        f'a tensor of type {type_spec} is expected, not one of shape '
        f'{tensor.shape}.'
      )
    return [tensor]
  if isinstance(type_spec, tff.SequenceType):
    if isinstance(value, tf.data.Dataset):
      _check_elements(value.element_spec, type_spec.element)
    elif not isinstance(value, Iterable):
      raise TypeError(
        f'a dataset, or a list, of elements of type {type_spec.element} is '
        f'expected, not a value of Python type {type(value).__name__}.'
      )
    else:
      value = tensorflow_utils.make_data_set_from_elements(
        None, list(value), type_spec.element
      )
    return [tf.data.experimental.to_variant(value)]
  if isinstance(type_spec, tff.FederatedType):
    return flatten(value, type_spec.member)
  if isinstance(type_spec, tff.StructType):
    elements = tff.structure.to_elements(tff.structure.from_container(value))
    types = tff.structure.to_elements(type_spec)
    if len(elements) != len(types):
      raise TypeError(
        f'The value has {len(elements)} elements where its type {type_spec} '
        f'has {len(types)}.'
      )
    named = all(name is not None for name, _ in elements)
    by_name = dict(elements) if named else {}
    return [
      tensor
      for index, (name, element_type) in enumerate(types)
      for tensor in flatten(
        by_name[name] if named and name is not None else elements[index][1],
        element_type,
      )
    ]
  raise NotImplementedError(f'Values of type {type_spec} do not run locally.')


def _check_elements(element_spec: Any, expected: tff.Type) -> None:
  """Checks the types of a dataset's elements; unknown shapes pass.

  Otherwise TensorFlow would fail within the computation, with a message about
  its graph, or confuse two components.
  """
  found = computation_types.tensorflow_to_type(element_spec)
  if not _may_be(found, expected):
    raise TypeError(
      f'a dataset of elements of type {expected} is expected, its elements are '
      f'{found}.'
    )


def _may_be(found: tff.Type, expected: tff.Type) -> bool:
  if isinstance(expected, tff.TensorType):
    return (
      isinstance(found, tff.TensorType)
      and found.dtype == expected.dtype
      and tf.TensorShape(found.shape).is_compatible_with(expected.shape)
    )
  if not isinstance(found, tff.StructType):
    return False
  # TensorFlow orders named components by their names.
  elements, others = (
    sorted(tff.structure.to_elements(part), key=lambda item: item[0] or '')
    for part in (found, expected)
  )
  return [name for name, _ in elements] == [name for name, _ in others] and all(
    _may_be(element, other)
    for (_, element), (_, other) in zip(elements, others)
  )


def unflatten(tensors: Sequence[tf.Tensor], type_spec: tff.Type) -> Any:
  """Returns the Python value that TFF's own contexts would return.

  Args:
    tensors: The flat value.
    type_spec: Its type.

  Returns:
    The value in the containers of its type: numpy arrays and scalars, and
    datasets for sequences.
  """
  return type_conversions.type_to_py_container(
    _unflatten(collections.deque(tensors), type_spec), type_spec
  )


def _unflatten(tensors: collections.deque, type_spec: tff.Type) -> Any:
  if isinstance(type_spec, tff.TensorType):
    value = tensors.popleft().numpy()
    # TFF's own contexts return numpy scalars, and bytes for strings.
    return (
      value[()] if isinstance(value, np.ndarray) and not value.shape else value
    )
  if isinstance(type_spec, tff.SequenceType):
    return dataset_of(tensors.popleft(), type_spec)
  if isinstance(type_spec, tff.FederatedType):
    return _unflatten(tensors, type_spec.member)
  return tff.structure.Struct(
    (name, _unflatten(tensors, element))
    for name, element in tff.structure.iter_elements(type_spec)
  )


def split(tensors: Sequence[Any], type_spec: tff.StructType) -> list[Tensors]:
  """Splits the flat tensors of a struct into those of its elements."""
  rest = iter(tensors)
  return [
    [next(rest) for _ in tensorflow_function.leaf_types(element)]
    for _, element in tff.structure.iter_elements(type_spec)
  ]


def dataset_of(
  variant: tf.Tensor, type_spec: tff.SequenceType
) -> tf.data.Dataset:
  """Returns the dataset whose variant `flatten` has returned."""
  return tf.data.experimental.from_variant(
    variant, structure=type_conversions.type_to_tf_structure(type_spec.element)
  )


def component_specs(type_spec: tff.SequenceType) -> list[tf.TensorSpec]:
  """Returns the specs of the components of a dataset's elements.

  A variant has the components in TensorFlow's order, without their structure.

  Args:
    type_spec: The type of the dataset.
  """
  return tf.nest.flatten(
    type_conversions.type_to_tf_structure(type_spec.element)
  )


def cardinality(dataset: tf.data.Dataset) -> int:
  """Returns a dataset's number of elements, negative if unknown.

  Raises:
    ValueError: If it is infinite.
  """
  number = int(dataset.cardinality())
  if number == tf.data.INFINITE_CARDINALITY:
    raise ValueError(
      'an infinite dataset cannot be sent; limit it with take().'
    )
  return number


def to_arrays(value: Any, type_spec: tff.Type) -> list[Any]:
  """Reads a value into memory, to send it to another process.

  Args:
    value: See `flatten`.
    type_spec: Its type.

  Returns:
    For each tensor of the flat value an array, and for each dataset a list of
    elements, each a list of arrays.

  Raises:
    ValueError: If a dataset is infinite.
  """
  result: list[Any] = []
  leaves = tensorflow_function.leaf_types(type_spec)
  for tensor, leaf_type in zip(flatten(value, type_spec), leaves):
    if not isinstance(leaf_type, tff.SequenceType):
      result.append(tensor.numpy())
      continue
    dataset = dataset_of(tensor, leaf_type)
    cardinality(dataset)
    result.append(
      [[part.numpy() for part in tf.nest.flatten(item)] for item in dataset]
    )
  return result


def from_arrays(arrays: Sequence[Any], type_spec: tff.Type) -> Tensors:
  """Inverts `to_arrays`.

  Args:
    arrays: The result of `to_arrays`.
    type_spec: The value's type.

  Returns:
    The flat value; see `flatten`.
  """
  return [
    _to_variant(array, leaf_type)
    if isinstance(leaf_type, tff.SequenceType)
    else tf.convert_to_tensor(array, leaf_type.dtype)
    for array, leaf_type in zip(
      arrays, tensorflow_function.leaf_types(type_spec)
    )
  ]


def _to_variant(
  items: Sequence[Sequence[np.ndarray]], type_spec: tff.SequenceType
) -> tf.Tensor:
  """Makes a dataset, concatenating slices of elements with equal shapes."""
  specs = component_specs(type_spec)

  def slices(group):
    return tf.data.Dataset.from_tensor_slices(
      tuple(
        tf.convert_to_tensor(np.stack(parts), spec.dtype)
        for parts, spec in zip(zip(*group), specs)
      )
    )

  datasets = [
    slices(group)
    for _, group in itertools.groupby(
      items, key=lambda item: [np.shape(part) for part in item]
    )
  ] or [
    tf.data.Dataset.from_tensor_slices(
      tuple(
        tf.zeros([0, *(size or 0 for size in spec.shape)], spec.dtype)
        for spec in specs
      )
    )
  ]
  return tf.data.experimental.to_variant(
    functools.reduce(tf.data.Dataset.concatenate, datasets)
  )
