"""Personalizes clients one by one, resuming after those that are done."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from si_federated.personalization import client_store, experts


def personalize_all(
  clients: Sequence[experts.Client],
  personalizer: experts.Personalizer,
  *,
  store: client_store.ClientStore,
  fingerprint: str,
  num_clients: int,
  on_client: Callable[[int, dict[str, Any]], None] = lambda done, result: None,
) -> tuple[list[dict[str, Any]], list[str]]:
  """Personalizes clients that the store does not have yet.

  Args:
    clients: The clients, in order.
    personalizer: Trains and evaluates their experts.
    store: Gets the state of each client as soon as it is done.
    fingerprint: A digest of everything but the client that results depend on;
      stored results with another fingerprint are replaced.
    num_clients: The number of clients to get results for, without those that
      have too few examples.
    on_client: Called after each client with the number done and its results.

  Returns:
    The results of each client, and the names of those with too few examples.
  """
  done: list[dict[str, Any]] = []
  too_small: list[str] = []
  for client in clients:
    if len(done) >= num_clients:
      break
    results = _stored(client, personalizer, store, fingerprint)
    if results is None:
      made = personalizer.personalize(client)
      if made is None:
        too_small.append(client.client_id)
        continue
      state, results = made
      store.write(
        client.client_id,
        state,
        {'fingerprint': fingerprint, 'results': results},
      )
      # Equal to what a resumed run reads from the store.
      results = json.loads(json.dumps(results))
    done.append(results)
    on_client(len(done), results)
  return done, too_small


def _stored(client, personalizer, store, fingerprint):
  try:
    _, facts = store.read(client.client_id, personalizer.shapes)
  except FileNotFoundError:
    return None
  except client_store.StoreError as error:
    logging.warning('%s Training its experts again.', error)
    return None
  return facts['results'] if facts.get('fingerprint') == fingerprint else None
