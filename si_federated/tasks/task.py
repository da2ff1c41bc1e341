"""The data and objective of a language task."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, Callable, ClassVar, Mapping

import numpy as np
import tensorflow as tf

from si_federated.tasks import objective
from si_federated.tasks.populations import ClientPopulation, next_tokens
from si_federated.tasks.store_writer import SPLITS
from si_federated.tasks.token_arrays import MAX_WORDS
from si_federated.tasks.token_store import TokenStore
from si_federated.tasks.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Task:
  """Next-word prediction on the sentences of many clients.

  The constructor raises ValueError if the parts are inconsistent, so that
  errors surface before the first round.

  Attributes:
    name: The task's name in `TASKS`.
    vocabulary: The vocabulary of all three populations.
    sequence_length: T, the maximum number of words per sentence.
    train: Training clients.
    validation: Held-out clients for model selection.
    test: Held-out clients for the final evaluation.
    reference_lines: Additional reference perplexities by name: functions from
      `[N, T + 1]` examples to a perplexity.
  """

  # The arguments it passes to model builders, and its training objective.
  MODEL_ARGUMENTS: ClassVar[tuple[str, ...]] = ('vocab_size',)
  OBJECTIVE: ClassVar[str] = 'next_token'
  # Class names; only classification tasks have any.
  classes: ClassVar[tuple[str, ...]] = ()

  name: str
  vocabulary: Vocabulary
  sequence_length: int
  train: ClientPopulation
  validation: ClientPopulation
  test: ClientPopulation
  reference_lines: Mapping[str, Callable[[np.ndarray], float]] = (
    dataclasses.field(default_factory=dict)
  )

  def __post_init__(self):
    if self.sequence_length < 1:
      raise ValueError(
        f'sequence_length must be 1 or more; got {self.sequence_length}.'
      )
    for split in ('train', 'validation', 'test'):
      population = getattr(self, split)
      if not len(population):
        raise ValueError(
          f'The {split} split of task {self.name} has no clients; give it more '
          'data.'
        )
      if population.num_words != len(self.vocabulary.words):
        raise ValueError(
          f'The {split} split of task {self.name} has ids for '
          f'{population.num_words} words but the vocabulary has '
          f'{len(self.vocabulary.words)}; build both from the same list.'
        )
      if population.sequence_length != self.sequence_length:
        raise ValueError(
          f'The {split} split of task {self.name} cuts sentences to '
          f'{population.sequence_length} words, the task to '
          f'{self.sequence_length}; give both the same length.'
        )

  @property
  def element_spec(self) -> tuple[tf.TensorSpec, tf.TensorSpec]:
    """The type of a batch: `(x [b, T], y [b, T])` int32."""
    spec = tf.TensorSpec([None, self.sequence_length], tf.int32)
    return spec, spec

  @property
  def loss(self) -> tf.keras.losses.Loss:
    """Mean negative log-likelihood from logits, without padding."""
    return objective.NextWordLoss()

  @property
  def ignored_labels(self) -> dict[str, tuple[int, ...]]:
    """The labels that each accuracy ignores, by the accuracy's name."""
    return objective.ignored_labels(self.vocabulary)

  def metrics(
    self,
  ) -> collections.OrderedDict[str, Callable[[], tf.keras.metrics.Metric]]:
    """Returns metric constructors by name."""
    return objective.metric_constructors(self.vocabulary)

  @property
  def model_arguments(self) -> dict[str, int]:
    """The values of `MODEL_ARGUMENTS`."""
    return {'vocab_size': self.vocabulary.size}

  @property
  def objective_options(self) -> dict[str, Any]:
    """The label ids that the objective needs."""
    return {
      'end_of_sentence': self.vocabulary.end,
      'ignored_labels': self.ignored_labels,
    }

  @staticmethod
  def inputs_and_labels(examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Splits `[N, T + 1]` examples into ids and labels, each `[N, T]`."""
    return next_tokens(examples)

  def facts(self, examples: np.ndarray) -> dict[str, Any]:
    """Returns facts about the data as plain values.

    Args:
      examples: `[N, T + 1]` evaluation examples.
    """
    return {
      'num_words': len(self.vocabulary.words),
      'tokens_per_word': self.tokens_per_word(examples),
      # This takes a pass over the training text.
      'reference_perplexity': self.reference_perplexities(examples),
    }

  def tokens_per_word(self, examples: np.ndarray) -> float:
    """Returns labels per word, where the end of a sentence counts as a word.

    The perplexity per token to this power is the perplexity per word.

    Args:
      examples: `[N, T + 1]` ids.

    Returns:
      1 for words and for characters; 1 or more for subword pieces.

    Raises:
      ValueError: The examples contain no labels.
    """
    labels = self._labels(examples)
    return labels.size / int(self.vocabulary.begins_word[labels].sum())

  def _labels(self, examples: np.ndarray) -> np.ndarray:
    labels = np.asarray(examples)[:, 1:]
    labels = labels[labels != self.vocabulary.padding]
    if not labels.size:
      raise ValueError(
        'The examples are all padding; give sentences with words.'
      )
    return labels

  def reference_perplexities(self, examples: np.ndarray) -> dict[str, float]:
    """Returns baseline perplexities on the given examples.

    Each call takes a pass over the training sentences.

    Args:
      examples: `[N, T + 1]` ids, as from `ClientPopulation.sample_examples`.

    Returns:
      `unigram`: the perplexity under the training clients' word frequencies,
      with add-one smoothing over words, out-of-vocabulary and end. Some tasks
      add further lines.

    Raises:
      ValueError: The examples contain no labels.
    """
    examples = np.asarray(examples)
    labels = self._labels(examples)
    counts = self.train.label_counts().astype(np.float64) + 1.0
    counts[[self.vocabulary.padding, self.vocabulary.beginning]] = 0.0
    losses = np.log(counts.sum()) - np.log(counts[labels])
    lines = {'unigram': float(np.exp(losses.mean()))}
    for name, line in self.reference_lines.items():
      lines[name] = line(examples)
    return lines


def check_sizes(vocab_size: int, sequence_length: int) -> None:
  """Checks sizes before any data are built.

  Raises:
    ValueError: `vocab_size` or `sequence_length` is out of range.
  """
  if not 1 <= vocab_size <= MAX_WORDS:
    raise ValueError(
      f'vocab_size must be from 1 to {MAX_WORDS}, the number of words that a '
      f'token store ranks; got {vocab_size}.'
    )
  if sequence_length < 1:
    raise ValueError(
      f'sequence_length must be 1 or more; got {sequence_length}.'
    )


def task_from_store(
  name: str, store: TokenStore, *, vocab_size: int, sequence_length: int
) -> Task:
  """Returns a task on a store, with its `vocab_size` most frequent words.

  Args:
    name: The task's name.
    store: The words and splits.
    vocab_size: V, limited to the number of words that the store lists.
    sequence_length: T, the maximum number of words per sentence.

  Returns:
    The task.

  Raises:
    ValueError: A size is out of range or a split is empty.
  """
  check_sizes(vocab_size, sequence_length)
  vocabulary = Vocabulary(store.words[:vocab_size])
  train, validation, test = (
    ClientPopulation(
      store.splits[split], len(vocabulary.words), sequence_length
    )
    for split in SPLITS
  )
  return Task(name, vocabulary, sequence_length, train, validation, test)
