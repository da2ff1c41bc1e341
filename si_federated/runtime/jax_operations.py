"""TensorFlow operations that tf2jax lacks or that a client's work needs."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from tf2jax._src import ops


@dataclasses.dataclass(frozen=True)
class Batches:
  """One sequence of a client's datum.

  Attributes:
    components: The components of its elements, `[S, ...]` each.
    count: How many of the S elements the client has; the others are padding.
  """

  components: tuple[Any, ...]
  count: Any


_datum = contextvars.ContextVar[Sequence[Batches]]('datum')


@contextlib.contextmanager
def datum(sequences: Sequence[Batches]) -> Iterator[None]:
  """Provides the data of dataset operations while they are traced."""
  token = _datum.set(sequences)
  try:
    yield
  finally:
    _datum.reset(token)


class _CountedRows:
  """The indices that `tf.where(condition)` returns; only their number is used.

  In XLA, no array's size depends on data, but TFF counts a client's examples by
  the rows of a tensor.
  """

  def __init__(self, condition: Any):
    self.shape = (
      jnp.sum(jnp.asarray(condition), dtype=jnp.int32),
      np.ndim(condition),
    )


class _Iterator:
  """An iterator over one of the client's sequences.

  Attributes:
    sequence: The sequence's number.
    element: In a loop's body, the current element.
  """

  sequence: int
  element: _Element


@dataclasses.dataclass(frozen=True)
class _Element:
  """TensorFlow's optional value of an iterator's next element."""

  exists: Any
  components: tuple[Any, ...]


def _make_iterator(dataset: Any, iterator: Any) -> Any:
  _plain(iterator).sequence = int(dataset)
  return ops._EMPTY_RETURN_VALUE


def _plain(value: Any) -> Any:
  """Returns an object from the array in which tf2jax wraps an argument."""
  is_array = isinstance(value, np.ndarray) and value.dtype == np.object_
  return value.item() if is_array else value


def _loop(step: Callable[..., Any], state: Any, batches: Batches) -> Any:
  """Folds `step(state, exists, components)` over a sequence."""
  length = batches.components[0].shape[0]
  if not length:
    return state

  # The first step is separate: all clients share its weights, so XLA multiplies
  # all their inputs by one matrix.
  state = step(
    state, batches.count > 0, tuple(part[0] for part in batches.components)
  )
  if length == 1:
    return state

  def body(state, scanned):
    index, *components = scanned
    return step(state, index < batches.count, tuple(components)), None

  rest = (part[1:] for part in batches.components)
  return jax.lax.scan(body, state, (jnp.arange(1, length), *rest))[0]


class _ReduceDataset(ops._HigherOrderFunction):
  """A reduction over one of the client's sequences."""

  def __init__(self, function: str, num_states: int):
    super().__init__({'function': function})
    self._num_states = num_states

  def __call__(
    self, dataset: Any, *operands: Any, function: Any, rng: Any = None
  ) -> tuple[Any, ...]:
    number = self._num_states
    state, captured = operands[:number], operands[number:]
    options = {} if rng is None else {'rng': rng}

    def step(state, exists, components):
      new = function(*state, *components, *captured, **options)
      return tuple(
        jnp.where(exists, after, before) for after, before in zip(new, state)
      )

    return _loop(step, state, _datum.get()[int(dataset)])


class _While(ops._StatelessWhile):
  """A loop; over an iterator, it runs one step for each element."""

  def __call__(
    self, *operands: Any, cond_fun: Any, body_fun: Any, rng: Any = None
  ) -> Any:
    iterators = [v for v in map(_plain, operands) if isinstance(v, _Iterator)]
    if not iterators:
      return super().__call__(
        *operands, cond_fun=cond_fun, body_fun=body_fun, rng=rng
      )
    (iterator,) = iterators
    varying = [i for i, same in enumerate(body_fun.output_is_input) if not same]
    options = {} if rng is None else {'rng': rng}

    def step(state, exists, components):
      iterator.element = _Element(exists, components)
      arguments = list(operands)
      for index, value in zip(varying, state):
        arguments[index] = value
      results = body_fun(*arguments, **options)
      return tuple(
        jnp.asarray(results[index], jnp.asarray(value).dtype)
        for index, value in zip(varying, state)
      )

    state = _loop(
      step,
      tuple(jnp.asarray(operands[index]) for index in varying),
      _datum.get()[iterator.sequence],
    )
    results = list(operands)
    for index, value in zip(varying, state):
      results[index] = value
    return results


class _If(ops._HigherOrderFunction):
  """A conditional whose operands may be objects."""

  def __call__(
    self, condition: Any, *operands: Any, then_fun: Any, else_fun: Any
  ) -> Any:
    results = jax.lax.cond(
      condition,
      lambda: tuple(map(jnp.asarray, then_fun(*operands))),
      lambda: tuple(map(jnp.asarray, else_fun(*operands))),
    )
    return results


def _shape(proto: Any) -> Any:
  dtype = tf.as_dtype(proto.attr['out_type'].type).as_numpy_dtype

  def shape(x):
    x = _plain(x)
    if isinstance(x, _CountedRows):
      return jnp.stack([x.shape[0], jnp.int32(x.shape[1])])
    return np.array(np.shape(x), dtype)

  return shape


