"""Participation contracts, and a recorder that checks who took part."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Optional, Union

import numpy as np

ClientId = Union[int, str]


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
    cyclic: Whether the distance of any two rounds of one client is a multiple
      of `min_separation`, as in fixed cycles. Under this narrower contract, of
      Choquette-Choo et al. 2022, dense strategies are optimal.
    block: If not 0, a client also takes part at most once in rounds 1 to
      `block`, in the next `block` rounds, and so on, as in shuffled epochs.
  """

  rounds: int
  max_participations: int
  min_separation: int
  cyclic: bool = False
  block: int = 0

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
    if self.block < 0 or (self.block and self.cyclic):
      raise ValueError(
        f'block is {self.block}; it must be at least 0, and 0 for a cyclic '
        'contract.'
      )

  @property
  def participations(self) -> int:
    """The largest possible number of participations: `min(k, ceil(n / b))`."""
    least = max(self.min_separation, self.block)
    return min(self.max_participations, -(-self.rounds // least))

  @property
  def separation(self) -> int:
    """The number of rounds in which a client takes part at most once."""
    if self.participations == 1:
      return self.rounds
    return self.min_separation

  def covers(self, other: Participation) -> bool:
    """Returns whether this contract allows all that another one allows.

    If so, a guarantee proven for this contract also applies to the other.

    Args:
      other: Another contract, such as that of a schedule.
    """
    if other.rounds > self.rounds:
      return False
    if other.participations > self.participations:
      return False
    if other.participations == 1:
      return True
    if self.block and not (
      other.min_separation >= self.block
      or (other.block and other.block % self.block == 0)
    ):
      return False
    if self.cyclic:
      return other.cyclic and other.min_separation % self.min_separation == 0
    return other.min_separation >= self.min_separation

  def check_covers(self, other: Participation, *, what: str) -> None:
    """Raises unless this contract covers another one.

    Args:
      other: Another contract, such as that of a schedule.
      what: The name of whatever has the contract `other`, for the message.

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
    block = f', once in each {self.block} rounds' if self.block else ''
    return (
      f'{self.rounds} rounds, at most {self.participations} participations of '
      f'a client, {self.min_separation} '
      f'round{"s" * (self.min_separation > 1)}{cyclic} apart{block}'
    )


class ParticipationRecorder:
  """Records cohorts and rejects those that violate a contract.

  Memory grows only with the number of distinct clients. If a round violates the
  contract, nothing of it is recorded.

  Attributes:
    last_round: The newest round recorded; 0 before the first.
    max_participations: The most rounds in which one client took part.
  """

  def __init__(self, contract: Optional[Participation] = None):
    """Initializes the recorder.

    Args:
      contract: The contract to enforce; None only records.
    """
    self._contract = contract
    # The number of each client's rounds, and its last round.
    self._seen: dict[ClientId, tuple[int, int]] = {}
    self.last_round = 0
    self.max_participations = 0
    # 0 until a client takes part for the second time.
    self._min_separation = 0

  @property
  def num_clients(self) -> int:
    """The number of distinct clients recorded."""
    return len(self._seen)

  @property
  def min_separation(self) -> Optional[int]:
    """The least distance between two rounds of a client; None without any."""
    return self._min_separation or None

  def observed(self) -> Participation:
    """Returns the tightest contract that all rounds so far meet.

    Raises:
      ValueError: If no round has been recorded.
    """
    if not self.last_round:
      raise ValueError('No round has been recorded; record one first.')
    separation = self._min_separation or self.last_round
    # Under a cyclic contract, all clients have stayed in their phase.
    cyclic = bool(self._contract and self._contract.cyclic)
    if cyclic and self._contract:
      separation = self._contract.min_separation
    return Participation(
      self.last_round,
      max(self.max_participations, 1),
      separation,
      cyclic,
      self._contract.block if self._contract else 0,
    )

  def check(self, round_num: int, clients: Iterable[ClientId]) -> None:
    """Raises if a cohort violates the contract; records nothing.

    Args:
      round_num: The round, from 1 on; rounds must come in increasing order.
      clients: The ids of the cohort, all whole numbers or all strings.

    Raises:
      ValueError: If the round is out of order, an id is of another type, or
        the contract is violated.
    """
    self._checked(round_num, clients)

  def record(self, round_num: int, clients: Iterable[ClientId]) -> None:
    """Records the cohort of a round, after the same checks.

    Args:
      round_num: The round, from 1 on; rounds must come in increasing order.
      clients: The ids of the cohort, all whole numbers or all strings.

    Raises:
      ValueError: As for `check`; nothing is recorded.
    """
    ids, self.max_participations, self._min_separation = self._checked(
      round_num, clients
    )
    self.last_round = int(round_num)
    for client in ids:
      count, _ = self._seen.get(client, (0, 0))
      self._seen[client] = count + 1, self.last_round

  def _checked(self, round_num, clients):
    """Returns the ids, and what would be observed with them."""
    if round_num <= self.last_round:
      raise ValueError(
        f'Round {round_num} was recorded after round {self.last_round}; record '
        'each round once, in order.'
      )
    contract = self._contract
    if contract and round_num > contract.rounds:
      raise ValueError(
        f'Round {round_num} is past the {contract.rounds} rounds for which '
        'the privacy mechanism was built; stop, or build it for more rounds.'
      )
    ids = [_client_id(client) for client in clients]
    if len({type(i) for i in [*ids, *list(self._seen)[:1]]}) > 1:
      raise ValueError('Client ids must be all whole numbers or all strings.')
    if len(set(ids)) < len(ids):
      raise ValueError(
        f'A client is twice in the cohort of round {round_num}; a cohort is '
        'drawn without replacement.'
      )
    most, least = self.max_participations, self._min_separation
    for client in ids:
      count, last = self._seen.get(client, (0, 0))
      if count:
        distance = int(round_num) - last
        self._check_return(client, round_num, count + 1, distance)
        least = min(least or distance, distance)
      most = max(most, count + 1)
    return ids, most, least

  def _check_return(self, client, round_num, count, distance):
    contract = self._contract
    if contract is None:
      return
    broken = None
    if count > contract.max_participations:
      broken = f'beyond the {contract.max_participations} times allowed'
    elif distance < contract.min_separation or (
      contract.cyclic and distance % contract.min_separation
    ):
      broken = f'{distance} rounds after its last'
    elif contract.block and _same_block(contract.block, round_num, distance):
      broken = f'twice in a block of {contract.block} rounds'
    if broken:
      raise ValueError(
        f'Client {client!r} takes part in round {round_num} {broken}, but '
        f'privacy was promised for [{contract}]; use a schedule that meets it.'
      )

  def state(self) -> dict[str, np.ndarray]:
    """Returns plain arrays, fit for `np.savez`, that restore the recorder."""
    counts, lasts = np.reshape(
      np.array(list(self._seen.values()), np.int64), [-1, 2]
    ).T
    return {
      'clients': np.array(list(self._seen)),
      'counts': counts,
      'last_rounds': lasts,
      'observed': np.array(
        [self.last_round, self.max_participations, self._min_separation],
        np.int64,
      ),
    }

  def restore(self, state: dict[str, np.ndarray]) -> None:
    """Restores a state.

    Args:
      state: From `state`.

    Raises:
      ValueError: If the state is not one of a recorder.
    """
    try:
      clients, counts, lasts, observed = (
        np.asarray(state[key])
        for key in ('clients', 'counts', 'last_rounds', 'observed')
      )
    except KeyError as e:
      raise ValueError(
        f'The participation record lacks {e}; use an older checkpoint.'
      ) from e
    if (
      not (clients.shape == counts.shape == lasts.shape == (clients.size,))
      or observed.shape != (3,)
      or (clients.size and clients.dtype.kind not in 'iuU')
      or (clients.size and (counts.min() < 1 or lasts.max() > observed[0]))
      or observed[1] != (counts.max() if clients.size else 0)
    ):
      raise ValueError(
        'The participation record contradicts itself; use an older checkpoint.'
      )
    self._seen = dict(
      zip(clients.tolist(), zip(counts.tolist(), lasts.tolist()))
    )
    self.last_round, self.max_participations, self._min_separation = map(
      int, observed
    )


def _same_block(block: int, round_num: int, distance: int) -> bool:
  return (round_num - 1) // block == (round_num - distance - 1) // block


def _client_id(client: ClientId) -> ClientId:
  if isinstance(client, (int, np.integer)) and not isinstance(client, bool):
    return int(client)
  if isinstance(client, str):
    return str(client)
  raise ValueError(
    f'Client id {client!r} is of type {type(client).__name__}; ids are whole '
    'numbers or strings.'
  )
