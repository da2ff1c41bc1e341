"""Task `synthetic`: sentences from Markov chains of known entropy."""

from __future__ import annotations

import dataclasses

import numpy as np

from si_federated.tasks.populations import ClientPopulation
from si_federated.tasks.splits import split_all
from si_federated.tasks.store_writer import SPLITS
from si_federated.tasks.task import Task, check_sizes
from si_federated.tasks.token_arrays import TokenArrays
from si_federated.tasks.vocabulary import Vocabulary

# State 0 is the beginning of a sentence as a source and its end as a target;
# states 1..W are words.
_BOUNDARY = 0
_MOST_CLIENTS = 1_000_000


@dataclasses.dataclass(frozen=True)
class ChainMixture:
  """A mixture of Markov chains; each sentence comes from one chain.

  Attributes:
    prior: `[K]` probability of each chain.
    transitions: `[K, W + 1, W + 1]` probabilities from state, to state; rows
      sum to 1.
  """

  prior: np.ndarray
  transitions: np.ndarray

  @classmethod
  def random(
    cls,
    num_chains: int,
    num_words: int,
    *,
    concentration: float,
    mean_words: float,
    generator: np.random.Generator,
  ) -> ChainMixture:
    """Draws chains with Dirichlet rows and geometric sentence lengths."""
    shape = [num_chains, num_words + 1]
    words = generator.dirichlet(np.full([num_words], concentration), shape)
    stop = np.full([*shape, 1], 1.0 / mean_words)
    stop[:, _BOUNDARY] = 0.0  # Sentences are not empty.
    return cls(
      prior=np.full([num_chains], 1.0 / num_chains),
      transitions=np.concatenate([stop, (1.0 - stop) * words], axis=-1),
    )

  def sample(
    self, chains: np.ndarray, max_words: int, generator: np.random.Generator
  ) -> np.ndarray:
    """Draws one sentence per entry of `chains`.

    Args:
      chains: `[n]` index of the chain of each sentence.
      max_words: Length at which sentences are cut.
      generator: Source of randomness.

    Returns:
      `[n, max_words]` states, 0 after the end of a sentence.
    """
    cumulative = np.cumsum(self.transitions, axis=-1)
    cumulative[..., -1] = 1.0  # Guards against rounding.
    states = np.zeros([len(chains), max_words], np.int64)
    state = np.zeros([len(chains)], np.int64)
    alive = np.ones([len(chains)], bool)
    for step in range(max_words):
      drawn = generator.random([len(chains), 1])
      state = np.sum(cumulative[chains, state] <= drawn, axis=-1)
      alive &= state != _BOUNDARY
      states[:, step] = state = np.where(alive, state, _BOUNDARY)
    return states

  def log_likelihoods(
    self, states: np.ndarray, steps: np.ndarray
  ) -> np.ndarray:
    """Returns the log-likelihood of sentences whose chains are unknown.

    Uses forward filtering: the optimal prediction of a word weights each chain
    by its posterior probability given the preceding words.

    Args:
      states: `[n, T]` states to predict, in order.
      steps: `[n, T]` bool mask of the steps that count; True values precede
        False values in each row.

    Returns:
      `[n]` sums of the log-probabilities of the steps that count.
    """
    weights = np.tile(self.prior, [len(states), 1])
    total = np.zeros([len(states)])
    before = np.zeros([len(states)], np.int64)
    for step in range(states.shape[1]):
      joint = weights * self.transitions[:, before, states[:, step]].T
      evidence = joint.sum(axis=1)
      counts = steps[:, step]
      with np.errstate(divide='ignore'):  # Impossible sentences get -inf.
        total += np.where(counts, np.log(evidence), 0.0)
      possible = (counts & (evidence > 0))[:, None]
      safe = np.where(evidence > 0, evidence, 1.0)[:, None]
      weights = np.where(possible, joint / safe, weights)
      before = states[:, step]
    return total


