"""Numbers and names that must not change unnoticed."""

from __future__ import annotations

from typing import Any, Dict, NamedTuple

import pytest
import tensorflow as tf

import si_federated.layers
import si_federated.models


class Count(NamedTuple):
  """The parameters of a model.

  Attributes:
    model: Name of the model.
    vocab_size: Number of all ids.
    options: Its options.
    exact: Number of its parameters.
    published: The number that a paper gives, rounded, in millions.
  """

  model: str
  vocab_size: int
  options: Dict[str, Any]
  exact: int
  published: float = 0.0


# arXiv 2204.09715 has 4,000 subwords; we add padding and three special ids.
SUBWORDS = 4_004
WORDS = 10_004
SMALL, LARGE = {'size': 'small'}, {'size': 'large'}
COUNTS = {
  # The "LSTM" of arXiv 2204.09715 is a CIFG with a recurrent projection.
  'cifg_small': Count('cifg', SUBWORDS, SMALL, 4_701_440, 4.7),
  'cifg_large': Count('cifg', SUBWORDS, LARGE, 18_787_328, 18.8),
  'si_cifg_small': Count('si_cifg', SUBWORDS, SMALL, 4_701_440, 4.7),
  'si_cifg_large': Count('si_cifg', SUBWORDS, LARGE, 18_787_328, 18.8),
  # Four blocks, or three with a second bias, in place of CIFG's three.
  'lstm_small': Count('lstm', SUBWORDS, SMALL, 5_752_064),
  'lstm_large': Count('lstm', SUBWORDS, LARGE, 22_983_680),
  'si_lstm_small': Count('si_lstm', SUBWORDS, SMALL, 5_752_064),
  'gru_small': Count('gru', SUBWORDS, SMALL, 4_707_584),
  'si_gru_small': Count('si_gru', SUBWORDS, SMALL, 4_707_584),
  'transformer_small': Count('transformer', SUBWORDS, SMALL, 4_070_912, 4.1),
  'transformer_large': Count('transformer', SUBWORDS, LARGE, 20_965_376, 21.0),
  # Without the biases and gains that would break homogeneity.
  'si_transformer_small': Count(
    'si_transformer', SUBWORDS, SMALL, 4_066_176, 4.1
  ),
  'si_transformer_large': Count(
    'si_transformer', SUBWORDS, LARGE, 20_946_432, 21.0
  ),
  'conformer_small': Count('conformer', SUBWORDS, SMALL, 4_071_424, 4.1),
  'conformer_large': Count('conformer', SUBWORDS, LARGE, 20_233_216, 20.2),
  'si_conformer_small': Count('si_conformer', SUBWORDS, SMALL, 4_064_000, 4.1),
  'si_conformer_large': Count(
    'si_conformer', SUBWORDS, LARGE, 20_210_688, 20.2
  ),
  # The Stack Overflow baseline of TensorFlow Federated.
  'tff_baseline': Count(
    'lstm', WORDS, {'tied_embeddings': False}, 4_050_748, 4.05
  ),
  # The sizes of Gboard's language model of 2018: 670 units projected to 96.
  'cifg': Count('cifg', WORDS, {'projection_units': 96}, 1_412_730, 1.4),
  'si_cifg': Count('si_cifg', WORDS, {'projection_units': 96}, 1_412_730, 1.4),
  'cifg_untied': Count('cifg', WORDS, {'tied_embeddings': False}, 3_536_858),
  'cifg_dense': Count('cifg', WORDS, {}, 2_566_470),
}
LAYERS = [
  'AdaptiveBlendingUnit',
  'CIFG',
  'CIFGCell',
  'ConformerBlock',
  'Dropout',
  'FeedForward',
  'GRU',
  'GRUCell',
  'Gain',
  'LSTM',
  'LSTMCell',
  'LayerNormalization',
  'LoRADense',
  'MultiHeadAttention',
  'PositionEmbedding',
  'SICIFG',
  'SICIFGCell',
  'SIGRU',
  'SIGRUCell',
  'SILSTM',
  'SILSTMCell',
  'TiedEmbedding',
  'TransformerBlock',
  'keyed_dropout',
  'maxn',
  'normalized_relu',
  'si_sigmoid',
  'si_tanh',
  'static_shapes',
]
MODELS = [
  'albert',
  'bert',
  'cifg',
  'conformer',
  'distilbert',
  'gru',
  'lstm',
  'si_cifg',
  'si_conformer',
  'si_gru',
  'si_lstm',
  'si_transformer',
  'transformer',
  'transformer_classifier',
]


@pytest.mark.parametrize('name', list(COUNTS))
def test_parameter_counts(name):
  model, vocab_size, options, exact, published = COUNTS[name]
  # In a graph no weights are drawn, which would take the longest.
  with tf.Graph().as_default():
    built = si_federated.models.MODELS[model](vocab_size, **options)
  assert built.count_params() == exact
  if published:
    assert exact == pytest.approx(published * 1e6, rel=0.01)


@pytest.mark.parametrize(
  ('name', 'exact'),
  [('bert', 144_202), ('albert', 76_618), ('distilbert', 144_074)],
)
def test_parameter_counts_of_bert_models(name, exact):
  pytest.importorskip('keras_nlp')
  built = si_federated.models.MODELS[name](1000, 10)
  assert built.count_params() == exact


def test_public_layers():
  assert sorted(si_federated.layers.__all__) == sorted(LAYERS)
  for name in LAYERS:
    documentation = getattr(si_federated.layers, name).__doc__
    assert documentation and documentation.strip()


def test_models_by_name():
  assert sorted(si_federated.models.MODELS) == sorted(MODELS)
