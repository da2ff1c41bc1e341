"""Losses, and the metrics of next-word prediction without padding."""

from __future__ import annotations

import collections
import functools
from typing import Callable, Sequence

import tensorflow as tf

from si_federated.tasks.vocabulary import Vocabulary


@tf.custom_gradient
def cross_entropy(
  logits: tf.Tensor, labels: tf.Tensor
) -> tuple[tf.Tensor, Callable]:
  """Returns the softmax cross-entropy of each label, from logits.

  Equals `tf.nn.sparse_softmax_cross_entropy_with_logits`, but consists of plain
  operations, which are faster on a CPU and keep only one array of the logits'
  size for the gradient. It has first derivatives only.

  Args:
    logits: `[..., V]` float32.
    labels: `[...]` integers below V.
  """
  shape = tf.shape(logits)
  # Broadcasting along the last axis is faster with two axes than with three.
  logits = tf.reshape(logits, [-1, shape[-1]])
  labels = tf.reshape(labels, [-1])
  maxima = tf.reduce_max(logits, axis=-1, keepdims=True)
  exponentials = tf.exp(logits - maxima)
  sums = tf.reduce_sum(exponentials, axis=-1, keepdims=True)
  chosen = tf.gather(logits, labels[:, tf.newaxis], batch_dims=1)
  losses = tf.math.log(sums) + maxima - chosen

  def gradient(upstream):
    upstream = tf.reshape(upstream, [-1, 1])
    rows = tf.range(tf.shape(labels)[0], dtype=labels.dtype)
    result = tf.tensor_scatter_nd_sub(
      exponentials * (upstream / sums),
      tf.stack([rows, labels], axis=-1),
      upstream[:, 0],
    )
    return tf.reshape(result, shape), None

  return tf.reshape(losses, shape[:-1]), gradient


class NextWordLoss(tf.keras.losses.Loss):
  """Mean negative log-likelihood of the labels that are not padding (0).

  Only the labels determine what is padding, even if the logits carry a Keras
  mask. Sample weights make it a weighted mean. A batch of padding gives 0.
  """

  def __init__(self, name: str = 'next_word_loss'):
    super().__init__(reduction=tf.keras.losses.Reduction.NONE, name=name)

  def call(self, y_true, y_pred):
    """Returns the loss of each label, 0 for padding.

    Args:
      y_true: `[..., T]` integer labels.
      y_pred: `[..., T, V]` logits.

    Returns:
      `[..., T]` float32.
    """
    losses = cross_entropy(tf.cast(y_pred, tf.float32), y_true)
    return tf.where(tf.equal(y_true, 0), tf.zeros_like(losses), losses)

  @tf.autograph.experimental.do_not_convert
  def __call__(self, y_true, y_pred, sample_weight=None):
    """Returns the scalar mean; see the class.

    Keras's own reduction would use the mask of the logits as weights and divide
    by the number of all positions, padding included.
    """
    y_true = tf.convert_to_tensor(y_true)
    losses = self.call(y_true, tf.convert_to_tensor(y_pred))
    weights = tf.cast(tf.not_equal(y_true, 0), losses.dtype)
    if sample_weight is not None:
      sample_weight = tf.cast(sample_weight, losses.dtype)
      missing = weights.shape.rank - sample_weight.shape.rank
      for _ in range(missing):  # An example's weight applies to all its labels.
        sample_weight = sample_weight[..., tf.newaxis]
      weights *= sample_weight
    return tf.math.divide_no_nan(
      tf.reduce_sum(losses * weights), tf.reduce_sum(weights)
    )


