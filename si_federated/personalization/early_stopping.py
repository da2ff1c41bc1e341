"""Training on one client, stopped early by its validation part."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from si_federated.personalization import examples as examples_lib
from si_federated.personalization import learners
from si_federated.tasks.seeded_orders import hashed_permutation


class EarlyStopping:
  """Decides from validation losses when to stop.

  As in the code of arXiv 2010.02056: training ends after `patience` consecutive
  validations whose loss is not lower by more than `min_drop` than the last loss
  that made progress.
  """

  def __init__(self, *, patience: int, min_drop: float):
    """Initializes before the first validation.

    Args:
      patience: The number of validations without progress.
      min_drop: A loss makes progress if it drops by more than this.
    """
    self._patience = patience
    self._min_drop = min_drop
    self._reference = math.inf
    self._lowest = math.inf
    self._without_progress = 0

  def update(self, loss: float) -> bool:
    """Records the loss of a validation.

    Args:
      loss: The loss.

    Returns:
      Whether it is the lowest so far, even by less than `min_drop`.
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
    """Whether training should end."""
    return self._without_progress >= self._patience

  @property
  def lowest(self) -> float:
    """The lowest loss so far."""
    return self._lowest


@dataclasses.dataclass(frozen=True)
class Fitted:
  """The result of a training.

  Attributes:
    trained: The weights with the lowest validation loss.
    epochs: The number of epochs trained.
    best_epoch: The epoch after which the weights were taken; 0 is the start.
    validation_loss: The validation loss of the weights.
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

  The initial weights are validated as well, so that the result is never worse
  on the validation part. The paper does not say which weights its authors keep;
  here they are those with the lowest loss.

  Args:
    learner: Trains and evaluates.
    trained: The initial weights.
    fixed: The other weights.
    train: The training examples, `[N, T + 1]`.
    validation: The validation examples, `[M, T + 1]`.
    element_spec: The specs of a batch.
    batch_size: Examples per step.
    max_epochs: The maximum number of epochs.
    epochs_per_validation: The number of epochs between validations.
    patience: See `EarlyStopping`.
    min_drop: See `EarlyStopping`.
    words: The values that determine the order of the examples.

  Returns:
    The best weights and their epoch.
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
