"""Models by name: builders of functional Keras models."""

from __future__ import annotations

from typing import Dict

from si_federated.models.adapters import ffa_lora_model, lora_model
from si_federated.models.bert_models import albert, bert, distilbert
from si_federated.models.inherited_options import Builder
from si_federated.models.recurrent_models import (
  cifg,
  gru,
  lstm,
  si_cifg,
  si_gru,
  si_lstm,
)
from si_federated.models.transformer_classifier import transformer_classifier
from si_federated.models.transformer_models import (
  conformer,
  si_conformer,
  si_transformer,
  transformer,
)
from si_federated.models.transforms import freeze, none

MODELS: Dict[str, Builder] = {
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

# Changes to a model before training.
TRANSFORMS: Dict[str, Builder] = {
  'none': none,
  'freeze': freeze,
  'lora': lora_model,
  'ffa_lora': ffa_lora_model,
}
