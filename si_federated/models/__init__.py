"""Language models by name: builders of functional Keras models."""

from __future__ import annotations

from typing import Callable, Dict

import tensorflow as tf

from si_federated.models.recurrent_models import cifg, gru, lstm
from si_federated.models.si_recurrent_models import si_cifg, si_gru, si_lstm
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
}

# Each makes of a model another one, before it is trained.
TRANSFORMS: Dict[str, Callable[..., tf.keras.Model]] = {
  'none': none,
  'freeze': freeze,
}
