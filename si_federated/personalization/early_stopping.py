"""Training on one client until its validation part says to stop."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from si_federated.personalization import examples as examples_lib
from si_federated.personalization import learners
from si_federated.tasks.population_subset import hashed_permutation


class EarlyStopping:
  """Watches a validation loss.

  As in arXiv 2010.02056's code: training ends after `patience` validations in
  a row without a loss that is lower by more than `min_drop` than the lowest
  before that counted.
  """

  def __init__(self, *, patience: int, min_drop: float):
    """Initializes before the first validation.

    Args:
      patience: How many validations without progress end it.
      min_drop: How much lower a loss must be to be progress.
    """
    self._patience = patience
    self._min_drop = min_drop
    self._reference = math.inf
    self._lowest = math.inf
    self._without_progress = 0

  def update(self, loss: float) -> bool:
    """Takes a validation's loss.

    Args:
      loss: The loss.

    Returns:
      Whether it is the lowest so far, be it by less than `min_drop`.
    """
    if loss < self._reference - self._min_drop:
      self._reference = loss
      self._without_progress = 0
    else:
      self._without_progress += 1
    is_lowest = loss < self._lowest
    if is_lowest:
      self._lowest = loss
    return is_lowest

  @property
  def should_stop(self) -> bool:
    """Whether training is to end."""
    return self._without_progress >= self._patience

  @property
  def lowest(self) -> float:
    """The lowest loss so far."""
    return self._lowest


@dataclasses.dataclass(frozen=True)
class Fitted:
  """What a training has found.

  Attributes:
    trained: The weights with the lowest validation loss.
    epochs: How many epochs were trained.
    best_epoch: After which of them the weights are from; 0 is the start.
    validation_loss: Their loss.
  """

  trained: Any
  epochs: int
  best_epoch: int
  validation_loss: float


def fit(
  learner: learners.Learner,
  trained: Any,
  fixed: Any,
  *,
  train: np.ndarray,
  validation: np.ndarray,
  element_spec: Any,
  batch_size: int,
  max_epochs: int,
  epochs_per_validation: int,
  patience: int,
  min_drop: float,
  words: tuple[object, ...],
) -> Fitted:
  """Trains until the validation loss no longer drops.

  The weights where training starts are validated, too, so that what comes back
  is never worse on the validation part. Which weights the paper's authors keep
  could not be found; here it is those of the lowest loss.

  Args:
    learner: Makes the steps.
    trained: The weights to start from.
    fixed: What is not trained.
    train: The client's examples to learn from, `[N, T + 1]`.
    validation: Those to stop by.
    element_spec: The specs of a batch.
    batch_size: Examples a step.
    max_epochs: The most epochs.
    epochs_per_validation: Epochs from one validation to the next.
    patience: See `EarlyStopping`.
    min_drop: See `EarlyStopping`.
    words: What the order of the examples depends on.

  Returns:
    The best weights and when they were found.
  """
  held = examples_lib.batches(validation, element_spec, batch_size)

  def validate(weights: Any) -> float:
    return learner.evaluate(weights, fixed, held)['loss']

  stopping = EarlyStopping(patience=patience, min_drop=min_drop)
  best, best_epoch, epoch = trained, 0, 0
  stopping.update(validate(trained))
  states = learner.initial_states()
  while epoch < max_epochs and not stopping.should_stop:
    epochs = range(epoch, min(epoch + epochs_per_validation, max_epochs))
    order = np.concatenate(
      [hashed_permutation(len(train), 'epoch', e, *words) for e in epochs]
    )
    trained, states = learner.train(
      trained,
      fixed,
      states,
      examples_lib.batches(train[order], element_spec, batch_size),
    )
    epoch = epochs.stop
    if stopping.update(validate(trained)):
      best, best_epoch = trained, epoch
  return Fitted(best, epoch, best_epoch, stopping.lowest)
