"""BERT, ALBERT and DistilBERT as text classifiers, by KerasNLP's backbones.

KerasNLP is loaded when one of them is built, so that all else works without.
"""

from __future__ import annotations

import os
from typing import Any, Dict, Optional, Tuple

import tensorflow as tf

from si_federated.layers.checks import check_count
from si_federated.models import sizes

# Small ones, to be trained from random weights on a processor or two.
_DEFAULTS: Dict[str, int] = {
  'num_layers': 2,
  'num_heads': 2,
  'hidden_dim': 64,
  'intermediate_dim': 128,
  'max_length': 128,
}
_ALBERT_DEFAULTS: Dict[str, int] = {**_DEFAULTS, 'embedding_size': 32}


class _Inputs(tf.keras.layers.Layer):
  """Ids `[B, T]` -> what backbones take: ids, padding mask, segments."""

  def call(self, inputs):
    mask = tf.cast(tf.not_equal(inputs, 0), tf.int32)
    return inputs, mask, tf.zeros_like(inputs)


class _FirstToken(tf.keras.layers.Layer):
  def call(self, inputs):
    return inputs[:, 0, :]


def bert(
  vocab_size: int,
  num_classes: int,
  *,
  preset: Optional[str] = None,
  num_layers: Optional[int] = None,
  num_heads: Optional[int] = None,
  hidden_dim: Optional[int] = None,
  intermediate_dim: Optional[int] = None,
  max_length: int = 128,
  dropout: float = 0.1,
) -> tf.keras.Model:
  """Builds a BERT classifier (Devlin et al., arXiv 1810.04805).

  Args:
    vocab_size: V, the number of all ids; id 0 is padding.
    num_classes: C.
    preset: The name of pretrained weights of KerasNLP's (`bert_tiny_en_uncased`
      and others), which are downloaded at first use and determine all sizes;
      or a file of such weights, `.h5`, for the sizes that are given.
    num_layers: Number of blocks; 2 by default, as for a small random model.
    num_heads: Number of attention heads; 2 by default.
    hidden_dim: Size of the embeddings and of the blocks; 64 by default.
    intermediate_dim: Features inside the feed-forward parts; 128 by default.
    max_length: Number of positions, the longest sequence; that of presets is
      their own.
    dropout: Fraction of units to drop.

  Returns:
    A model from ids `[B, T]` to logits `[B, C]`, from the output at the first
    token.

  Raises:
    ValueError: If an option is out of range or contradicts the preset, or
      KerasNLP is missing.
  """
  backbone = _backbone(
    'BertBackbone',
    vocab_size,
    preset,
    {
      'num_layers': num_layers,
      'num_heads': num_heads,
      'hidden_dim': hidden_dim,
      'intermediate_dim': intermediate_dim,
      'max_length': max_length,
    },
    _DEFAULTS,
    num_classes,
    dropout,
  )
  ids, outputs = _apply(backbone, segments=True)
  return _finish(ids, outputs['pooled_output'], num_classes, dropout, 'bert')


def albert(
  vocab_size: int,
  num_classes: int,
  *,
  preset: Optional[str] = None,
  num_layers: Optional[int] = None,
  num_heads: Optional[int] = None,
  hidden_dim: Optional[int] = None,
  intermediate_dim: Optional[int] = None,
  max_length: int = 128,
  embedding_size: Optional[int] = None,
  dropout: float = 0.0,
) -> tf.keras.Model:
  """Builds an ALBERT classifier, one block repeated (arXiv 1909.11942).

  Args:
    vocab_size: See `bert`, as for all options not named here.
    num_classes: C.
    preset: `albert_base_en_uncased` and others, or a file of weights.
    num_layers: How often the block is applied.
    num_heads: Number of attention heads.
    hidden_dim: Size of the blocks.
    intermediate_dim: Features inside the feed-forward part.
    max_length: Number of positions.
    embedding_size: Size of the embeddings; 32 by default.
    dropout: Fraction of units to drop.

  Returns:
    A model from ids `[B, T]` to logits `[B, C]`.

  Raises:
    ValueError: As for `bert`.
  """
  backbone = _backbone(
    'AlbertBackbone',
    vocab_size,
    preset,
    {
      'num_layers': num_layers,
      'num_heads': num_heads,
      'hidden_dim': hidden_dim,
      'intermediate_dim': intermediate_dim,
      'max_length': max_length,
      'embedding_size': embedding_size,
    },
    _ALBERT_DEFAULTS,
    num_classes,
    dropout,
  )
  ids, outputs = _apply(backbone, segments=True)
  return _finish(ids, outputs['pooled_output'], num_classes, dropout, 'albert')


