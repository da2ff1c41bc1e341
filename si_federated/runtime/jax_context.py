"""Runs the clients of a round as one JAX program, on an accelerator."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff
from tensorflow_federated.python.core.impl.context_stack import (
  context_base,
  context_stack_impl,
)

from si_federated.runtime import (
  client_arrays,
  dispatch,
  errors,
  jax_cohort,
  jax_process,
  jax_programs,
  jax_recording,
  rounds,
  values,
)

_PLATFORMS = {'gpu': 'cuda'}
_LARGEST_GROUP_ON_CPU = 8
_LARGEST_RECORDED_GROUP = 64
_UNBOUNDED = 1 << 30


def _refusal(error: Exception) -> errors.UnsupportedError:
  """Returns the error for a computation that can't be converted."""
  reason = str(error).strip().partition('\n')[0]
  return errors.UnsupportedError(
    f'--runtime=jax cannot run this computation: {reason} Use --runtime=local.'
  )


class JaxContext(context_base.SyncContext):
  """A TFF execution context whose clients run as one JAX program."""

  # The largest group on accelerators, by default.
  _LARGEST_GROUP = _UNBOUNDED

  def __init__(
    self,
    python: str | None = None,
    device: str | None = None,
    clients_per_group: int | None = None,
    matmul_precision: str = 'highest',
    record: str | None = None,
    memory_gib: float | None = None,
  ):
    """Initializes the context; see `set_jax_context`."""
    if matmul_precision not in jax_programs.PRECISIONS:
      raise ValueError(
        f'matmul_precision={matmul_precision!r} is not one of '
        f'{", ".join(jax_programs.PRECISIONS)}.'
      )
    if clients_per_group is not None and clients_per_group < 1:
      raise ValueError(
        f'clients_per_group must be 1 or more; got {clients_per_group}.'
      )
    if memory_gib is not None and not memory_gib > 0:
      raise ValueError(f'memory_gib must be above 0; got {memory_gib}.')
    self._python, self._device = python, device
    self._facts = self._start()
    platform = self._facts['platform']
    self._platform = _PLATFORMS.get(platform, platform)
    self._largest_group = client_arrays.power_of_two(
      clients_per_group
      or (_LARGEST_GROUP_ON_CPU if platform == 'cpu' else self._LARGEST_GROUP)
    )
    # The bytes that a program may take; None if the group size was given.
    self._memory_limit: float | None = None
    if memory_gib is not None:
      self._memory_limit = memory_gib * 2**30
    elif clients_per_group is None:
      self._memory_limit = self._facts['memory_limit']
    # The largest group that fits, by programs and kind. Each kind has its own,
    # so that groups don't depend on earlier rounds.
    self._fitting: dict[tuple[int, client_arrays.Kind], int] = {}
    # The largest group of this round.
    self._group_size = 0
    self._recorded_group = client_arrays.power_of_two(
      clients_per_group or _LARGEST_RECORDED_GROUP
    )
    self._precision = matmul_precision
    self._programs: dict[int, jax_programs.ClientPrograms] = {}
    self._loaded: set[str] = set()
    self._recording = (
      None if record is None else jax_recording.Recording(record)
    )
    self._recorded: set[int] = set()
    # The arguments of `record_next`.
    self._next_facts: Mapping[str, Any] | None = None
    self._next_checked: int | None = None
    self._dispatcher = dispatch.Dispatcher(
      self._run_clients, prepare=self._convert
    )

  def _start(self) -> dict[str, Any]:
    """Starts the process that runs clients; returns facts about its device."""
    self._worker = jax_process.Process(self._python, self._device)
    return self._worker.facts

  @property
  def device(self) -> str:
    """The device's name."""
    return str(self._facts['device'])

  @property
  def worker_pid(self) -> int:
    """The number of the process that owns the device."""
    return self._worker.pid

  @property
  def recording(self) -> jax_recording.Recording | None:
    """The recording that rounds are added to."""
    return self._recording

  def record_next(
    self, facts: Mapping[str, Any], num_checked: int | None = None
  ) -> None:
    """Records the next round, even if it is not its computation's first.

    Args:
      facts: JSON values, which become columns of a replay's table.
      num_checked: If given, only this many clients of the cohort are computed
        here and compared in a replay, which still runs all of them. The round's
        result is then that of these clients.
    """
    if self._recording is None:
      raise ValueError('The context was created without `record`.')
    self._next_facts, self._next_checked = facts, num_checked

  def invoke(self, comp: tff.Computation, arg: Any) -> Any:
    """Runs a computation; TFF calls it for `comp(arg)`."""
    return self._dispatcher.invoke(comp, arg)

  def _convert(self, compiled: rounds.Round) -> None:
    try:
      programs = jax_programs.ClientPrograms(compiled.client_part)
    except (NotImplementedError, TypeError, ValueError) as error:
      raise _refusal(error) from error
    self._programs[id(compiled)] = programs

  def _run_clients(
    self,
    compiled: rounds.Round,
    broadcast: values.Tensors,
    clients: Sequence[Any],
  ) -> rounds.Partial | None:
    if not len(clients):
      return None
    part = compiled.client_part
    cohort = jax_cohort.read(
      self._programs[id(compiled)], part, broadcast, clients
    )
    facts, checked = self._facts_to_record(compiled)
    while True:
      try:
        total = self._sum(
          cohort._replace(
            data=cohort.data[:checked], tensors=cohort.tensors[:checked]
          )
        )
        break
      except jax_process.OutOfMemoryError as error:
        if self._group_size <= 1:
          raise self._too_large() from error
        self._largest_group = self._group_size // 2
        warnings.warn(
          f'{self.device} is out of memory; now with '
          f'{self._largest_group} clients at once.',
          stacklevel=2,
        )
      except jax_process.WorkerError as error:
        raise errors.UnsupportedError(
          f'{error}; the rounds before this one are saved: start again to go '
          'on.'
        ) from error
    if facts is not None:
      self._record(cohort, total, checked, facts)
    partial = None
    for start in range(0, len(total), len(cohort.zeros)):
      sums = [
        tf.convert_to_tensor(array.astype(zero.dtype))
        for array, zero in zip(total[start:], cohort.zeros)
      ]
      partial = compiled.merge(partial, part.partial(sums))
    return partial

  def _too_large(self) -> errors.UnsupportedError:
    return errors.UnsupportedError(
      f'One client does not fit the memory of {self.device}: use a smaller '
      'model or smaller batches.'
    )

  def _groups(
    self, cohort: jax_cohort.Cohort, num_devices: int = 1
  ) -> Iterator[tuple[str, client_arrays.Group]]:
    """Yields the groups of a cohort, each with its program's key."""
    share = client_arrays.power_of_two(-(-len(cohort.data) // num_devices))
    programs = id(cohort.programs)
    self._group_size = 0

    def largest(kind: client_arrays.Kind) -> int:
      fitting = self._fitting.get((programs, kind), _UNBOUNDED)
      return min(self._largest_group, share, fitting)

    for group in cohort.groups(largest):
      self._group_size = max(self._group_size, group.size)
      yield f'{programs} {group.shapes}', group

  def _fitting_groups(
    self, cohort: jax_cohort.Cohort, num_devices: int
  ) -> list[tuple[str, client_arrays.Group]]:
    """Returns groups that fit in memory, with their programs loaded."""
    while True:
      groups = list(self._groups(cohort, num_devices))
      for key, group in groups:
        if key not in self._loaded and not self._load(key, cohort, group):
          break
      else:
        return groups

  def _load(
    self, key: str, cohort: jax_cohort.Cohort, group: client_arrays.Group
  ) -> bool:
    """Gives the worker a program; returns whether it fits in memory."""
    program = self._export(cohort, group, self._platform)
    self._worker.ask(
      {'command': 'load', 'key': key}, [np.frombuffer(program, np.uint8)]
    )
    if self._memory_limit is not None:
      needed = self._needed_memory(key)
      if needed is not None and needed > self._memory_limit:
        self._worker.ask({'command': 'drop', 'key': key})
        if group.size == 1:
          raise self._too_large()
        # The arrays that all clients share, then each client's part.
        shared = sum(
          array.nbytes for array in (*cohort.broadcast, *cohort.zeros)
        )
        room = max(0.0, self._memory_limit - shared)
        fitting = room * group.size / max(1.0, needed - shared)
        size = group.size // 2
        while size > max(1.0, fitting):
          size //= 2
        self._fitting[id(cohort.programs), group.kind] = size
        return False
    self._loaded.add(key)
    return True

  def _needed_memory(self, key: str) -> float | None:
    """Returns the bytes that a program takes, or None if JAX does not know."""
    try:
      answer, _ = self._worker.ask(
        {'command': 'compile', 'key': key, 'device': 0}
      )
    except jax_process.OutOfMemoryError:
      return float('inf')
    return answer['bytes']

  def _sum(self, cohort: jax_cohort.Cohort) -> list[np.ndarray]:
    """Returns the sums over clients, device by device."""
    num_devices = 1
    if self._recording is None:
      num_devices = min(self._facts['num_devices'], len(cohort.data))
    groups = self._fitting_groups(cohort, num_devices)
    self._worker.ask(
      {
        'command': 'begin',
        'num_broadcast': len(cohort.broadcast),
        'num_devices': num_devices,
      },
      [*cohort.broadcast, *cohort.zeros],
    )
    for number, (key, group) in enumerate(groups):
      self._worker.ask(
        {'command': 'add', 'key': key, 'device': number % num_devices},
        group.arrays,
      )
    return self._worker.ask({'command': 'end'})[1]

  def _export(
    self, cohort: jax_cohort.Cohort, group: client_arrays.Group, platform: str
  ) -> bytes:
    try:
      return cohort.programs.export(
        cohort.broadcast,
        cohort.zeros,
        group,
        platform=platform,
        matmul_precision=self._precision,
      )
    except (NotImplementedError, TypeError, ValueError) as error:
      raise _refusal(error) from error

  def _facts_to_record(
    self, compiled: rounds.Round
  ) -> tuple[Mapping[str, Any] | None, int | None]:
    """Returns a round's facts to record, and how many clients to check."""
    facts, self._next_facts = self._next_facts, None
    checked, self._next_checked = self._next_checked, None
    first = id(compiled) not in self._recorded
    self._recorded.add(id(compiled))
    if facts is None and first and self._recording is not None:
      facts = {'model': f'computation {len(self._recorded)}'}
    return facts, checked

  def _record(
    self,
    cohort: jax_cohort.Cohort,
    total: list[np.ndarray],
    checked: int | None,
    facts: Mapping[str, Any],
  ) -> None:
    """Adds a round to the recording, in groups as for an accelerator."""
    recording = self._recording
    assert recording is not None
    num_clients = len(cohort.data)
    size = min(self._recorded_group, client_arrays.power_of_two(num_clients))
    kept: dict[tuple, dict[str, str]] = {}
    groups, masks = [], []
    for group in cohort.groups(lambda _: size):
      if group.shapes not in kept:
        kept[group.shapes] = {
          platform: recording.add_program(self._export(cohort, group, platform))
          for platform in jax_recording.PLATFORMS
        }
      groups.append(
        {
          'programs': kept[group.shapes],
          'arrays': recording.add_arrays(group.arrays),
        }
      )
      counted = [
        number < (num_clients if checked is None else checked)
        for number in group.members
      ]
      masks.append(
        np.array(counted + [False] * (group.size - len(counted)), bool)
      )
    recording.add_round(
      {
        'facts': dict(facts),
        'matmul_precision': self._precision,
        'num_clients': num_clients,
        'num_steps': sum(
          max((stack.size for stack in client), default=0)
          for client in cohort.data
        ),
        'broadcast': recording.add_arrays(cohort.broadcast),
        'zeros': recording.add_arrays(cohort.zeros),
        'groups': groups,
        'checked': recording.add_arrays(masks),
        'sums': recording.add_arrays(total),
      }
    )


def start(
  python: str | None,
  device: str | None,
  clients_per_group: int | None,
  matmul_precision: str,
  record: str | None,
  memory_gib: float | None,
) -> JaxContext:
  """Makes TFF run clients with JAX; see `runtime.set_jax_context`."""
  context = JaxContext(
    python, device, clients_per_group, matmul_precision, record, memory_gib
  )
  context_stack_impl.context_stack.set_default_context(context)
  return context
