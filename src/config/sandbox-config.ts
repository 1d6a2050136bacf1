import * as z from 'zod';
import type { Configuration } from './configuration.ts';
import { LOG_LEVELS } from './honoured.ts';

const MIB = 2 ** 20;

/** What the configuration and the pod's annotations make of one sandbox; kept with it, because the files may change while it lives. */
export const SandboxConfig = z.object({
  version: z.literal(1),
  /** The files that it was read from. */
  files: z.array(z.string()),
  /** The `io.katacontainers.*` annotations of the pod, all of them allowed. */
  annotations: z.record(z.string(), z.string()),
  /** Of the machine, at least; a negative number: as many as the host has. */
  vcpus: z.number().optional(),
  /** Of the machine, at most. Absent: the host's. */
  maxVcpus: z.number().optional(),
  memoryBytes: z.number().optional(),
  maxMemoryBytes: z.number().optional(),
  cpuFeatures: z.array(z.string()),
  kernelParams: z.array(z.string()),
  sharedFs: z.object({
    cache: z.enum(['never', 'metadata', 'auto', 'always']),
    queueSize: z.number().int(),
    threads: z.number().int().optional(),
    posixAcl: z.literal(true).optional(),
    writeback: z.literal(true).optional(),
    directIo: z.literal(true).optional(),
  }),
  networkModel: z.enum(['tcfilter', 'macvtap', 'none']),
  /** Packets may go through the host's kernel. */
  vhostNet: z.boolean(),
  /** Everything of the sandbox on the host is in the pod's group; false: the threads of its processors alone. */
  sandboxCgroupOnly: z.boolean(),
  /** Containers run under the seccomp profile of their spec. */
  guestSeccomp: z.boolean(),
  kernelDebug: z.boolean(),
  agentLog: z.enum(LOG_LEVELS).optional(),
  bootTimeoutMs: z.number().optional(),
  createTimeoutMs: z.number().optional(),
});
export type SandboxConfig = z.infer<typeof SandboxConfig>;

export function sandboxConfig({ files, values }: Pick<Configuration, 'files' | 'values'>): SandboxConfig {
  const maxVcpus = values['hypervisor.default_maxvcpus'] ?? 0;
  const maxMemory = values['hypervisor.default_maxmemory'] ?? 0;
  const vcpus = values['hypervisor.default_vcpus'];
  const memory = values['hypervisor.default_memory'];
  const agentLog = values['agent.enable_debug'] === true ? 'debug' : values['agent.log_level'];
  const boot = values['agent.dial_timeout'];
  const create = values['runtime.create_container_timeout'] ?? values['agent.create_container_timeout'];
  return {
    version: 1,
    files: [...files],
    annotations: {},
    ...(vcpus === undefined ? {} : { vcpus: vcpus < 0 ? -1 : Math.max(1, Math.ceil(vcpus)) }),
    ...(maxVcpus === 0 ? {} : { maxVcpus }),
    ...(memory === undefined ? {} : { memoryBytes: memory * MIB }),
    ...(maxMemory === 0 ? {} : { maxMemoryBytes: maxMemory * MIB }),
    cpuFeatures: [...(values['hypervisor.cpu_features'] ?? [])],
    kernelParams: [...(values['hypervisor.kernel_params'] ?? [])],
    sharedFs: {
      cache: values['hypervisor.virtio_fs_cache'] ?? 'auto',
      queueSize: values['hypervisor.virtio_fs_queue_size'] ?? 1024,
      ...values['hypervisor.virtio_fs_extra_args'],
    },
    networkModel: values['runtime.internetworking_model'] ?? 'tcfilter',
    vhostNet: values['hypervisor.disable_vhost_net'] !== true,
    sandboxCgroupOnly: values['runtime.sandbox_cgroup_only'] !== false,
    guestSeccomp: values['runtime.disable_guest_seccomp'] !== true,
    kernelDebug: values['hypervisor.enable_debug'] === true,
    ...(agentLog === undefined ? {} : { agentLog }),
    ...(boot === undefined ? {} : { bootTimeoutMs: boot * 1000 }),
    ...(create === undefined ? {} : { createTimeoutMs: create * 1000 }),
  };
}