def distilbert(
  vocab_size: int,
  num_classes: int,
  *,
  preset: Optional[str] = None,
  num_layers: Optional[int] = None,
  num_heads: Optional[int] = None,
  hidden_dim: Optional[int] = None,
  intermediate_dim: Optional[int] = None,
  max_length: int = 128,
  dropout: float = 0.1,
) -> tf.keras.Model:
  """Builds a DistilBERT classifier (Sanh et al., arXiv 1910.01108).

  A dense layer with ReLU comes before the logits, as in KerasNLP's classifier.

  Args:
    vocab_size: See `bert`, as for all options.
    num_classes: C.
    preset: `distil_bert_base_en_uncased` and others, or a file of weights.
    num_layers: Number of blocks.
    num_heads: Number of attention heads.
    hidden_dim: Size of the embeddings and of the blocks.
    intermediate_dim: Features inside the feed-forward parts.
    max_length: Number of positions.
    dropout: Fraction of units to drop.

  Returns:
    A model from ids `[B, T]` to logits `[B, C]`.

  Raises:
    ValueError: As for `bert`.
  """
  backbone = _backbone(
    'DistilBertBackbone',
    vocab_size,
    preset,
    {
      'num_layers': num_layers,
      'num_heads': num_heads,
      'hidden_dim': hidden_dim,
      'intermediate_dim': intermediate_dim,
      'max_length': max_length,
    },
    _DEFAULTS,
    num_classes,
    dropout,
  )
  ids, hidden = _apply(backbone, segments=False)
  first = _FirstToken(name='first_token')(hidden)
  pooled = tf.keras.layers.Dense(
    backbone.hidden_dim,
    activation='relu',
    kernel_initializer=_initializer(),
    name='pooled_dense',
  )(first)
  return _finish(ids, pooled, num_classes, dropout, 'distilbert')


def _package() -> Any:
  os.environ.setdefault('KERAS_BACKEND', 'tensorflow')
  try:
    import keras_nlp
  except ImportError as error:
    raise ValueError(
      'BERT models need the package keras-nlp; install it by pip install '
      "'si_federated[nlp]', or choose another model."
    ) from error
  return keras_nlp


def _initializer() -> tf.keras.initializers.Initializer:
  return tf.keras.initializers.TruncatedNormal(stddev=0.02)


def _backbone(
  name: str,
  vocab_size: int,
  preset: Optional[str],
  given: Dict[str, Optional[int]],
  defaults: Dict[str, int],
  num_classes: int,
  dropout: float,
) -> Any:
  """Builds a backbone of KerasNLP's, with pretrained weights if there are."""
  check_count('num_classes', num_classes)
  sizes.check_common(vocab_size=vocab_size, num_layers=1, dropout=dropout)
  is_file = preset is not None and os.path.exists(str(preset))
  backbone_class = getattr(_package().models, name)
  if preset is not None and not is_file:
    return _preset(backbone_class, str(preset), vocab_size, given, dropout)
  chosen = sizes.resolve(None, given=given, defaults=defaults, published={})
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
  if is_file and _has_values():
    try:
      backbone.load_weights(str(preset))
    except (OSError, ValueError, KeyError) as error:
      reason = str(error).split('\n')[0].rstrip('.')
      raise ValueError(
        f'preset={preset} has no weights of such a model ({reason}); give '
        'the sizes that it was made with.'
      ) from error
  return backbone


def _preset(
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
      f'preset={preset} is for its own vocabulary of {size} ids, the task has '
      f'{vocab_size}; add --vocabulary=pretrained:preset={preset}.'
    )
  try:
    return backbone_class.from_preset(
      preset, load_weights=_has_values(), dropout=dropout
    )
  except Exception as error:
    reason = str(error).split('\n')[0].rstrip('.')
    raise ValueError(
      f'preset={preset} cannot be downloaded ({reason}); connect to the '
      'network once, or name a file of its weights and its sizes.'
    ) from error


def _has_values() -> bool:
  """Whether a model is built whose weights have values to be loaded."""
  return tf.executing_eagerly()


def _apply(backbone: Any, *, segments: bool) -> Tuple[Any, Any]:
  ids = tf.keras.layers.Input(shape=(None,), dtype=tf.int32, name='ids')
  token_ids, mask, zeros = _Inputs(name='inputs')(ids)
  features = {'token_ids': token_ids, 'padding_mask': mask}
  if segments:
    features['segment_ids'] = zeros
  return ids, backbone(features)


def _finish(
  ids: Any, pooled: Any, num_classes: int, dropout: float, name: str
) -> tf.keras.Model:
  if dropout:
    pooled = tf.keras.layers.Dropout(
      dropout, rng_type='legacy_stateful', name='classifier_dropout'
    )(pooled)
  logits = tf.keras.layers.Dense(
    num_classes, kernel_initializer=_initializer(), name='logits'
  )(pooled)
  return tf.keras.Model(inputs=ids, outputs=logits, name=name)