def synthetic(
  *,
  data_dir: str | None = None,
  vocab_size: int = 10_000,
  sequence_length: int = 20,
  num_clients: int = 120,
  num_chains: int = 3,
  num_words: int = 50,
  sentences_per_client: int = 30,
  concentration: float = 0.05,
  seed: int = 0,
) -> Task:
  """A small generated task with a known lowest possible perplexity.

  Each client has its own mixture of the chains. Clients differ in size, and
  about one in ten has a single sentence. No files are read or written.

  Args:
    data_dir: Ignored; accepted because all tasks take it.
    vocab_size: Upper limit on `num_words`.
    sequence_length: T, the maximum number of words per sentence.
    num_clients: Total number of clients in the three splits, from three to
      1,000,000.
    num_chains: Number of Markov chains in the mixture.
    num_words: Number of distinct words.
    sentences_per_client: Typical number of sentences per client.
    concentration: Dirichlet parameter of the transitions, from 0.0001 to
      1,000,000; small values make the next word more predictable.
    seed: Determines the chains and the sentences.

  Returns:
    The task. Its reference line `floor` is the perplexity of the optimal
    predictor that knows the chains but not the client.

  Raises:
    ValueError: A number is out of range.
  """
  del data_dir
  check_sizes(vocab_size, sequence_length)
  if num_clients > _MOST_CLIENTS:
    raise ValueError(
      f'num_clients must be at most {_MOST_CLIENTS}, since all are kept in '
      f'memory; got {num_clients}.'
    )
  for name, value in (
    ('num_chains', num_chains),
    ('num_words', num_words),
    ('sentences_per_client', sentences_per_client),
  ):
    if value < 1:
      raise ValueError(f'{name} must be 1 or more; got {value}.')
  # Below this range numpy never finishes drawing; above it, sums overflow.
  if not 1e-4 <= concentration <= 1e6:
    raise ValueError(
      f'concentration must be from 0.0001 to 1000000; got {concentration}.'
    )
  if seed < 0:
    raise ValueError(f'seed must be 0 or more; got {seed}.')
  num_words = min(num_words, vocab_size)
  names = [f'client_{index:05d}' for index in range(num_clients)]
  held = split_all(names)

  generator = np.random.default_rng(seed)
  mixture = ChainMixture.random(
    num_chains,
    num_words,
    concentration=concentration,
    mean_words=8.0,
    generator=generator,
  )
  spread = generator.lognormal(0.0, 0.7, num_clients)
  sizes = np.maximum(1, np.round(sentences_per_client * spread)).astype(int)
  sizes[generator.random(num_clients) < 0.1] = 1
  taste = generator.dirichlet(np.full([num_chains], 0.5), num_clients)
  chains = np.concatenate(
    [generator.choice(num_chains, size, p=p) for size, p in zip(sizes, taste)]
  )
  states = mixture.sample(chains, sequence_length, generator)

  splits = np.repeat([held.get(name, 'train') for name in names], sizes)
  counts = np.bincount(
    states[splits == 'train'].ravel(), minlength=num_words + 1
  )[1:]
  by_rank = np.argsort(-counts, kind='stable') + 1  # Rank -> state.
  ranks = np.zeros([num_words + 1], np.int64)
  ranks[by_rank] = np.arange(num_words)
  vocabulary = Vocabulary(tuple(f'w{state}' for state in by_rank))

  populations = {}
  ends = np.cumsum(sizes)
  for split in SPLITS:
    clients = {
      name: [ranks[row[row != _BOUNDARY]] for row in states[end - size : end]]
      for name, size, end in zip(names, sizes, ends)
      if held.get(name, 'train') == split
    }
    populations[split] = ClientPopulation(
      TokenArrays.from_clients(clients), num_words, sequence_length
    )

  state_of_id = np.zeros([vocabulary.size], np.int64)  # The end id is state 0.
  state_of_id[1 : num_words + 1] = by_rank

  def floor(examples: np.ndarray) -> float:
    labels = np.asarray(examples)[:, 1:]
    steps = labels != vocabulary.padding
    total = mixture.log_likelihoods(state_of_id[labels], steps).sum()
    return float(np.exp(-total / steps.sum()))

  return Task(
    'synthetic',
    vocabulary,
    sequence_length,
    populations['train'],
    populations['validation'],
    populations['test'],
    reference_lines={'floor': floor},
  )
