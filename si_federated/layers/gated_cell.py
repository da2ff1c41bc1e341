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

from si_federated.layers import activations, recurrence
from si_federated.layers import gates as gates_lib
from si_federated.layers.checks import check_count


class GatedCell(tf.keras.layers.LSTMCell):
  """One step of a gated recurrence, with an optional recurrent projection.

  Subclasses set `kind` or override what uses it. Keras's `LSTMCell` gives the
  constructor's checks, the dropout masks and the zero initial state; weights
  and equations are our own.

  Args:
    units: H, the number of hidden units.
    projection_units: R, the size of the projection that is the output and
      enters the next step; `None` for no projection (R is H).
    projection_initializer: Initializer of `projection_kernel`.
    projection_bias_initializer: Initializer of `projection_bias`.
    projection_regularizer: Regularizer of `projection_kernel`.
    projection_constraint: Constraint on `projection_kernel`.
    dead_gate_slope: Slope of the gradient of SI-sigma gates without a single
      positive pre-activation; see `si_sigmoid`.
    **kwargs: The arguments of `tf.keras.layers.LSTMCell`, with its defaults.
      One dropout mask a sequence serves all gates.

  Call arguments:
    inputs: `[B, D]`.
    states: h `[B, R]` and c `[B, H]`, or h alone if that is the carry too.
    training: Whether dropout is active.
  """

  kind: ClassVar[gates_lib.Kind]

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
    for name, value in (
      ('units', units),
      ('projection_units', projection_units),
    ):
      if value is not None:
        check_count(name, value)
    if dead_gate_slope < 0:
      raise ValueError(
        f'dead_gate_slope must not be negative, but it is {dead_gate_slope}: '
        'give 0 or a small positive slope.'
      )
    # Keras's other generators keep a variable, which a model whose weights are
    # plain tensors can't have.
    kwargs.setdefault('rng_type', 'legacy_stateful')
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
    """Returns a weight as a tensor of the compute type, or `None`."""
    value = getattr(self, name)
    if value is None:
      return None
    return tf.cast(tf.convert_to_tensor(value), self.compute_dtype)

  def dropout_masks(
    self, inputs: tf.Tensor, h: tf.Tensor, training: Any
  ) -> List[Optional[tf.Tensor]]:
    """Returns this sequence's masks for inputs `[B, D]` and h `[B, R]`."""
    return [
      self.get_dropout_mask_for_cell(inputs, training, count=1),
      self.get_recurrent_dropout_mask_for_cell(h, training, count=1),
    ]

  def input_product(self, inputs: tf.Tensor) -> tf.Tensor:
    """Returns what inputs `[N, D]` add to the pre-activations, `[N, K*H]`."""
    x = tf.matmul(inputs, self.weight('kernel'))
    return tf.nn.bias_add(x, self.weight('bias')) if self.use_bias else x

  def apply_gates(
    self, z: tf.Tensor, c: tf.Tensor
  ) -> Tuple[tf.Tensor, tf.Tensor]:
    """Returns output and carry, differentiable as it stands."""
    gate = gates_lib.with_dead_slope(
      self.recurrent_activation, self.dead_gate_slope
    )
    functions = [
      self.activation if name == 'candidate' else gate for name in self.blocks
    ]
    return gates_lib.apply_gates(
      self.kind, functions, self.output_activation, z, c
    )

  def make_gates(self, dtype: str) -> recurrence.Gates:
    """Returns the same for `recurrence.scan`, computed in the type given."""
    return gates_lib.make_gates(
      self.kind,
      activation=self.activation,
      recurrent_activation=self.recurrent_activation,
      output_activation=self.output_activation,
      dead_slope=self.dead_gate_slope,
      dtype=dtype,
    )

  def call(self, inputs: Any, states: Sequence, training: Any = None):
    """Computes one step; see the class for the arguments."""
    # A cell whose carry is its output has the one state.
    h, c = states[0], states[-1]
    input_mask, recurrent_mask = self.dropout_masks(inputs, h, training)
    if input_mask is not None:
      inputs = inputs * input_mask
    dropped = h if recurrent_mask is None else h * recurrent_mask
    z = recurrence.add_product(
      self.input_product(inputs),
      tf.matmul(dropped, self.weight('recurrent_kernel')),
    )
    h, c = self.apply_gates(z, c)
    if self.projection_units:
      h = tf.matmul(h, self.weight('projection_kernel'))
      if self.use_bias:
        h = tf.nn.bias_add(h, self.weight('projection_bias'))
    return h, [h, c][: len(self.state_size)]

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    config = super().get_config()
    # Keras's own concerns, which the constructor doesn't take in graph mode.
    for name in ('implementation', 'enable_caching_device'):
      config.pop(name, None)
    config.update(
      activation=activations.serialize(self.activation),
      recurrent_activation=activations.serialize(self.recurrent_activation),
      projection_units=self.projection_units,
      projection_initializer=tf.keras.initializers.serialize(
        self.projection_initializer
      ),
      projection_bias_initializer=tf.keras.initializers.serialize(
        self.projection_bias_initializer
      ),
      projection_regularizer=tf.keras.regularizers.serialize(
        self.projection_regularizer
      ),
      projection_constraint=tf.keras.constraints.serialize(
        self.projection_constraint
      ),
      dead_gate_slope=self.dead_gate_slope,
    )
    return config
