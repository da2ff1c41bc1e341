"""Fixtures of the tasks' tests."""

from __future__ import annotations

import pytest

from si_federated.tasks.store_writer import StoreWriter


@pytest.fixture
def finished_stores(monkeypatch):
  """Gives a list that grows by the key of each store that is written."""
  finished = []
  finish = StoreWriter.finish

  def recorded(writer, key):
    finished.append(key)
    finish(writer, key)

  monkeypatch.setattr(StoreWriter, 'finish', recorded)
  return finished
