"""BERT, ALBERT and DistilBERT text classifiers on KerasNLP's backbones.

KerasNLP is imported only when one of them is built.
"""

from __future__ import annotations

import os
from typing import Any, Callable, Dict, Optional

import tensorflow as tf

from si_federated.layers.checks import check_count
from si_federated.models import sizes
from si_federated.models.inherited_options import inherit_options

# Small enough to train from random weights on a CPU.
_DEFAULTS: Dict[str, int] = {
  'num_layers': 2,
  'num_heads': 2,
  'hidden_dim': 64,
  'intermediate_dim': 128,
  'max_length': 128,
  'embedding_size': 32,
}


class _Inputs(tf.keras.layers.Layer):
  """Ids `[B, T]` -> a backbone's inputs: ids, padding mask, segments."""

  def call(self, inputs):
    mask = tf.cast(tf.not_equal(inputs, 0), tf.int32)
    return inputs, mask, tf.zeros_like(inputs)


class _FirstToken(tf.keras.layers.Layer):
  def call(self, inputs):
    return inputs[:, 0, :]


def _classifier(
  backbone_name: str,
  name: str,
  vocab_size: int,
  num_classes: int,
  pool: Callable[[Any, Any], Any],
  has_segments: bool = True,
  *,
  preset: Optional[str] = None,
  num_layers: Optional[int] = None,
  num_heads: Optional[int] = None,
  hidden_dim: Optional[int] = None,
  intermediate_dim: Optional[int] = None,
  max_length: int = 128,
  dropout: float = 0.1,
  **further_sizes: Optional[int],
) -> tf.keras.Model:
  """Builds a classifier; `pool` maps a backbone and its outputs to `[B, D]`."""
  check_count('num_classes', num_classes)
  sizes.check_common(vocab_size=vocab_size, num_layers=1, dropout=dropout)
  given = {
    'num_layers': num_layers,
    'num_heads': num_heads,
    'hidden_dim': hidden_dim,
    'intermediate_dim': intermediate_dim,
    'max_length': max_length,
    **further_sizes,
  }
  backbone_class = getattr(_keras_nlp().models, backbone_name)
  if preset is None or os.path.exists(str(preset)):
    backbone = _from_sizes(backbone_class, preset, vocab_size, given, dropout)
  else:
    backbone = _from_preset(
      backbone_class, str(preset), vocab_size, given, dropout
    )
  ids = tf.keras.layers.Input(shape=(None,), dtype=tf.int32, name='ids')
  token_ids, mask, segments = _Inputs(name='inputs')(ids)
  features = {'token_ids': token_ids, 'padding_mask': mask}
  if has_segments:
    features['segment_ids'] = segments
  pooled = pool(backbone, backbone(features))
  if dropout:
    pooled = tf.keras.layers.Dropout(
      dropout, rng_type='legacy_stateful', name='classifier_dropout'
    )(pooled)
  logits = tf.keras.layers.Dense(
    num_classes, kernel_initializer=_initializer(), name='logits'
  )(pooled)
  return tf.keras.Model(inputs=ids, outputs=logits, name=name)


@inherit_options(_classifier)
def bert(vocab_size: int, num_classes: int, **options: Any) -> tf.keras.Model:
  """Builds a BERT classifier (Devlin et al., arXiv 1810.04805).

  Args:
    vocab_size: V, the number of all ids; id 0 is padding.
    num_classes: C.
    preset: The name of pretrained weights of KerasNLP (`bert_tiny_en_uncased`
      and others), which are downloaded at first use and determine all sizes;
      or an `.h5` file of weights of a model of the given sizes.
    num_layers: Number of blocks; 2 by default, for a small random model.
    num_heads: Number of attention heads; 2 by default.
    hidden_dim: Size of the embeddings and of the blocks; 64 by default.
    intermediate_dim: Features inside the feed-forward parts; 128 by default.
    max_length: Number of positions, the longest sequence; presets have their
      own.
    dropout: Fraction of units to drop.
    **options: The options above.

  Returns:
    A model from ids `[B, T]` to logits `[B, C]`, from the output at the first
    token.

  Raises:
    ValueError: If an option is out of range or contradicts the preset, or
      KerasNLP is missing.
  """
  return _classifier(
    'BertBackbone', 'bert', vocab_size, num_classes, _pooled_output, **options
  )


