from __future__ import annotations

import random

import pytest

from si_federated import runtime
from si_federated.runtime import chunks


class _Actors:
  """Two slow actors, which can die of a chunk."""

  def __init__(self, deadly=None, limit=0, fails=()):
    self.count = 2
    self.queues: list[list] = [[], []]
    self.kills = dict.fromkeys(deadly or (), limit)
    self.fails = fails
    self.random = random.Random(0)
    self.forgotten = False

  @property
  def free(self):
    return min(map(len, self.queues)) < 2

  def submit(self, chunk, data):
    min(self.queues, key=len).append((chunk, data))

  def wait(self):
    queue = self.random.choice([queue for queue in self.queues if queue])
    chunk, data = queue[0]
    if self.kills.get(chunk, 0):
      self.kills[chunk] -= 1
      lost = [chunk for chunk, _ in queue]
      queue.clear()
      raise chunks.LostError(lost, RuntimeError('gone'))
    del queue[0]
    if chunk in self.fails:
      return chunk, chunks.Failed(len(data) - 1, 'no luck')
    return chunk, data

  def forget(self):
    self.forgotten = True


def _run(actors, num_clients, draw=lambda client: client):
  return chunks.run(
    range(num_clients),
    draw=draw,
    keep=list,
    submit=actors.submit,
    actors=actors,
  )


@pytest.mark.parametrize('num_clients', [0, 1, 7, 32, 33, 100, 256, 1000])
def test_chunks_are_small_and_in_order(num_clients):
  cut = chunks.cut(num_clients)
  assert [i for chunk in cut for i in chunk] == list(range(num_clients))
  sizes = {len(chunk) for chunk in cut}
  assert not sizes or (max(sizes) <= 8 and max(sizes) - min(sizes) <= 1)
  assert len(cut) >= min(num_clients, 32)


@pytest.mark.parametrize('deadly', [[], [0], [3, 4, 20]])
def test_results_come_in_order_whatever_dies(deadly):
  actors = _Actors(deadly, limit=2)
  results = list(_run(actors, 100))
  assert results == [list(chunk) for chunk in chunks.cut(100)]
  assert not any(actors.kills.values())
  assert actors.forgotten


def test_each_client_is_drawn_once_and_not_early():
  drawn, yielded, ahead = [], 0, 0

  def draw(client):
    drawn.append(client)
    return client

  for result in _run(_Actors([5], limit=1), 1000, draw):
    ahead = max(ahead, len(drawn) - yielded)
    yielded += len(result)
  assert drawn == list(range(1000))
  # Three chunks of eight for each of two actors.
  assert 8 < ahead <= 48


def test_a_chunk_that_keeps_killing_actors_ends_the_round():
  with pytest.raises(RuntimeError, match='3 actors died .* 9 to 9 .*gone'):
    list(_run(_Actors([9], limit=3), 20))


def test_a_failure_names_the_client():
  actors = _Actors(fails=[5])
  results = _run(actors, 64)
  with pytest.raises(runtime.ClientError, match='number 11 .*no luck'):
    for expected in range(6):
      assert next(results) == [2 * expected, 2 * expected + 1]
  assert actors.forgotten

  def draw(client):
    if client == 40:
      raise OSError('no disk')
    return client

  with pytest.raises(runtime.ClientError, match='number 40 .*no disk'):
    list(_run(_Actors(), 64, draw))
