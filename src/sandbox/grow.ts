import type { Agent } from '../agent/index.ts';
import { formatBytes, KataError } from '../base/index.ts';
import type { Machine } from '../hypervisor/index.ts';
import type { MachineSize } from '../model/index.ts';
import { failpoint } from './failpoints.ts';
import type { SandboxRecord } from './records.ts';

const ONLINE_TIMEOUT_MS = 30_000;

/** Adds to the machine what it lacks and lets the guest take it into use. Answers what it has then; idempotent. */
export async function growMachine(
  { machine, agent }: { machine: Machine | undefined; agent: Agent },
  has: Pick<SandboxRecord, 'vcpus' | 'memoryBytes' | 'machineType'>,
  wanted: MachineSize,
  signal: AbortSignal,
): Promise<MachineSize> {
  if (machine?.grow === undefined)
    throw new KataError(
      'RESOURCE_EXHAUSTED',
      `${numbers(wanted)} are needed, the machine has ${numbers(has)} and cannot grow`,
      { phase: 'grow', hint: 'give the sandbox its whole size at the start' },
    );
  const { memoryBlockBytes } = await agent.guestDetails({ signal });
  if (memoryBlockBytes === 0 && wanted.memoryBytes > has.memoryBytes)
    throw new KataError(
      'RESOURCE_EXHAUSTED',
      `${numbers(wanted)} are needed, the machine has ${numbers(has)} and its kernel takes no memory in`,
      { phase: 'grow' },
    );
  const { vcpus, memoryBytes, added } = await machine.grow({ ...wanted, blockBytes: memoryBlockBytes }, { signal });
  failpoint('shim.grow-added');
  await agent.online({ vcpus, memory: added }, { signal, timeoutMs: ONLINE_TIMEOUT_MS });
  failpoint('shim.grow-online');
  return { vcpus, memoryBytes };
}

const numbers = ({ vcpus, memoryBytes }: MachineSize): string =>
  `${formatBytes(memoryBytes)} of memory and ${vcpus} processor${vcpus === 1 ? '' : 's'}`;