class ClassLoss(tf.keras.losses.Loss):
  """Mean cross-entropy of the classes of a batch, from logits."""

  def __init__(self, name: str = 'class_loss'):
    super().__init__(reduction=tf.keras.losses.Reduction.NONE, name=name)

  def call(self, y_true, y_pred):
    """Returns the loss of each example.

    Args:
      y_true: `[B]` classes.
      y_pred: `[B, C]` logits.

    Returns:
      `[B]` float32.
    """
    return cross_entropy(tf.cast(y_pred, tf.float32), y_true)

  @tf.autograph.experimental.do_not_convert
  def __call__(self, y_true, y_pred, sample_weight=None):
    """Returns the scalar mean, weighted if weights are given."""
    losses = self.call(y_true, tf.convert_to_tensor(y_pred))
    weights = tf.ones_like(losses)
    if sample_weight is not None:
      weights *= tf.cast(sample_weight, losses.dtype)
    return tf.math.divide_no_nan(
      tf.reduce_sum(losses * weights), tf.reduce_sum(weights)
    )


class TokenCount(tf.keras.metrics.Metric):
  """Number of labels that are not padding."""

  def __init__(self, name: str = 'num_tokens', dtype=tf.int64):
    super().__init__(name=name, dtype=dtype)
    self._count = self.add_weight(
      name='count', initializer='zeros', dtype=tf.int64
    )

  def update_state(self, y_true, y_pred, sample_weight=None):
    """Adds the labels of a batch."""
    del y_pred, sample_weight
    is_label = tf.not_equal(y_true, 0)
    self._count.assign_add(tf.math.count_nonzero(is_label, dtype=tf.int64))

  def result(self):
    """Returns the count."""
    return self._count.read_value()


class MaskedAccuracy(tf.keras.metrics.Metric):
  """Fraction of labels that have the largest logit; some labels are ignored."""

  def __init__(
    self, ignored: Sequence[int] = (0,), name: str = 'accuracy', dtype=None
  ):
    super().__init__(name=name, dtype=dtype)
    self._ignored = tuple(int(label) for label in ignored)
    self._correct = self.add_weight(name='correct', initializer='zeros')
    self._count = self.add_weight(name='count', initializer='zeros')

  def update_state(self, y_true, y_pred, sample_weight=None):
    """Adds a batch; weights are not supported by functional TFF metrics."""
    del sample_weight
    y_true = tf.convert_to_tensor(y_true)
    counted = tf.ones_like(y_true, tf.bool)
    for label in self._ignored:
      counted = tf.logical_and(counted, tf.not_equal(y_true, label))
    guess = tf.argmax(y_pred, axis=-1, output_type=y_true.dtype)
    correct = tf.logical_and(counted, tf.equal(guess, y_true))
    self._correct.assign_add(tf.math.count_nonzero(correct, dtype=tf.float32))
    self._count.assign_add(tf.math.count_nonzero(counted, dtype=tf.float32))

  def result(self):
    """Returns the fraction; 0 if there was no label."""
    return tf.math.divide_no_nan(
      self._correct.read_value(), self._count.read_value()
    )

  def get_config(self):
    """Returns the constructor's arguments."""
    return {**super().get_config(), 'ignored': self._ignored}


def ignored_labels(vocabulary: Vocabulary) -> dict[str, tuple[int, ...]]:
  """Returns the three usual accuracies and the labels that each leaves out."""
  padding, unknown = vocabulary.padding, vocabulary.out_of_vocabulary
  return {
    'accuracy': (padding,),
    'accuracy_no_oov': (padding, unknown),
    'accuracy_no_oov_no_eos': (padding, unknown, vocabulary.end),
  }


def metric_constructors(
  vocabulary: Vocabulary,
) -> collections.OrderedDict[str, Callable[[], tf.keras.metrics.Metric]]:
  """Returns the metrics for `functional_model_from_keras`."""
  metrics: collections.OrderedDict[str, Callable[[], tf.keras.metrics.Metric]]
  metrics = collections.OrderedDict(
    (name, functools.partial(MaskedAccuracy, labels, name=name))
    for name, labels in ignored_labels(vocabulary).items()
  )
  metrics['num_tokens'] = TokenCount
  return metrics
