import type { UpdateContainer } from '../api/index.ts';
import { formatBytes, KataError } from '../base/index.ts';
import { machineSize, type Sandbox } from '../sandbox/index.ts';
import type { Container } from './container.ts';
import type { Engine } from './engine.ts';
import { endRestarts } from './lifecycle.ts';

const CPU_PERIOD_US = 100_000;
const STATS_TIMEOUT_MS = 10_000;

/**
 * Changes limits. Of a running container the machine grows first where it is too small, then the guest's limits change: both are done, or
 * refused with the numbers, before the record says so. A machine never shrinks; the limits within it do.
 */
export async function update(engine: Engine, container: Container, body: UpdateContainer): Promise<void> {
  const { restart } = body;
  const { name } = container.record;
  if (restart !== undefined && container.record.config.autoRemove)
    throw new KataError('CONFLICT', `container ${name} is removed when it ends (--rm), not started again`);
  await container.mutex.run(async () => {
    const config = { ...container.record.config, ...body };
    if (container.isLive) await updateGuest(engine.sandboxOf(container), engine, container, body);
    else if (config.sandbox === undefined) machineSize(config, engine.capacity());
    engine.announce(container, [['update']], (told) => container.update({ config, ...told }));
    if (restart?.name === 'no') endRestarts(engine, container);
  });
}

async function updateGuest(
  sandbox: Sandbox,
  engine: Engine,
  { id, record }: Container,
  { cpus, memoryBytes, pidsLimit }: UpdateContainer,
): Promise<void> {
  const { agent } = sandbox.links;
  if (cpus === undefined && memoryBytes === undefined && pidsLimit === undefined) return;
  const wanted = { ...(cpus && { cpus }), ...(memoryBytes && { memoryBytes }) };
  if (memoryBytes !== undefined) {
    const { memoryBytes: used, memoryReclaimableBytes } = await agent.statsContainer(id, {
      timeoutMs: STATS_TIMEOUT_MS,
    });
    const needed = used - memoryReclaimableBytes;
    // The guest's kernel would end processes until the rest fits.
    if (needed > memoryBytes)
      throw new KataError(
        'RESOURCE_EXHAUSTED',
        `container ${record.name} uses ${formatBytes(needed)} of memory, a limit of ${formatBytes(memoryBytes)} is less`,
        { phase: 'update', hint: `ask for at least --memory ${Math.ceil(needed / 2 ** 20)}m, or end something in it` },
      );
  }
  const { vcpus, memoryBytes: machineBytes } = sandbox.record;
  const size = machineSize(wanted, engine.capacity());
  await sandbox.grow(
    {
      vcpus: cpus === undefined ? vcpus : Math.max(vcpus, size.vcpus),
      memoryBytes: memoryBytes === undefined ? machineBytes : Math.max(machineBytes, size.memoryBytes),
    },
    new AbortController().signal,
  );
  await agent.updateContainer(id, {
    ...(cpus === undefined ? {} : { cpuQuotaUs: Math.round(cpus * CPU_PERIOD_US), cpuPeriodUs: CPU_PERIOD_US }),
    ...(memoryBytes === undefined ? {} : { memoryLimitBytes: memoryBytes }),
    ...(pidsLimit === undefined ? {} : { pidsLimit }),
  });
}
