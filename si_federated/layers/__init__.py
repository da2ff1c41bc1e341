"""Keras layers and activations; they need TensorFlow only."""

# First, since it chooses the Keras that all others build on.
from si_federated.layers import legacy_keras  # noqa: F401
from si_federated.layers.activations import maxn, si_sigmoid, si_tanh
from si_federated.layers.attention import MultiHeadAttention, normalized_relu
from si_federated.layers.blending import AdaptiveBlendingUnit
from si_federated.layers.cifg import CIFG, SICIFG, CIFGCell, SICIFGCell
from si_federated.layers.conformer import ConformerBlock
from si_federated.layers.dropout_masks import Dropout, keyed_dropout
from si_federated.layers.embedding import TiedEmbedding
from si_federated.layers.feed_forward import FeedForward
from si_federated.layers.gru import GRU, SIGRU, GRUCell, SIGRUCell
from si_federated.layers.lora import LoRADense
from si_federated.layers.lstm import LSTM, SILSTM, LSTMCell, SILSTMCell
from si_federated.layers.normalization import Gain, LayerNormalization
from si_federated.layers.position import PositionEmbedding
from si_federated.layers.static_graphs import static_shapes
from si_federated.layers.transformer import TransformerBlock

__all__ = [
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
