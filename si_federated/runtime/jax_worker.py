"""Runs exported JAX programs in a separate process.

This file needs only JAX and NumPy: any Python whose JAX supports the device can
run it, whatever the package's own JAX is. It reads messages from standard input
and answers on standard output. A message is a line of JSON followed by the
bytes of its arrays.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import struct
import sys
import time
from typing import Any

import numpy as np

# The newest JAX that is known to run the package's programs.
NEWEST_TRIED = '0.10.2'

# `jax` must not be imported from this file's folder.
if __name__ == '__main__':
  here = os.path.dirname(os.path.abspath(__file__))
  sys.path[:] = [p for p in sys.path if os.path.abspath(p or '.') != here]


def send(stream, message, arrays=()):
  """Writes a message.

  Args:
    stream: A binary stream.
    message: A JSON value.
    arrays: NumPy arrays.
  """
  arrays = [np.asarray(array, order='C') for array in arrays]
  message = {
    **message,
    'arrays': [[array.dtype.name, array.shape] for array in arrays],
  }
  text = json.dumps(message).encode()
  stream.write(struct.pack('<q', len(text)) + text)
  for array in arrays:
    if array.size:
      stream.write(array.reshape([-1]).view(np.uint8).data)
  stream.flush()


def receive(stream):
  """Reads a message.

  Args:
    stream: A binary stream.

  Returns:
    The message and its arrays.

  Raises:
    EOFError: If the stream has ended.
  """
  message = json.loads(_read(stream, struct.unpack('<q', _read(stream, 8))[0]))
  arrays = []
  for dtype, shape in message.pop('arrays'):
    array: Any = np.empty(shape, np.dtype(dtype))
    if array.size:
      # Straight into the array: weights are large.
      size = stream.readinto(array.reshape([-1]).view(np.uint8).data)
      _check_size(size, array.nbytes)
    arrays.append(array)
  return message, arrays


def _read(stream, size):
  data = stream.read(size)
  _check_size(len(data), size)
  return data


def _check_size(size, expected):
  if size < expected:
    raise EOFError('The stream has ended.')


def pack(exported):
  """Returns an exported program as bytes that later releases of JAX can read.

  JAX reads its own format for only six months, but the module in it, a portable
  StableHLO artifact, for five years. So this stores the module, and the little
  else that calling it takes.

  Args:
    exported: A `jax.export.Exported` of one platform, whose parameters are
      three tuples of arrays. Its results are like the second one.
  """
  flat = [[str(aval.dtype), aval.shape] for aval in exported.in_avals]
  inputs = exported.in_tree.unflatten(flat)[0]
  header = {
    'platform': exported.platforms[0],
    'inputs': inputs,
    'kept': exported.module_kept_var_idx,
  }
  return json.dumps(header).encode() + b'\n' + exported.mlir_module_serialized


def unpack(jax, content):
  """Returns a program of `pack` as a `jax.export.Exported` of this JAX.

  Args:
    jax: The module `jax`.
    content: The bytes.

  Raises:
    ValueError: If this JAX can't read the program.
  """
  try:
    from jax import export
  except ImportError:
    import jax.export as export
  text, _, module = content.partition(b'\n')
  header = json.loads(text)
  inputs = (
    tuple(
      jax.ShapeDtypeStruct(tuple(shape), jax.numpy.dtype(dtype))
      for dtype, shape in part
    )
    for part in header['inputs']
  )
  try:
    # A dummy program with the same types, whose module is replaced.
    like = export.export(
      jax.jit(lambda broadcast, total, arrays: total),
      platforms=[header['platform']],
    )(*inputs)
    program = dataclasses.replace(
      like,
      mlir_module_serialized=module,
      module_kept_var_idx=tuple(header['kept']),
    )
    program.mlir_module()
  except Exception as error:
    raise ValueError(
      f"JAX {jax.__version__} cannot read the package's programs; install "
      f'jax {NEWEST_TRIED}, which has been tested with them, there'
    ) from error
  return program


def compiled_memory(compiled):
  """Returns the bytes that a compiled program takes, or None if unknown."""
  stats = compiled.memory_analysis()
  if stats is None:
    return None
  return (
    stats.temp_size_in_bytes
    + stats.argument_size_in_bytes
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes
  )


def memory_limit(jax):
  """Returns the bytes that programs may take on a device; None if unknown."""
  device = jax.devices()[0]
  stats = device.memory_stats()
  if stats and 'bytes_limit' in stats:
    # Leave some for uncounted arrays, such as those of the next group.
    return int(0.9 * stats['bytes_limit'])
  if device.platform == 'cpu':
    # Half, however much is free, so that repeated runs have the same groups.
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return memory // 2 // len(jax.devices())
  return None


class Worker:
  """The programs, and the values of the current round, on the device.

  Its methods answer messages: they take a message and its arrays, and return
  the answer and its arrays.
  """

  def __init__(self, jax):
    self._jax = jax
    self._programs = {}
    # Indexed by the program's key and the device's number.
    self._compiled = {}
    # For each device.
    self._broadcast: list[tuple[Any, ...]] = []
    self._total: list[tuple[Any, ...]] = []

  def hello(self, message, arrays):
    """Returns facts about the device."""
    del message, arrays
    device = self._jax.devices()[0]
    return {
      'jax': self._jax.__version__,
      'platform': device.platform,
      'device': device.device_kind,
      'num_devices': len(self._jax.devices()),
      'memory_limit': memory_limit(self._jax),
    }, ()

  def load(self, message, arrays):
    """Takes a program; see `pack`."""
    self._programs[message['key']] = unpack(self._jax, arrays[0].tobytes())
    return {}, ()

  def compile(self, message, arrays):
    """Compiles a program for a device; returns the time and memory it takes."""
    del arrays
    key, number = message['key'], message['device']
    program = self._programs[key]
    where = self._jax.sharding.SingleDeviceSharding(self._jax.devices()[number])
    shapes = [
      self._jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=where)
      for aval in program.in_avals
    ]
    args, kwargs = self._jax.tree_util.tree_unflatten(program.in_tree, shapes)
    began = time.perf_counter()
    # The sums so far are donated: the new ones reuse their memory.
    function = self._jax.jit(program.call, donate_argnums=1)
    compiled = function.lower(*args, **kwargs).compile()
    self._compiled[key, number] = compiled
    return {
      'seconds': time.perf_counter() - began,
      'bytes': compiled_memory(compiled),
    }, ()

  def drop(self, message, arrays):
    """Forgets a program."""
    del arrays
    self._programs.pop(message['key'], None)
    for key in [k for k in self._compiled if k[0] == message['key']]:
      del self._compiled[key]
    return {}, ()

  def begin(self, message, arrays):
    """Takes the arrays that the server broadcasts, and sums over no clients."""
    number = message['num_broadcast']
    put = self._jax.device_put
    devices = self._jax.devices()[: message['num_devices']]
    self._broadcast = [
      tuple(put(a, d) for a in arrays[:number]) for d in devices
    ]
    self._total = [tuple(put(a, d) for a in arrays[number:]) for d in devices]
    return {}, ()

  def add(self, message, arrays):
    """Adds the updates of a group of clients to the sums of a device."""
    key, number = message['key'], message['device']
    if (key, number) not in self._compiled:
      self.compile(message, ())
    where = self._jax.devices()[number]
    self._total[number] = self._compiled[key, number](
      self._broadcast[number],
      self._total[number],
      tuple(self._jax.device_put(array, where) for array in arrays),
    )
    return {}, ()

  def end(self, message, arrays):
    """Returns the sums, device by device."""
    del message, arrays
    total, self._total = self._total, []
    return {}, [np.asarray(array) for part in total for array in part]


def main():
  """Answers messages until standard input ends."""
  # The driver handles Ctrl-C, and then closes the stream.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  requests = sys.stdin.buffer
  answers = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # output of libraries must not mix with answers
  worker = None
  while True:
    try:
      message, arrays = receive(requests)
    except EOFError:
      return
    try:
      if worker is None:
        import jax

        worker = Worker(jax)
      answer = getattr(worker, message['command'])(message, arrays)
    except Exception as error:  # the driver decides what it means
      text = str(error).strip() or type(error).__name__
      answer = {'error': text.splitlines()[0], 'kind': type(error).__name__}, ()
    send(answers, *answer)


if __name__ == '__main__':
  main()
