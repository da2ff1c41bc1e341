"""Personalises one client after the other, but for those that are done."""

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
  """Personalises clients, but for those that the store has already.

  Args:
    clients: In the order in which to take them.
    personalizer: Trains them.
    store: Where their state goes, each as soon as it is done.
    fingerprint: Of all that results depend on beside the client; what the
      store has under another is made anew.
    num_clients: Of how many clients to have results; those that are too small
      do not count.
    on_client: Called after each, with the number done and its results.

  Returns:
    The results of each, and the names of those that were too small.
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
      # What is read back later is what JSON makes of it.
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
    logging.warning('%s It is made anew.', error)
    return None
  return facts['results'] if facts.get('fingerprint') == fingerprint else None