@inherit_options(_classifier, dropout=0.0)
def albert(
  vocab_size: int,
  num_classes: int,
  *,
  embedding_size: Optional[int] = None,
  **options: Any,
) -> tf.keras.Model:
  """Builds an ALBERT classifier, which repeats one block (arXiv 1909.11942).

  Args:
    vocab_size: See `bert`, also for all options not listed here.
    num_classes: C.
    preset: `albert_base_en_uncased` and others, or a file of weights.
    num_layers: How often the block is applied.
    embedding_size: Size of the embeddings; 32 by default.
    **options: Further options.

  Returns:
    A model from ids `[B, T]` to logits `[B, C]`.

  Raises:
    ValueError: As for `bert`.
  """
  return _classifier(
    'AlbertBackbone',
    'albert',
    vocab_size,
    num_classes,
    _pooled_output,
    embedding_size=embedding_size,
    **options,
  )


@inherit_options(_classifier)
def distilbert(
  vocab_size: int, num_classes: int, **options: Any
) -> tf.keras.Model:
  """Builds a DistilBERT classifier (Sanh et al., arXiv 1910.01108).

  A dense layer with ReLU precedes the logits, as in KerasNLP's classifier.

  Args:
    vocab_size: See `bert`, also for all options not listed here.
    num_classes: C.
    preset: `distil_bert_base_en_uncased` and others, or a file of weights.
    **options: Further options.

  Returns:
    A model from ids `[B, T]` to logits `[B, C]`.

  Raises:
    ValueError: As for `bert`.
  """

  def pool(backbone: Any, hidden: Any) -> Any:
    dense = tf.keras.layers.Dense(
      backbone.hidden_dim,
      activation='relu',
      kernel_initializer=_initializer(),
      name='pooled_dense',
    )
    return dense(_FirstToken(name='first_token')(hidden))

  return _classifier(
    'DistilBertBackbone',
    'distilbert',
    vocab_size,
    num_classes,
    pool,
    has_segments=False,
    **options,
  )


def _pooled_output(backbone: Any, outputs: Any) -> Any:
  del backbone
  return outputs['pooled_output']


def _keras_nlp() -> Any:
  os.environ.setdefault('KERAS_BACKEND', 'tensorflow')
  try:
    import keras_nlp
  except ImportError as error:
    raise ValueError(
      'BERT models need the package keras-nlp: install it by pip install '
      "'si_federated[nlp]', or choose another model."
    ) from error
  return keras_nlp


def _initializer() -> tf.keras.initializers.Initializer:
  return tf.keras.initializers.TruncatedNormal(stddev=0.02)


def _from_sizes(
  backbone_class: Any,
  weights_file: Optional[str],
  vocab_size: int,
  given: Dict[str, Optional[int]],
  dropout: float,
) -> Any:
  chosen = sizes.resolve(None, given=given, defaults=_DEFAULTS, published={})
  if chosen['hidden_dim'] % chosen['num_heads']:
    raise ValueError(
      f'hidden_dim ({chosen["hidden_dim"]}) must be a multiple of num_heads '
      f'({chosen["num_heads"]}).'
    )
  if 'embedding_size' in chosen:
    chosen['embedding_dim'] = chosen.pop('embedding_size')
  backbone = backbone_class(
    vocabulary_size=vocab_size,
    max_sequence_length=chosen.pop('max_length'),
    dropout=dropout,
    **chosen,
  )
  if weights_file is not None and _has_values():
    try:
      backbone.load_weights(str(weights_file))
    except (OSError, ValueError, KeyError) as error:
      raise ValueError(
        f'preset={weights_file} has no weights for a model of these sizes '
        f'({_first_line(error)}); give the sizes that it was made with.'
      ) from error
  return backbone


def _from_preset(
  backbone_class: Any,
  preset: str,
  vocab_size: int,
  given: Dict[str, Optional[int]],
  dropout: float,
) -> Any:
  known = backbone_class.presets
  if preset not in known:
    raise ValueError(
      f'preset={preset} is neither a file nor one of {", ".join(known)}.'
    )
  for name, value in given.items():
    if value is not None and name != 'max_length':
      raise ValueError(
        f'preset={preset} determines {name}; leave that option out.'
      )
  size = known[preset]['config']['vocabulary_size']
  if size != vocab_size:
    raise ValueError(
      f'preset={preset} is for its own vocabulary of {size} ids, but the task '
      f'has {vocab_size}; add --vocabulary=pretrained:preset={preset}.'
    )
  try:
    return backbone_class.from_preset(
      preset, load_weights=_has_values(), dropout=dropout
    )
  except Exception as error:
    raise ValueError(
      f'preset={preset} cannot be downloaded ({_first_line(error)}); connect '
      'to the network once, or name a file of its weights and its sizes.'
    ) from error


def _first_line(error: Exception) -> str:
  return str(error).split('\n')[0].rstrip('.')


def _has_values() -> bool:
  """Whether models that are built now have weights with values to replace."""
  return tf.executing_eagerly()
