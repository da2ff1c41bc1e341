"""The trained model of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from scipy import special

from si_federated import config
from si_federated.assembly import task_and_model
from si_federated.tasks import Vocabulary, encode_texts, load_vocabulary
from si_federated.training import run_folder as run_folder_lib
from si_federated.weights import named_variables, run_weights

# The width of the beam search for words of several pieces.
_BEAM = 16
_MAX_PIECES = 12


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """The model of a run.

  Attributes:
    config: The configuration of the run.
    vocabulary: Its words, pieces or characters.
    model: The Keras model, from ids `[B, T]` to logits `[B, T, V]`, or `[B, C]`
      of classes.
    checkpoint: The file of its weights.
    classes: The names of its classes; empty for a language model.
    privacy: The content of the run's privacy.json; empty if it has none.
  """

  config: config.ExperimentConfig
  vocabulary: Vocabulary
  model: tf.keras.Model
  checkpoint: str
  classes: tuple[str, ...] = ()
  privacy: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def next_words(
    self, ids: Sequence[int], *, top: int
  ) -> list[tuple[list[int], float]]:
    """Suggests the next word, or character for a vocabulary of characters.

    Beam search finds words of several pieces. The probability of a word is that
    of its pieces, times that of no further piece after them.

    Args:
      ids: The text so far, without special ids.
      top: The maximum number of suggestions.

    Returns:
      Ids and probability of each, the most likely first. The end of the
      sentence counts as a word.
    """
    begins = self.vocabulary.begins_word
    first = self._next_tokens([ids])[0] * begins
    first /= first.sum()
    found = [([int(i)], float(first[i])) for i in np.argsort(-first)]
    found = [item for item in found if item[1] > 0]
    if begins.all():
      return found[:top]
    end = [self.vocabulary.end]
    whole = [item for item in found if item[0] == end]
    started = [item for item in found if item[0] != end]
    beam = max(_BEAM, 2 * top)
    for _ in range(_MAX_PIECES):
      started = sorted(started, key=lambda item: -item[1])[:beam]
      whole = sorted(whole, key=lambda item: -item[1])[:top]
      if not started or (len(whole) == top and whole[-1][1] >= started[0][1]):
        break
      following = self._next_tokens([[*ids, *word] for word, _ in started])
      longer = []
      for (word, probability), row in zip(started, following):
        if self.vocabulary.text_of(word):  # A word mark alone is not a word.
          whole.append((word, probability * float(row[begins].sum())))
        continued = np.where(begins, 0.0, row)
        longer += [
          ([*word, int(i)], probability * float(continued[i]))
          for i in np.argsort(-continued)[:beam]
          if continued[i] > 0
        ]
      started = longer
    return sorted(whole, key=lambda item: -item[1])[:top]

  def class_probabilities(self, text: str) -> list[tuple[str, float]]:
    """Returns the classes of a text, the most likely first.

    Args:
      text: Any text.

    Returns:
      Name and probability of each class.
    """
    ids = encode_texts(self.vocabulary, [text], self.config.sequence_length)
    logits = self.model(ids.astype(np.int32), training=False)[0].numpy()
    likelihoods = special.softmax(logits.astype(np.float64))
    order = np.argsort(-likelihoods, kind='stable')
    return [(self.classes[i], float(likelihoods[i])) for i in order]

  def _next_tokens(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns `[n, V]` probabilities after each of n texts of one length."""
    vocabulary = self.vocabulary
    # The model was trained on sentences cut to a length, so it gets only the
    # end of a longer text.
    start = max(0, len(texts[0]) + 1 - self.config.sequence_length)
    batch = [[vocabulary.beginning, *text[start:]] for text in texts]
    logits = self.model(np.array(batch, np.int32), training=False)[:, -1]
    logits = logits.numpy().astype(np.float64)
    logits[:, vocabulary.never_suggested] = -np.inf
    return special.softmax(logits, axis=1)


def load_model(path: str) -> TrainedModel:
  """Loads the model of a run from its newest whole checkpoint.

  Args:
    path: The run's folder.

  Returns:
    The model.

  Raises:
    config.ConfigError: If the folder has no run or no whole checkpoint.
  """
  experiment = run_folder_lib.read_config(path)
  try:
    vocabulary = load_vocabulary(path)
  except ValueError as error:
    raise config.ConfigError(str(error)) from error
  labels = run_folder_lib.model_labels(path)
  files = run_folder_lib.RunFolder(path).checkpoints.newest()
  if not files:
    raise config.ConfigError(
      f'{path} has no checkpoint yet; wait for the first, or start the run.'
    )
  file, weights = run_weights.plain_weights(
    files,
    lambda: task_and_model.build_model(experiment, vocabulary.size, **labels),
  )
  plain = dataclasses.replace(
    experiment, transform=config.ComponentSpec('none')
  )
  model, variables = named_variables.build_named(
    lambda: task_and_model.build_model(plain, vocabulary.size, **labels)
  )
  named_variables.assign(variables, weights)
  classes = run_folder_lib.read_classes(path)
  privacy = run_folder_lib.read_privacy(path)
  return TrainedModel(experiment, vocabulary, model, file, classes, privacy)
