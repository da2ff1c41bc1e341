"""The record that a language task hands to training and evaluation."""

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

  Checked when made, so that what does not fit shows before the first round.

  Attributes:
    name: The task's name in `TASKS`.
    vocabulary: The words and ids of all three populations.
    sequence_length: T, the number of words to which sentences are cut.
    train: Clients to train on.
    validation: Other clients, to choose by.
    test: Other clients, for the last number.
    reference_lines: Further reference perplexities, `[N, T + 1]` examples ->
      perplexity, by name.
  """

  # What it tells the builder of a model, and how the model is to be trained.
  MODEL_ARGUMENTS: ClassVar[tuple[str, ...]] = ('vocab_size',)
  OBJECTIVE: ClassVar[str] = 'next_token'
  # Names of what it tells apart: nothing.
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
    """Mean negative log-likelihood of labels, from logits, without padding."""
    return objective.NextWordLoss()

  @property
  def ignored_labels(self) -> dict[str, tuple[int, ...]]:
    """Accuracies by name, with the labels that each leaves out."""
    return objective.ignored_labels(self.vocabulary)

  def metrics(
    self,
  ) -> collections.OrderedDict[str, Callable[[], tf.keras.metrics.Metric]]:
    """Returns constructors of the metrics, by name."""
    return objective.metric_constructors(self.vocabulary)

  @property
  def model_arguments(self) -> dict[str, int]:
    """The values of `MODEL_ARGUMENTS`."""
    return {'vocab_size': self.vocabulary.size}

  @property
  def objective_options(self) -> dict[str, Any]:
    """What the objective needs to know of the labels."""
    return {
      'end_of_sentence': self.vocabulary.end,
      'ignored_labels': self.ignored_labels,
    }

  @staticmethod
  def inputs_and_labels(examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and labels, `[N, T]` each, of `[N, T + 1]` examples."""
    return next_tokens(examples)

  def facts(self, examples: np.ndarray) -> dict[str, Any]:
    """Returns what there is to know of the data, as plain values.

    Args:
      examples: What is evaluated on, `[N, T + 1]`.
    """
    return {
      'num_words': len(self.vocabulary.words),
      'tokens_per_word': self.tokens_per_word(examples),
      # These take a pass over the training text.
      'reference_perplexity': self.reference_perplexities(examples),
    }

  def tokens_per_word(self, examples: np.ndarray) -> float:
    """Returns labels for each word, counting the end of a sentence as a word.

    The perplexity of tokens to this power is the perplexity of words.

    Args:
      examples: `[N, T + 1]` ids.

    Returns:
      1 unless tokens are pieces of words; for characters 1, too.

    Raises:
      ValueError: The examples hold no label.
    """
    labels = self._labels(examples)
    return labels.size / int(self.vocabulary.begins_word[labels].sum())

  def _labels(self, examples: np.ndarray) -> np.ndarray:
    labels = np.asarray(examples)[:, 1:]
    labels = labels[labels != self.vocabulary.padding]
    if not labels.size:
      raise ValueError(
        'The examples hold nothing but padding; give sentences with words.'
      )
    return labels

  def reference_perplexities(self, examples: np.ndarray) -> dict[str, float]:
    """Returns perplexities to compare a model with on the same examples.

    Args:
      examples: `[N, T + 1]` ids, as `ClientPopulation.sample_examples` gives.

    Returns:
      `unigram`: of the word frequencies of the training clients, one added to
      each count, over the words, out-of-vocabulary and end. Some tasks have
      more lines. Computed when asked, with a pass over the training sentences.

    Raises:
      ValueError: The examples hold no label.
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
  """Refuses sizes that no store serves, before any data are built.

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
  """Makes a task of a store, with its `vocab_size` most frequent words.

  Args:
    name: The task's name.
    store: Words and splits.
    vocab_size: V; fewer if the store lists fewer words.
    sequence_length: T.

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
