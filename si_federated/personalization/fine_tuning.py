"""Evaluation of clients before and after fine-tuning, by TFF's computation."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from si_federated.personalization import client_hashing, learners, mixture
from si_federated.personalization import examples as examples_lib
from si_federated.tasks.seeded_orders import hashed_permutation

# Shares of a client's examples for fine-tuning and for evaluation.
FRACTIONS = (0.5, 0.5)
_EVALUATION_BATCH = 64
_FINE_TUNED = 'fine_tuned'
_BEFORE = 'baseline_metrics'


@dataclasses.dataclass(frozen=True)
class ClientResult:
  """The metrics of a client before and after fine-tuning.

  Attributes:
    client: The client's number.
    num_train: The number of examples for fine-tuning.
    num_test: The number of examples for evaluation.
    before: Metrics of the server's model.
    after: Metrics of the fine-tuned model.
  """

  client: int
  num_train: int
  num_test: int
  before: dict[str, float]
  after: dict[str, float]


def build_evaluation(
  model: tff.learning.models.FunctionalModel,
  *,
  optimizer: tff.learning.optimizers.Optimizer,
  batch_size: int,
  max_clients: int,
) -> tff.Computation:
  """Builds TFF's personalization evaluation with one strategy, fine-tuning.

  TFF gathers metrics by reservoir sampling, without the names of their clients.
  Each example therefore carries its client's number, which comes back as a
  metric.

  Args:
    model: The model.
    optimizer: The client optimizer.
    batch_size: Examples per step.
    max_clients: The maximum number of clients evaluated at once.

  Returns:
    A computation from the server's weights and each client's `train_data` and
    `test_data` (unbatched) to the weights and the metrics. Returning the
    weights gives it the form of a round, which our runtimes need.
  """
  inputs, labels = model.input_spec
  numbered = tff.learning.models.FunctionalModel(
    initial_weights=model.initial_weights,
    predict_on_batch_fn=model.predict_on_batch,
    loss_fn=model.loss,
    input_spec=(inputs, labels, tf.TensorSpec([None], tf.int64)),
  )
  predict = mixture.build_single_predict(model)
  optimizers = {'model': optimizer}

  def weights_of(variables: Any) -> tuple[Any, Any]:
    return (
      collections.OrderedDict(
        model=tuple(v.read_value() for v in variables.trainable_variables)
      ),
      {
        'frozen': tuple(
          v.read_value() for v in variables.non_trainable_variables
        )
      },
    )

  def batches(dataset: tf.data.Dataset, size: int) -> tf.data.Dataset:
    return dataset.map(lambda x, y, client: (x, y)).batch(size)

  def evaluate_on(trained: Any, fixed: Any, dataset: tf.data.Dataset) -> Any:
    metrics = learners.evaluate_on_batches(
      model, predict, trained, fixed, batches(dataset, _EVALUATION_BATCH)
    )
    number = dataset.take(1).reduce(
      tf.constant(-1, tf.int64), lambda _, element: element[2]
    )
    return collections.OrderedDict(metrics, client=number)

  @tf.function
  def before(variables, test_data):
    return evaluate_on(*weights_of(variables), test_data)

  def build_fine_tuning():
    @tf.function
    def after(variables, train_data, test_data):
      trained, fixed = weights_of(variables)
      trained, _ = learners.train_on_batches(
        model,
        predict,
        optimizers,
        trained,
        fixed,
        learners.initialize_optimizers(optimizers, learners.specs_of(trained)),
        batches(train_data, batch_size),
      )
      return evaluate_on(trained, fixed, test_data)

    return after

  evaluation = tff.learning.algorithms.build_personalization_eval_computation(
    model_fn=lambda: tff.learning.models.model_from_functional(numbered),
    personalize_fn_dict=collections.OrderedDict(
      {_FINE_TUNED: build_fine_tuning}
    ),
    baseline_evaluate_fn=before,
    max_num_clients=max_clients,
  )
  weights_type, clients_type = evaluation.type_signature.parameter

  @tff.federated_computation(weights_type, clients_type)
  def evaluate(weights, clients):
    return weights, evaluation(weights, clients)

  return evaluate


def evaluate_clients(
  evaluation: tff.Computation,
  weights: tff.learning.models.ModelWeights,
  clients: Sequence[int],
  *,
  examples: Callable[[int], np.ndarray],
  client_id: Callable[[int], str],
  element_spec: Any,
  epochs: int,
  seed: int,
  group_size: int,
) -> tuple[list[ClientResult], list[int]]:
  """Evaluates clients before and after fine-tuning.

  Args:
    evaluation: From `build_evaluation`.
    weights: The server's weights.
    clients: The clients' numbers.
    examples: Returns all examples of a client, `[n, T + 1]`.
    client_id: Returns the name of a client.
    element_spec: The specs of a batch of the model.
    epochs: The number of passes over a client's fine-tuning part.
    seed: Determines, with a client's name, its split and order of examples.
    group_size: The number of clients evaluated at once.

  Returns:
    A result for each client, in the order given, and the clients with too few
    examples to split.
  """

  def dataset(rows: np.ndarray, client: int) -> tf.data.Dataset:
    x, y = examples_lib.inputs_and_labels(rows, element_spec)
    numbers = np.full([len(rows)], client, np.int64)
    return tf.data.Dataset.from_tensor_slices((x, y, numbers))

  results: dict[int, ClientResult] = {}
  too_small: list[int] = []
  waiting: list[tuple[int, int, int, Any]] = []

  def run() -> None:
    _, output = evaluation(weights, [datum for *_, datum in waiting])
    before, after = (
      _by_client(output[part]) for part in (_BEFORE, _FINE_TUNED)
    )
    for client, num_train, num_test, _ in waiting:
      results[client] = ClientResult(
        client, num_train, num_test, before[client], after[client]
      )
    waiting.clear()

  for client in clients:
    own, name = examples(client), client_id(client)
    parts = client_hashing.split_rows(
      len(own), FRACTIONS, 'personalization', seed, name
    )
    if parts is None:
      too_small.append(client)
      continue
    train, test = (own[part] for part in parts)
    order = [
      hashed_permutation(len(train), 'personalization', epoch, seed, name)
      for epoch in range(epochs)
    ]
    datum = collections.OrderedDict(
      train_data=dataset(train[np.concatenate(order)], client),
      test_data=dataset(test, client),
    )
    waiting.append((client, len(train), len(test), datum))
    if len(waiting) == group_size:
      run()
  if waiting:
    run()
  return [results[c] for c in clients if c in results], too_small


def _by_client(metrics: Any) -> dict[int, dict[str, float]]:
  """Groups lists of all clients' values by client."""
  columns = {name: np.asarray(values) for name, values in metrics.items()}
  numbers = columns.pop('client')
  return {
    int(number): learners.with_perplexity(
      {name: float(values[i]) for name, values in columns.items()}
    )
    for i, number in enumerate(numbers)
  }
