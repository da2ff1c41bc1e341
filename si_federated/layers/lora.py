"""Low-rank adaptation: learning a product of two thin matrices."""

from __future__ import annotations

import math
from typing import Any, Dict, Optional, Sequence, Tuple

import tensorflow as tf

from si_federated.layers import activations
from si_federated.layers.checks import check_count
from si_federated.layers.configuration import constructor_arguments


def matrix_shape(shape: Sequence[int]) -> Tuple[int, int]:
  """Returns rows and columns of a kernel as a matrix from inputs to outputs.

  A kernel of more than two axes, such as those of Keras's attention, is split
  into inputs and outputs where their sizes are closest.

  Args:
    shape: The kernel's shape, of two axes or more.

  Raises:
    ValueError: If there are fewer axes.
  """
  if len(shape) < 2:
    raise ValueError(
      f'Low-rank adaptation is for matrices, but a weight has the shape '
      f'{tuple(shape)}: choose kernels.'
    )
  cuts = (
    (math.prod(shape[:axis]), math.prod(shape[axis:]))
    for axis in range(1, len(shape))
  )
  return min(cuts, key=sum)


def update(
  a: tf.Tensor, b: tf.Tensor, scale: float, shape: Sequence[int]
) -> tf.Tensor:
  """Returns the update of a kernel, `scale * A B`.

  Args:
    a: A, `[in, rank]`.
    b: B, `[rank, out]`.
    scale: The factor alpha / rank.
    shape: The kernel's shape.
  """
  # Scaling B takes fewer multiplications than scaling the product.
  product = tf.matmul(a, b * scale)
  return tf.reshape(product, shape)


def adapted_dense(
  inputs: tf.Tensor,
  kernel: tf.Tensor,
  a: tf.Tensor,
  b: tf.Tensor,
  scale: float,
  bias: Optional[tf.Tensor] = None,
) -> tf.Tensor:
  """Returns x W + scale * (x A) B + bias; no gradient has the size of W.

  Args:
    inputs: x, `[..., in]`.
    kernel: W, `[in, out]`.
    a: A, `[in, rank]`.
    b: B, `[rank, out]`.
    scale: The factor alpha / rank.
    bias: `[out]`.

  Returns:
    `[..., out]`.
  """
  # A product of matrices is much faster than a batched one.
  flat = tf.reshape(inputs, [-1, inputs.shape[-1]])
  outputs = tf.matmul(flat, kernel)
  outputs += tf.matmul(tf.matmul(flat, a) * scale, b)
  if bias is not None:
    outputs = tf.nn.bias_add(outputs, bias)
  shape = tf.concat([tf.shape(inputs)[:-1], tf.shape(outputs)[-1:]], axis=0)
  outputs = tf.reshape(outputs, shape)
  return tf.ensure_shape(outputs, [*inputs.shape[:-1], kernel.shape[-1]])


@tf.keras.utils.register_keras_serializable(activations.PACKAGE)
class LoRADense(tf.keras.layers.Layer):
  """A dense layer that trains only a low-rank addition to its kernel.

  y = activation(x (W + alpha / rank * A B) + bias), where W and the bias are
  frozen. LoRA (Hu et al., arXiv 2106.09685) trains A and B; FFA-LoRA (Sun et
  al., arXiv 2403.12313) trains B alone, so that averages over clients, and
  noise, stay linear. The papers write y = W x and BA instead of A B.

  B is initially zero: the layer then equals `tf.keras.layers.Dense` with the
  same kernel and bias.

  Args:
    units: Features of the output.
    rank: Columns of A, and rows of B.
    alpha: The factor of the addition, times the rank; the rank if `None`.
    train_a: Whether A is trained; not in FFA-LoRA.
    activation: Activation of the output.
    use_bias: Whether there is a bias.
    kernel_initializer: Initializer of W.
    bias_initializer: Initializer of the bias.
    a_initializer: Initializer of A.
    **kwargs: The arguments of `tf.keras.layers.Layer`.

  Call arguments:
    inputs: `[..., D]`.
  """

  is_position_wise = True

  def __init__(
    self,
    units: int,
    rank: int = 8,
    alpha: Optional[float] = None,
    *,
    train_a: bool = True,
    activation: Any = None,
    use_bias: bool = True,
    kernel_initializer: Any = 'glorot_uniform',
    bias_initializer: Any = 'zeros',
    a_initializer: Any = 'lecun_normal',
    **kwargs: Any,
  ) -> None:
    super().__init__(**kwargs)
    check_count('units', units)
    check_count('rank', rank)
    self.units = units
    self.rank = rank
    self.alpha = float(rank if alpha is None else alpha)
    self.train_a = train_a
    self.activation = activations.get(activation)
    self.use_bias = use_bias
    self.kernel_initializer = tf.keras.initializers.get(kernel_initializer)
    self.bias_initializer = tf.keras.initializers.get(bias_initializer)
    self.a_initializer = tf.keras.initializers.get(a_initializer)
    self.supports_masking = True

  def build(self, input_shape: Any) -> None:
    """Creates the weights for inputs `[..., D]`."""
    size = tf.TensorShape(input_shape)[-1]
    self.kernel = self.add_weight(
      name='kernel',
      shape=(size, self.units),
      initializer=self.kernel_initializer,
      trainable=False,
    )
    self.bias = None
    if self.use_bias:
      self.bias = self.add_weight(
        name='bias',
        shape=(self.units,),
        initializer=self.bias_initializer,
        trainable=False,
      )
    self.lora_a = self.add_weight(
      name='lora_a',
      shape=(size, self.rank),
      initializer=self.a_initializer,
      trainable=self.train_a,
    )
    self.lora_b = self.add_weight(
      name='lora_b', shape=(self.rank, self.units), initializer='zeros'
    )
    super().build(input_shape)

  def call(self, inputs: tf.Tensor) -> tf.Tensor:
    """Computes the layer."""
    inputs = tf.cast(inputs, self.compute_dtype)
    outputs = adapted_dense(
      inputs,
      self.kernel,
      self.lora_a,
      self.lora_b,
      self.alpha / self.rank,
      self.bias,
    )
    return self.activation(outputs)

  def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
    """Returns `[..., units]`."""
    return tf.TensorShape(input_shape)[:-1].concatenate(self.units)

  def get_config(self) -> Dict[str, Any]:
    """Returns the constructor's arguments."""
    return {**super().get_config(), **constructor_arguments(self, LoRADense)}
