"""The Keras layer that LSTM, CIFG and GRU share."""

from __future__ import annotations

import inspect
from typing import Any, Callable, ClassVar, Dict, List, Optional

import tensorflow as tf

from si_federated.layers import legacy_keras, recurrence, tracing
from si_federated.layers.gated_cell import GatedCell


class GatedRNN(tf.keras.layers.RNN):
  """A gated recurrent layer over a sequence, computed by `recurrence.scan`.

  Subclasses set `cell_class`. Equal to `tf.keras.layers.RNN(cell)`, but faster,
  and its weights may be plain tensors.

  Args:
    units: H, the number of hidden units.
    return_sequences: Whether to return the output of all steps.
    return_state: Whether to return the state after the last step as well.
    go_backwards: Whether to process the sequence from its end; the outputs are
      then in reversed order.
    stateful: Whether the state after a batch starts the next batch.
    time_major: Whether inputs and outputs are `[T, B, ...]`.
    unroll: Whether to unroll the loop over time; `None` unrolls short sequences
      of known length.
    **kwargs: The cell's arguments, and those of `tf.keras.layers.Layer`.

  Call arguments:
    inputs: `[B, T, D]`.
    mask: `[B, T]` booleans; where false, the state stays as it is and the
      output repeats the previous one.
    training: Whether dropout is active.
    initial_state: The cell's state before the first step.
  """

  cell_class: ClassVar[Callable[..., GatedCell]]

  def __init__(
    self,
    units: int,
    *args: Any,
    return_sequences: bool = False,
    return_state: bool = False,
    go_backwards: bool = False,
    stateful: bool = False,
    time_major: bool = False,
    unroll: Optional[bool] = None,
    **kwargs: Any,
  ) -> None:
    known = _argument_names(self.cell_class)
    cell_options = {k: kwargs.pop(k) for k in list(kwargs) if k in known}
    kwargs.pop('implementation', None)
    cell = self.cell_class(
      units,
      *args,
      dtype=kwargs.get('dtype'),
      trainable=kwargs.get('trainable', True),
      **cell_options,
    )
    if legacy_keras.IS_KERAS_3:
      if time_major:
        raise ValueError(
          'Keras 3 has no time_major: transpose inputs and outputs, or use '
          'Keras 2.'
        )
    else:
      kwargs['time_major'] = time_major
    super().__init__(
      cell,
      return_sequences=return_sequences,
      return_state=return_state,
      go_backwards=go_backwards,
      stateful=stateful,
      unroll=unroll,
      **kwargs,
    )
    self.time_major = time_major
    self.input_spec = [tf.keras.layers.InputSpec(ndim=3)]

  def compute_output_shape(self, input_shape: Any) -> Any:
    """Returns the shapes of the outputs for inputs `[B, T, D]`."""
    # Keras 3 looks for the arguments of `call` in its own names for these.
    return super().compute_output_shape(input_shape)

  @property
  def units(self) -> int:
    """The number of hidden units."""
    return self.cell.units

  @property
  def projection_units(self) -> Optional[int]:
    """The size of the recurrent projection, or `None`."""
    return self.cell.projection_units

  def build(self, input_shape: Any) -> None:
    """Builds the cell for inputs `[B, T, D]`."""
    if not isinstance(input_shape[0], (list, tuple, tf.TensorShape)):
      # `.keras` files store it as a list, which Keras reads as several shapes.
      input_shape = tf.TensorShape(input_shape)
    super().build(input_shape)

  def call(
    self,
    inputs: Any,
    mask: Any = None,
    training: Any = None,
    initial_state: Any = None,
  ):
    """Runs the layer; the class lists the arguments."""
    if isinstance(inputs, tf.RaggedTensor):
      if legacy_keras.IS_KERAS_3:
        raise ValueError(
          'Keras 3 takes no ragged sequences: pad them, and give a mask.'
        )
      return super().call(inputs, mask, training, initial_state)
    building = tracing.is_building_in_graph(inputs)
    has_state = (
      self.stateful or initial_state is not None or isinstance(inputs, list)
    )
    if has_state:
      inputs, initial_state = self._initial(inputs, initial_state)
    if mask is not None:
      mask = tf.cast(tf.nest.flatten(mask)[0], tf.bool)
      mask = mask if mask.shape.rank == 2 else tf.squeeze(mask, -1)
    if not self.time_major:
      inputs = tf.transpose(inputs, [1, 0, 2])
      mask = None if mask is None else tf.transpose(mask)
    if self.go_backwards:
      inputs = tf.reverse(inputs, [0])
      mask = None if mask is None else tf.reverse(mask, [0])

    if building:
      shape = [*tf.unstack(tf.shape(inputs)[:2]), self.cell.output_size]
      outputs = tf.zeros(shape, inputs.dtype)
      state = [outputs[0], tf.zeros([shape[1], self.units], inputs.dtype)]
    else:
      outputs, state = self._scan(inputs, mask, training, initial_state)
    state = state[: len(self.cell.state_size)]

    if self.stateful:
      for variable, value in zip(self.states, state):
        variable.assign(tf.cast(value, variable.dtype))
    if mask is not None and (has_state or self.zero_output_for_mask):
      # As in Keras, outputs before the first valid step are zero.
      shown = mask
      if not self.zero_output_for_mask:
        shown = tf.cumsum(tf.cast(mask, tf.int32)) > 0
      outputs = tf.where(shown[..., tf.newaxis], outputs, 0)
    if not self.return_sequences:
      output = outputs[-1]
    else:
      output = outputs if self.time_major else tf.transpose(outputs, [1, 0, 2])
    return [output, *state] if self.return_state else output

  def _initial(self, inputs, initial_state):
    """Returns the inputs and the state before the first step."""
    if not legacy_keras.IS_KERAS_3:
      return self._process_inputs(inputs, initial_state, None)[:2]
    if initial_state is None:
      initial_state = self.states
    dtype = self.cell.compute_dtype
    return inputs, [
      tf.cast(tf.convert_to_tensor(state), dtype)
      for state in tf.nest.flatten(initial_state)
    ]

  # The loops are TensorFlow's own; converting them by AutoGraph took a fifth of
  # a run's start-up time.
  @tf.autograph.experimental.do_not_convert
  def _scan(self, inputs, mask, training, initial_state):
    cell = self.cell
    cell.reset_dropout_mask()
    cell.reset_recurrent_dropout_mask()
    batch = tf.shape(inputs)[1]
    steps, features = inputs.shape[0], inputs.shape[2]
    input_mask, recurrent_mask = cell.sequence_masks(
      tf.zeros([batch, features], inputs.dtype),
      tf.zeros([batch, cell.output_size], inputs.dtype),
      training,
    )
    if legacy_keras.IS_KERAS_3:
      # It keeps masks whichever graph they belong to.
      cell.reset_dropout_mask()
      cell.reset_recurrent_dropout_mask()
    if input_mask is not None:
      inputs *= input_mask
    x = cell.input_product(tf.reshape(inputs, [-1, features]))
    x = tf.reshape(x, [tf.shape(inputs)[0], batch, x.shape[-1]])
    x.set_shape([steps, inputs.shape[1], None])
    projection = None
    if cell.projection_units:
      bias = cell.weight('projection_bias')
      if bias is None:
        bias = tf.zeros([cell.projection_units], x.dtype)
      projection = (cell.weight('projection_kernel'), bias)
    first = None
    if initial_state is not None:
      first = (initial_state[0], initial_state[-1])
    outputs, last_c = recurrence.scan(
      x,
      cell.weight('recurrent_kernel'),
      cell.make_gates(x.dtype.name),
      units=cell.units,
      initial_state=first,
      projection=projection,
      mask=mask,
      recurrent_dropout_mask=recurrent_mask,
      unroll=self.unroll,
    )
    return outputs, [outputs[-1], last_c]

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    config = super().get_config()
    del config['cell']
    cell = self.cell.get_config()
    for name in ('name', 'trainable', 'dtype'):
      del cell[name]
    regularizer = tf.keras.regularizers.serialize(self.activity_regularizer)
    return {**config, **cell, 'activity_regularizer': regularizer}

  @classmethod
  def from_config(cls, config: Dict[str, Any], custom_objects: Any = None):
    """Makes a layer from `get_config()`."""
    del custom_objects
    return cls(**config)


def _argument_names(cell_class: Any) -> List[str]:
  """Returns the names of the cell's own constructor arguments."""
  names: List[str] = []
  for owner in cell_class.__mro__[
    : cell_class.__mro__.index(tf.keras.layers.LSTMCell) + 1
  ]:
    if '__init__' in vars(owner):
      names += inspect.signature(owner.__init__).parameters
  # In TensorFlow 1 graphs, Keras swaps the bases of its classes, which can put
  # the arguments of a bare layer among these.
  others = ('self', 'kwargs', 'units', 'name', 'trainable', 'dtype', 'dynamic')
  return [n for n in names if n not in others]
