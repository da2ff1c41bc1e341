"""Keras layers and activations; TensorFlow is all they need."""

from si_federated.layers.activations import maxn, si_sigmoid, si_tanh
from si_federated.layers.cifg import CIFG, SICIFG, CIFGCell, SICIFGCell
from si_federated.layers.embedding import TiedEmbedding
from si_federated.layers.lstm import LSTM, LSTMCell

__all__ = [
  'CIFG',
  'CIFGCell',
  'LSTM',
  'LSTMCell',
  'SICIFG',
  'SICIFGCell',
  'TiedEmbedding',
  'maxn',
  'si_sigmoid',
  'si_tanh',
]
