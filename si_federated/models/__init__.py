"""Language models by name: builders of functional Keras models."""

from __future__ import annotations

from typing import Callable, Dict

import tensorflow as tf

from si_federated.models.language_models import cifg, lstm, si_cifg

MODELS: Dict[str, Callable[..., tf.keras.Model]] = {
  'lstm': lstm,
  'cifg': cifg,
  'si_cifg': si_cifg,
}