def _broadcast_gradient_args(one: Any, other: Any) -> Any:
  one, other = np.asarray(one).tolist(), np.asarray(other).tolist()
  rank = max(len(one), len(other))
  one, other = (
    [1] * (rank - len(one)) + one,
    [1] * (rank - len(other)) + other,
  )
  return tuple(
    np.array(
      [axis for axis in range(rank) if mine[axis] == 1 and theirs[axis] != 1],
      np.int32,
    )
    for mine, theirs in ((one, other), (other, one))
  )


def _concat_offset(axis: Any, *shapes: Any) -> list[np.ndarray]:
  offsets = []
  start = 0
  for shape in shapes:
    offset = np.zeros(len(shape), np.int32)
    offset[int(axis)] = start
    offsets.append(offset)
    start += int(shape[int(axis)])
  return offsets


def _unsorted_segment_sum(data: Any, segments: Any, number: Any) -> Any:
  rank = np.ndim(segments)
  data = jnp.asarray(data)
  return jax.ops.segment_sum(
    data.reshape([-1, *data.shape[rank:]]),
    jnp.ravel(segments),
    num_segments=int(number),
  )


# Operations whose attributes don't matter. Some replace those of tf2jax, where
# `Where` has no static shape, `UnsortedSegmentSum` takes only rank 1, and
# `Shape` and `InvertPermutation` are traced instead of computed.
_PLAIN: dict[str, Callable[..., Any]] = {
  'AnonymousIteratorV3': _Iterator,
  'BiasAddGrad': lambda g: jnp.sum(g, tuple(range(np.ndim(g) - 1))),
  'BroadcastGradientArgs': _broadcast_gradient_args,
  'IdentityN': lambda *xs: xs,  # gradients are in the graph already
  'IteratorGetNextAsOptional': lambda iterator: _plain(iterator).element,
  'MakeIterator': _make_iterator,
  'OptionalGetValue': lambda element: _plain(element).components,
  'OptionalHasValue': lambda element: _plain(element).exists,
  'ConcatOffset': _concat_offset,
  'InvertPermutation': lambda x: np.argsort(np.asarray(x)).astype(np.int32),
  'RangeDataset': lambda start, stop, step: np.asarray(start),
  'ReluGrad': lambda g, x: jnp.where(x > 0, g, 0),
  'RsqrtGrad': lambda y, g: -0.5 * g * y**3,
  'ShapeN': lambda *xs: [np.array(np.shape(x), np.int32) for x in xs],
  'SigmoidGrad': lambda y, g: g * y * (1 - y),
  'SqrtGrad': lambda y, g: 0.5 * g / y,
  'TanhGrad': lambda y, g: g * (1 - y * y),
  'TensorScatterSub': lambda x, indices, updates: (
    jnp.asarray(x)
    .at[tuple(jnp.moveaxis(jnp.asarray(indices), -1, 0))]
    .add(-updates)
  ),
  'TensorScatterAdd': lambda x, indices, updates: (
    jnp.asarray(x)
    .at[tuple(jnp.moveaxis(jnp.asarray(indices), -1, 0))]
    .add(updates)
  ),
  'UnsortedSegmentSum': _unsorted_segment_sum,
  'Where': _CountedRows,
}


def _reduce_dataset(proto: Any) -> _ReduceDataset:
  return _ReduceDataset(
    proto.attr['f'].func.name, len(proto.attr['Tstate'].list.type)
  )


def _strided_slice_grad(proto: Any) -> Any:
  forward = ops.get_parser('StridedSlice')(proto)

  def gradient(shape, begin, end, strides, upstream):
    zeros = jnp.zeros(tuple(np.asarray(shape)), upstream.dtype)
    return jax.vjp(lambda x: forward(x, begin, end, strides), zeros)[1](
      upstream
    )[0]

  return gradient


def _depthwise_input_grad(proto: Any) -> Any:
  forward = ops.get_parser('DepthwiseConv2dNative')(proto)

  def gradient(sizes, kernel, upstream):
    zeros = jnp.zeros(tuple(np.asarray(sizes)), upstream.dtype)
    return jax.vjp(lambda x: forward(x, kernel), zeros)[1](upstream)[0]

  return gradient


def _depthwise_kernel_grad(proto: Any) -> Any:
  forward = ops.get_parser('DepthwiseConv2dNative')(proto)

  def gradient(inputs, sizes, upstream):
    zeros = jnp.zeros(tuple(np.asarray(sizes)), upstream.dtype)
    return jax.vjp(lambda kernel: forward(inputs, kernel), zeros)[1](upstream)[
      0
    ]

  return gradient


def _while(proto: Any) -> _While:
  return _While(
    {
      'cond_fun': proto.attr['cond'].func.name,
      'body_fun': proto.attr['body'].func.name,
    }
  )


def _if(proto: Any) -> _If:
  return _If(
    {
      'then_fun': proto.attr['then_branch'].func.name,
      'else_fun': proto.attr['else_branch'].func.name,
    }
  )


def _register() -> None:
  parsers: dict[str, Any] = {
    name: lambda proto, function=function: function
    for name, function in _PLAIN.items()
  }
  parsers.update(
    DepthwiseConv2dNativeBackpropFilter=_depthwise_kernel_grad,
    DepthwiseConv2dNativeBackpropInput=_depthwise_input_grad,
    ReduceDataset=_reduce_dataset,
    Shape=_shape,
    StridedSliceGrad=_strided_slice_grad,
  )
  parsers.update(dict.fromkeys(('While', 'StatelessWhile'), _while))
  parsers.update(dict.fromkeys(('If', 'StatelessIf'), _if))
  for name, parser in parsers.items():
    ops._jax_ops.pop(name, None)
    ops.register_operation(name)(parser)


_register()
