"""Federated learning algorithms as TFF learning processes."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow_federated as tff

from si_federated.algorithms.deferred_weights import (
  StartedProcess,
  leave_out_values,
)
from si_federated.algorithms.expert_personalization import (
  build_expert_personalization,
)
from si_federated.algorithms.fed_avg import build_fed_avg
from si_federated.algorithms.fed_prox import build_fed_prox
from si_federated.algorithms.fed_sgd import build_fed_sgd
from si_federated.algorithms.functional_classifier import (
  build_functional_classifier,
)
from si_federated.algorithms.functional_model import (
  NamedModel,
  build_functional_model,
  weights_type,
)
from si_federated.algorithms.learning_rates import LEARNING_RATE_SCHEDULES
from si_federated.algorithms.mime_lite import build_mime_lite
from si_federated.algorithms.optimizers import OPTIMIZERS
from si_federated.algorithms.partial_training import build_partial_training
from si_federated.algorithms.traits import Traits
from si_federated.algorithms.wrapped_optimizer import for_variables

ALGORITHMS: dict[str, Callable[..., tff.learning.templates.LearningProcess]] = {
  'expert_personalization': build_expert_personalization,
  'fed_avg': build_fed_avg,
  'fed_prox': build_fed_prox,
  'fed_sgd': build_fed_sgd,
  'mime_lite': build_mime_lite,
  'partial_training': build_partial_training,
}

# Algorithms that are not listed have the default traits.
ALGORITHM_TRAITS: dict[str, Traits] = {
  'expert_personalization': Traits(trains_experts=True),
  'fed_sgd': Traits(makes_client_steps=False),
  'mime_lite': Traits(releases_per_round=2),
  'partial_training': Traits(sends_parts=True),
}

# Objective -> builder of TFF's functional model of a Keras model.
OBJECTIVES: dict[str, Callable[..., NamedModel]] = {
  'next_token': build_functional_model,
  'class': build_functional_classifier,
}

__all__ = [
  'ALGORITHMS',
  'ALGORITHM_TRAITS',
  'LEARNING_RATE_SCHEDULES',
  'OBJECTIVES',
  'OPTIMIZERS',
  'NamedModel',
  'StartedProcess',
  'Traits',
  'build_expert_personalization',
  'build_fed_avg',
  'build_fed_prox',
  'build_fed_sgd',
  'build_functional_classifier',
  'build_functional_model',
  'build_mime_lite',
  'build_partial_training',
  'for_variables',
  'leave_out_values',
  'weights_type',
]
