"""Converts dumps, tables and source trees to client data in TFF's format."""

from si_federated.preparation.prepare import SOURCES, SPLITS, Settings, prepare
from si_federated.preparation.records import Counts

__all__ = ['SOURCES', 'SPLITS', 'Counts', 'Settings', 'prepare']
