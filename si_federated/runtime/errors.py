"""Errors that runtimes raise."""

from __future__ import annotations


class ClientError(RuntimeError):
  """A client's computation failed; the message names the client."""


class UnsupportedError(RuntimeError):
  """A runtime can't run a computation, and no other runtime takes its place."""
