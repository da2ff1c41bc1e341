"""The Keras cell that LSTM, CIFG and GRU share."""

from __future__ import annotations

from typing import (
  Any,
  Callable,
  ClassVar,
  Dict,
  List,
  Optional,
  Sequence,
  Tuple,
)

import tensorflow as tf

from si_federated.layers import (
  activations,
  dropout_masks,
  gates,
  legacy_keras,
  recurrence,
  tracing,
)
from si_federated.layers.checks import check_count, check_slope
from si_federated.layers.configuration import constructor_arguments


class GatedCell(tf.keras.layers.LSTMCell):
  """One step of a gated recurrence, with an optional recurrent projection.

  Subclasses set `kind`, their equations. Keras's `LSTMCell` provides the
  constructor's checks, the dropout masks and the zero initial state.

  Args:
    units: H, the number of hidden units.
    projection_units: R, the size of the projection that is the output and
      enters the next step; `None` for no projection (R is H).
    projection_initializer: Initializer of `projection_kernel`.
    projection_bias_initializer: Initializer of `projection_bias`.
    projection_regularizer: Regularizer of `projection_kernel`.
    projection_constraint: Constraint on `projection_kernel`.
    dead_gate_slope: Slope of the gradient of SI-sigma gates without a positive
      pre-activation; see `si_sigmoid`.
    **kwargs: The arguments of `tf.keras.layers.LSTMCell`, with its defaults.
      One dropout mask per sequence serves all gates.

  Call arguments:
    inputs: `[B, D]`.
    states: h `[B, R]` and c `[B, H]`, or h alone if it is also the carry.
    training: Whether dropout is active.
  """

  kind: ClassVar[gates.Kind]
  # The number of groups of units in which scale-invariant activations take the
  # maximum.
  num_groups = 1

  def __init__(
    self,
    units: int,
    activation: Any = 'tanh',
    recurrent_activation: Any = 'sigmoid',
    *,
    projection_units: Optional[int] = None,
    projection_initializer: Any = 'glorot_uniform',
    projection_bias_initializer: Any = 'zeros',
    projection_regularizer: Any = None,
    projection_constraint: Any = None,
    dead_gate_slope: float = 0.0,
    **kwargs: Any,
  ) -> None:
    check_count('units', units)
    if projection_units is not None:
      check_count('projection_units', projection_units)
    check_slope('dead_gate_slope', dead_gate_slope)
    kwargs = {**legacy_keras.STATEFUL_GENERATOR, **kwargs}
    kwargs.pop('implementation', None)
    super().__init__(
      units,
      activation=activations.get(activation),
      recurrent_activation=activations.get(recurrent_activation),
      **kwargs,
    )
    self.projection_units = projection_units
    self.projection_initializer = tf.keras.initializers.get(
      projection_initializer
    )
    self.projection_bias_initializer = tf.keras.initializers.get(
      projection_bias_initializer
    )
    self.projection_regularizer = tf.keras.regularizers.get(
      projection_regularizer
    )
    self.projection_constraint = tf.keras.constraints.get(projection_constraint)
    self.dead_gate_slope = dead_gate_slope
    self.output_size = projection_units or units
    self.state_size = [self.output_size, units]
    # Keras 3 would make a mask for each gate.
    self.dropout_mask_count: Optional[int] = None

  @property
  def output_activation(self) -> Callable:
    """The activation of the carry in the output."""
    return self.activation

  @property
  def blocks(self) -> Tuple[str, ...]:
    """The names of the column blocks of the kernels."""
    return self.kind.blocks

  @property
  def bias_shape(self) -> Tuple[int, ...]:
    """The shape of the bias."""
    return (self.units * len(self.blocks),)

  def build(self, input_shape: Any) -> None:
    """Creates the weights for inputs `[B, D]`."""
    width = self.units * len(self.blocks)
    self.kernel = self.add_weight(
      shape=(tf.TensorShape(input_shape)[-1], width),
      name='kernel',
      initializer=self.kernel_initializer,
      regularizer=self.kernel_regularizer,
      constraint=self.kernel_constraint,
    )
    self.recurrent_kernel = self.add_weight(
      shape=(self.output_size, width),
      name='recurrent_kernel',
      initializer=self.recurrent_initializer,
      regularizer=self.recurrent_regularizer,
      constraint=self.recurrent_constraint,
    )
    self.bias = self.projection_kernel = self.projection_bias = None
    if self.use_bias:
      self.bias = self.add_weight(
        shape=self.bias_shape,
        name='bias',
        initializer=self._initial_bias,
        regularizer=self.bias_regularizer,
        constraint=self.bias_constraint,
      )
    if self.projection_units:
      self.projection_kernel = self.add_weight(
        shape=(self.units, self.projection_units),
        name='projection_kernel',
        initializer=self.projection_initializer,
        regularizer=self.projection_regularizer,
        constraint=self.projection_constraint,
      )
      if self.use_bias:
        self.projection_bias = self.add_weight(
          shape=(self.projection_units,),
          name='projection_bias',
          initializer=self.projection_bias_initializer,
        )
    self.built = True

  def _initial_bias(self, shape: Any, dtype: Any = None, **kwargs: Any):
    if not self.unit_forget_bias:
      return self.bias_initializer(shape, dtype=dtype, **kwargs)
    return tf.concat(
      [
        tf.ones([self.units], dtype)
        if name == 'forget'
        else self.bias_initializer((self.units,), dtype=dtype, **kwargs)
        for name in self.blocks
      ],
      axis=0,
    )

  def weight(self, name: str) -> Optional[tf.Tensor]:
    """Returns a weight as a tensor of the compute dtype, or `None`."""
    value = getattr(self, name)
    if value is None:
      return None
    return tf.cast(tf.convert_to_tensor(value), self.compute_dtype)

  def dropout_masks(
    self, inputs: tf.Tensor, h: tf.Tensor, training: Any
  ) -> List[Optional[tf.Tensor]]:
    """Returns this sequence's masks for inputs `[B, D]` and h `[B, R]`."""
    if legacy_keras.IS_KERAS_3:
      if not training:
        return [None, None]
      return [
        self.get_dropout_mask(inputs),
        self.get_recurrent_dropout_mask(h),
      ]
    return [
      self.get_dropout_mask_for_cell(inputs, training, count=1),
      self.get_recurrent_dropout_mask_for_cell(h, training, count=1),
    ]

  def sequence_masks(
    self, inputs: tf.Tensor, h: tf.Tensor, training: Any
  ) -> List[Optional[tf.Tensor]]:
    """Returns `dropout_masks`, from the key within `keyed_dropout`."""
    if training is None and tracing.is_rebuilding():
      return [None, None]
    if not dropout_masks.is_keyed(inputs, training):
      return self.dropout_masks(inputs, h, training)
    return [
      dropout_masks.mask(like, rate) if rate else None
      for like, rate in (
        (inputs, self.dropout),
        (h, self.recurrent_dropout),
      )
    ]

  def input_product(self, inputs: tf.Tensor) -> tf.Tensor:
    """Returns the pre-activations from inputs `[N, D]` alone, `[N, K*H]`."""
    x = tf.matmul(inputs, self.weight('kernel'))
    return tf.nn.bias_add(x, self.weight('bias')) if self.use_bias else x

  @property
  def _functions(self) -> List[Callable]:
    """The activations of the blocks, then that of the carry in the output."""
    return [
      self.activation if name == 'candidate' else self.recurrent_activation
      for name in self.blocks
    ] + [self.output_activation]

  def make_gates(self, dtype: str) -> recurrence.Gates:
    """Returns the gates for `recurrence.scan`, computed in the given dtype."""
    return gates.make_gates(
      self.kind, self._functions, self.dead_gate_slope, dtype, self.num_groups
    )

  def call(self, inputs: Any, states: Sequence, training: Any = None):
    """Computes one step; the class lists the arguments."""
    # A cell whose output is its carry has a single state.
    h, c = states[0], states[-1]
    input_mask, recurrent_mask = self.dropout_masks(inputs, h, training)
    if input_mask is not None:
      inputs = inputs * input_mask
    dropped = h if recurrent_mask is None else h * recurrent_mask
    z = recurrence.add_product(
      self.input_product(inputs),
      tf.matmul(dropped, self.weight('recurrent_kernel')),
    )
    functions = gates.complete(
      self._functions, self.dead_gate_slope, self.num_groups
    )
    h, c = self.kind.apply(functions, z, c)
    if self.projection_units:
      h = tf.matmul(h, self.weight('projection_kernel'))
      if self.use_bias:
        h = tf.nn.bias_add(h, self.weight('projection_bias'))
    return h, [h, c][: len(self.state_size)]

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    config = super().get_config()
    # Keras's constructor does not accept these in graph mode.
    for name in ('implementation', 'enable_caching_device'):
      config.pop(name, None)
    return {**config, **constructor_arguments(self, GatedCell)}
