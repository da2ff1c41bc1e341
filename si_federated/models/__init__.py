"""Models by name: builders of functional Keras models."""

from __future__ import annotations

from typing import Callable, Dict

import tensorflow as tf

from si_federated.models.adapters import ffa_lora_model, lora_model
from si_federated.models.bert_models import albert, bert, distilbert
from si_federated.models.recurrent_models import cifg, gru, lstm
from si_federated.models.si_recurrent_models import si_cifg, si_gru, si_lstm
from si_federated.models.transformer_classifier import transformer_classifier
from si_federated.models.transformer_models import (
  conformer,
  si_conformer,
  si_transformer,
  transformer,
)
from si_federated.models.transforms import freeze, none

MODELS: Dict[str, Callable[..., tf.keras.Model]] = {
  'lstm': lstm,
  'cifg': cifg,
  'gru': gru,
  'si_cifg': si_cifg,
  'si_lstm': si_lstm,
  'si_gru': si_gru,
  'transformer': transformer,
  'si_transformer': si_transformer,
  'conformer': conformer,
  'si_conformer': si_conformer,
  'bert': bert,
  'albert': albert,
  'distilbert': distilbert,
  'transformer_classifier': transformer_classifier,
}

# Each makes of a model another one, before it is trained.
TRANSFORMS: Dict[str, Callable[..., tf.keras.Model]] = {
  'none': none,
  'freeze': freeze,
  'lora': lora_model,
  'ffa_lora': ffa_lora_model,
}
