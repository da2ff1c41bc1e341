"""Models of single clients: evaluation, experts, storage."""

from __future__ import annotations

from si_federated.personalization.client_by_client import personalize_all
from si_federated.personalization.client_store import ClientStore, StoreError
from si_federated.personalization.experts import (
  Client,
  ExpertSettings,
  Personalizer,
)

__all__ = [
  'Client',
  'ClientStore',
  'ExpertSettings',
  'Personalizer',
  'StoreError',
  'personalize_all',
]
