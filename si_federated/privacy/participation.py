"""Participation contracts, and a recorder that checks what really happened."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Optional

import numpy as np


@dataclasses.dataclass(frozen=True)
class Participation:
  """How often, and how far apart, one client may take part.

  Two rounds r and s of one client obey `|r - s| >= min_separation`, the
  convention of matrix mechanisms. TensorFlow Privacy's tree accountant counts
  the rounds between instead, which is one less.

  Attributes:
    rounds: The number of rounds n.
    max_participations: The most rounds k in which one client takes part.
    min_separation: The least distance b between two rounds of one client.
    cyclic: Whether any two rounds of one client are a multiple of
      `min_separation` apart, as in fixed cycles. This narrower contract is the
      one of Choquette-Choo et al. 2022, under which dense strategies are
      optimal.
  """

  rounds: int
  max_participations: int
  min_separation: int
  cyclic: bool = False

  def __post_init__(self):
    for name in ('rounds', 'max_participations', 'min_separation'):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(
          f'{name} is {value!r}; a contract needs a whole number.'
        )
      if value < 1:
        raise ValueError(f'{name} is {value}; a contract needs at least 1.')
      object.__setattr__(self, name, int(value))

  @property
  def participations(self) -> int:
    """The most participations that fit: `min(k, ceil(n / b))`."""
    return min(self.max_participations, -(-self.rounds // self.min_separation))

  def covers(self, other: Participation) -> bool:
    """Tells whether all that `other` allows is allowed here too.

    Args:
      other: For example the contract that a schedule states.

    Returns:
      True if a guarantee proven under this contract holds under `other`.
    """
    if other.rounds > self.rounds:
      return False
    if other.participations > self.participations:
      return False
    if other.participations == 1:
      return True
    if self.cyclic:
      return other.cyclic and other.min_separation % self.min_separation == 0
    return other.min_separation >= self.min_separation

  def check_covers(self, other: Participation, *, what: str) -> None:
    """Raises unless all that `other` allows is allowed here too.

    Args:
      other: For example the contract that a schedule states.
      what: The name of what states `other`, for the message.

    Raises:
      ValueError: If `other` allows more than this contract.
    """
    if not self.covers(other):
      raise ValueError(
        f'{what} meets only [{other}], but the privacy mechanism was built '
        f'for [{self}]; choose another schedule or build for that contract.'
      )

  def __str__(self) -> str:
    cyclic = ' or a multiple of it' if self.cyclic else ' or more'
    return (
      f'{self.rounds} rounds, at most {self.participations} participations of '
      f'a client, {self.min_separation} rounds{cyclic} apart'
    )


class ParticipationRecorder:
  """Observes cohorts and refuses those that break a contract.

  Memory is bounded by the number of distinct clients seen. A round that breaks
  the contract raises before anything is recorded.
  """

  def __init__(self, contract: Optional[Participation] = None):
    """Initializes the recorder.

    Args:
      contract: What to hold clients to; if none, only observes.
    """
    self._contract = contract
    self._positions: dict[Any, int] = {}
    self._counts: list[int] = []
    self._last: list[int] = []
    self._round = 0
    self._max_participations = 0
    # 0 is for "no client has taken part twice yet".
    self._min_separation = 0

  @property
  def last_round(self) -> int:
    """The number of the newest round recorded; 0 before the first."""
    return self._round

  @property
  def num_clients(self) -> int:
    """How many distinct clients have been seen."""
    return len(self._positions)

  @property
  def max_participations(self) -> int:
    """The largest number of rounds in which one client took part."""
    return self._max_participations

  @property
  def min_separation(self) -> Optional[int]:
    """The least distance of two rounds of one client; None if no client came
    back.
    """
    return self._min_separation or None

  def observed(self) -> Participation:
    """Returns the tightest contract that all the rounds so far have met.

    Raises:
      ValueError: If no round has been recorded.
    """
    if not self._round:
      raise ValueError('No round has been recorded; record one first.')
    # All clients of a kept cyclic contract have stayed in their phase.
    cyclic = bool(self._contract and self._contract.cyclic)
    separation = self._min_separation or self._round
    if cyclic and self._contract:
      separation = self._contract.min_separation
    return Participation(
      self._round, max(self._max_participations, 1), separation, cyclic
    )

  def check(self, round_num: int, clients: Iterable[Any]) -> None:
    """Raises if a cohort breaks the contract; records nothing.

    Args:
      round_num: The round, from 1 on; rounds must come in increasing order.
      clients: The ids of the cohort, all whole numbers or all strings.

    Raises:
      ValueError: If the round is out of order, an id is of another type, or
        the contract is broken.
    """
    self._checked(round_num, clients)

  def record(self, round_num: int, clients: Iterable[Any]) -> None:
    """Records the cohort of a round, after the same checks.

    Args:
      round_num: The round, from 1 on; rounds must come in increasing order.
      clients: The ids of the cohort, all whole numbers or all strings.

    Raises:
      ValueError: As `check`; nothing has been recorded then.
    """
    ids, self._max_participations, self._min_separation = self._checked(
      round_num, clients
    )
    for client in ids:
      position = self._positions.setdefault(client, len(self._positions))
      if position == len(self._counts):
        self._counts.append(0)
        self._last.append(0)
      self._counts[position] += 1
      self._last[position] = round_num
    self._round = int(round_num)

  def _checked(self, round_num, clients):
    """Returns the ids, and what was observed with them."""
    if round_num <= self._round:
      raise ValueError(
        f'Round {round_num} was recorded after round {self._round}; record '
        'each round once, in order.'
      )
    contract = self._contract
    if contract and round_num > contract.rounds:
      raise ValueError(
        f'Round {round_num} is past the {contract.rounds} rounds for which '
        'the privacy mechanism was built; stop, or build it for more rounds.'
      )
    ids = [_client_id(client) for client in clients]
    if len({type(i) for i in [*ids, *list(self._positions)[:1]]}) > 1:
      raise ValueError('Client ids must be all whole numbers or all strings.')
    if len(set(ids)) < len(ids):
      raise ValueError(
        f'A client is twice in the cohort of round {round_num}; a cohort is '
        'drawn without replacement.'
      )
    most, least = self._max_participations, self._min_separation
    for client in ids:
      position = self._positions.get(client)
      count = 1
      if position is not None:
        count += self._counts[position]
        distance = round_num - self._last[position]
        self._check(client, round_num, count, distance)
        least = min(least or distance, distance)
      most = max(most, count)
    return ids, most, least

  def _check(self, client, round_num, count, distance):
    contract = self._contract
    if contract is None:
      return
    broken = None
    if count > contract.max_participations:
      broken = f'another time than the {contract.max_participations} allowed'
    elif distance < contract.min_separation or (
      contract.cyclic and distance % contract.min_separation
    ):
      broken = f'{distance} rounds after its last'
    if broken:
      raise ValueError(
        f'Client {client!r} takes part in round {round_num} {broken}, but '
        f'privacy was promised for [{contract}]; use a schedule that meets it.'
      )

  def state(self) -> dict[str, np.ndarray]:
    """Returns plain arrays, fit for `np.savez`, that restore the recorder."""
    return {
      'clients': np.array(list(self._positions)),
      'counts': np.array(self._counts, np.int64),
      'last_rounds': np.array(self._last, np.int64),
      'observed': np.array(
        [self._round, self._max_participations, self._min_separation], np.int64
      ),
    }

  def restore(self, state: dict[str, np.ndarray]) -> None:
    """Goes back to a state.

    Args:
      state: What `state` has returned.

    Raises:
      ValueError: If the state is not one of a recorder.
    """
    try:
      clients, counts, last, observed = (
        np.asarray(state[key])
        for key in ('clients', 'counts', 'last_rounds', 'observed')
      )
    except KeyError as e:
      raise ValueError(
        f'The participation record lacks {e}; use an older checkpoint.'
      ) from e
    if (
      not (clients.shape == counts.shape == last.shape == (clients.size,))
      or observed.shape != (3,)
      or (clients.size and clients.dtype.kind not in 'iuU')
      or (clients.size and (counts.min() < 1 or last.max() > observed[0]))
      or observed[1] != (counts.max() if clients.size else 0)
    ):
      raise ValueError(
        'The participation record contradicts itself; use an older checkpoint.'
      )
    self._positions = {c: i for i, c in enumerate(clients.tolist())}
    self._counts = counts.tolist()
    self._last = last.tolist()
    self._round, self._max_participations, self._min_separation = (
      int(value) for value in observed
    )


def _client_id(client):
  if isinstance(client, (int, np.integer)) and not isinstance(client, bool):
    return int(client)
  if isinstance(client, str):
    return str(client)
  raise ValueError(
    f'Client id {client!r} is of type {type(client).__name__}; ids are whole '
    'numbers or strings.'
  )
