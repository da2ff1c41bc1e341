"""A digest of the clients of a split, which shows whether they have changed."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from si_federated.tasks.populations import Population

# Reading all clients of a large population would take longer than a round.
_CLIENTS_READ = 500


def fingerprint(population: Population) -> str:
  """Returns a digest of clients, their numbers of examples, and examples.

  Args:
    population: The clients. The digest covers the names and numbers of all of
      them, and the examples of up to 500, spread evenly over their order.

  Returns:
    A SHA-256 in hexadecimal, the same on all machines.
  """
  digest = hashlib.sha256()
  for index in range(len(population)):
    client = population.client_id(index), int(population.num_examples(index))
    digest.update(json.dumps(client).encode())
  count = len(population)
  for i in range(min(count, _CLIENTS_READ)):
    index = i * count // min(count, _CLIENTS_READ)
    rows = np.asarray(population.examples(index))
    digest.update(json.dumps(rows.shape).encode())
    digest.update(np.ascontiguousarray(rows, '<i4').tobytes())
  return digest.hexdigest()
