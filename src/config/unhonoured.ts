/** A key that upstream's runtimes know and nothing here can do. */
export interface Unhonoured {
  kind: Kind;
  reason: string;
  /** Values that ask for nothing that is not so in any case. */
  holds: readonly unknown[];
}
export type Kind = 'boolean' | 'number' | 'string' | 'strings' | 'any';

type Row = [keys: string, kind: Kind, holds: readonly unknown[]];

/** By reason; "section.key", several with spaces; `.*`: every key of a table. */
const TABLE: readonly [reason: string, ...rows: Row[]][] = [
  [
    'programs are those that set-up installed, kept by their digests: no upgrade changes them under a running machine',
    ['hypervisor.path hypervisor.ctlpath hypervisor.jailer_path hypervisor.virtio_fs_daemon', 'string', ['']],
  ],
  [
    'the guest image is one piece with its kernel, modules and agent: `kata guest build` makes it',
    ['hypervisor.kernel hypervisor.image hypervisor.initrd', 'string', []],
    ['hypervisor.firmware hypervisor.firmware_volume hypervisor.kernel_verity_params', 'string', ['']],
    ['hypervisor.rootfs_type hypervisor.vm_rootfs_driver', 'string', []],
    ['hypervisor.disable_image_nvdimm', 'boolean', [true]],
    ['hypervisor.guest_extension_images', 'any', []],
    ['hypervisor.pflashes', 'strings', []],
  ],
  [
    'the machine has no such device',
    ['hypervisor.entropy_source hypervisor.vhost_user_store_path hypervisor.machine_accelerators', 'string', ['']],
    ['hypervisor.enable_iommu hypervisor.enable_iommu_platform hypervisor.enable_vhost_user_store', 'boolean', [false]],
    ['hypervisor.use_legacy_serial', 'boolean', [false, true]],
    [
      'hypervisor.vhost_user_reconnect_timeout_sec hypervisor.pcie_root_port hypervisor.pcie_switch_port',
      'number',
      [0],
    ],
    ['hypervisor.cold_plug_vfio hypervisor.hot_plug_vfio', 'string', ['no-port']],
    ['hypervisor.default_bridges', 'number', [1]],
    ['hypervisor.default_gpus', 'number', [0]],
    ['hypervisor.default_gpu_model', 'string', ['']],
    ['runtime.vfio_mode', 'string', ['guest-kernel']],
    ['runtime.pod_resource_api_sock', 'string', ['']],
    ['agent.visible_cdi_devices', 'boolean', [false]],
  ],
  [
    "the guest's memory is one shared file without huge pages, preallocation, swap or ballooning",
    [
      'hypervisor.enable_hugepages hypervisor.enable_mem_prealloc hypervisor.enable_virtio_mem hypervisor.reclaim_guest_freed_memory hypervisor.enable_guest_swap hypervisor.enable_numa',
      'boolean',
      [false],
    ],
    ['hypervisor.hugepage_type', 'string', ['hugetlbfs']],
    ['hypervisor.file_mem_backend hypervisor.guest_swap_path', 'string', ['']],
    ['hypervisor.valid_file_mem_backends hypervisor.numa_mapping', 'strings', []],
    [
      'hypervisor.memory_slots hypervisor.guest_swap_size_percent hypervisor.guest_swap_create_threshold_secs',
      'number',
      [],
    ],
    ['hypervisor.memory_offset', 'number', [0]],
    ['agent.mem_agent.*', 'any', [false]],
  ],
  [
    'the size of a machine follows from its pod’s limits, as docs/containerd.md says',
    ['hypervisor.overhead_vcpus hypervisor.overhead_memory', 'number', []],
  ],
  [
    'a machine starts with the limits its pod names and grows when a container asks for more',
    ['runtime.static_sandbox_resource_mgmt', 'boolean', [false]],
  ],
  [
    'files are shared over virtio-fs without a DAX window',
    ['hypervisor.virtio_fs_cache_size hypervisor.msize_9p', 'number', [0]],
    ['hypervisor.virtio_fs_is_dax', 'boolean', [false]],
  ],
  [
    'block devices and the snapshots of block snapshotters are virtio-blk disks whose requests QEMU’s threads carry out',
    ['hypervisor.disable_block_device_use', 'boolean', [false]],
    ['hypervisor.block_device_driver', 'string', ['virtio-blk', 'virtio-blk-pci']],
    ['hypervisor.block_device_aio', 'string', ['threads']],
    [
      'hypervisor.block_device_cache_set hypervisor.block_device_cache_direct hypervisor.block_device_cache_noflush hypervisor.enable_iothreads',
      'boolean',
      [false],
    ],
    [
      'hypervisor.block_device_logical_sector_size hypervisor.block_device_physical_sector_size hypervisor.indep_iothreads hypervisor.disk_rate_limiter_bw_max_rate hypervisor.disk_rate_limiter_bw_one_time_burst hypervisor.disk_rate_limiter_ops_max_rate hypervisor.disk_rate_limiter_ops_one_time_burst',
      'number',
      [0],
    ],
    ['hypervisor.queue_size hypervisor.num_queues', 'number', []],
  ],
  [
    'every other file and volume of a container comes over virtio-fs from the host',
    ['hypervisor.prefetch_list_path', 'string', ['']],
    ['runtime.disable_guest_empty_dir', 'boolean', [true]],
    ['runtime.emptydir_mode', 'string', ['shared-fs']],
    ['runtime.experimental_force_guest_pull', 'boolean', [false]],
    ['runtime.shared_mounts', 'any', []],
    ['runtime.sandbox_bind_mounts', 'strings', []],
    ['runtime.kubelet_root_dir', 'string', ['/var/lib/kubelet', '']],
  ],
  [
    'cards have one queue pair and no limit of their own, and come from the namespace of the pod alone',
    [
      'hypervisor.rx_rate_limiter_max_rate hypervisor.tx_rate_limiter_max_rate hypervisor.net_rate_limiter_bw_max_rate hypervisor.net_rate_limiter_bw_one_time_burst hypervisor.net_rate_limiter_ops_max_rate hypervisor.net_rate_limiter_ops_one_time_burst',
      'number',
      [0],
    ],
    ['hypervisor.network_queues', 'number', [1]],
    ['runtime.disable_new_netns', 'boolean', [false]],
    ['runtime.dan_conf', 'string', ['']],
  ],
  [
    'the machine would not be what it says: there is no confidential computing here',
    ['hypervisor.confidential_guest hypervisor.sev_snp_guest', 'boolean', [false]],
    ['hypervisor.snp_id_block hypervisor.snp_id_auth hypervisor.initdata', 'string', ['']],
    ['hypervisor.measurement_algo', 'string', []],
    ['hypervisor.snp_guest_policy', 'number', []],
    ['hypervisor.tdx_quote_generation_service_socket_port hypervisor.qgs_port', 'number', [0]],
    ['agent.policy', 'string', ['']],
    ['agent.cdh_api_timeout agent.cdh_api_timeout_ms agent.launch_process_timeout', 'number', [0]],
  ],
  [
    'the VMM always runs as root in its own cgroup under its seccomp filter, without SELinux labels',
    ['hypervisor.rootless hypervisor.disable_seccomp', 'boolean', [false]],
    ['hypervisor.rootless_user.*', 'any', []],
    [
      'hypervisor.seccompsandbox hypervisor.seccomp_sandbox',
      'string',
      ['', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
    ],
    ['hypervisor.disable_selinux hypervisor.disable_guest_selinux', 'boolean', [true]],
    ['hypervisor.selinux_label runtime.guest_selinux_label', 'string', ['']],
    ['runtime.enable_vcpus_pinning', 'boolean', [false]],
  ],
  [
    'there is no such facility for watching and debugging',
    ['runtime.enable_debug runtime.enable_tracing runtime.enable_pprof runtime.keep_abnormal', 'boolean', [false]],
    ['runtime.log_level', 'string', ['info']],
    ['runtime.jaeger_endpoint runtime.jaeger_user runtime.jaeger_password', 'string', ['']],
    ['agent.enable_tracing agent.debug_console_enabled', 'boolean', [false]],
    ['hypervisor.extra_monitor_socket hypervisor.dbg_monitor_socket hypervisor.guest_memory_dump_path', 'string', ['']],
    ['hypervisor.guest_memory_dump_paging', 'boolean', [false]],
    ['hypervisor.hypervisor_loglevel', 'number', [1]],
    ['hypervisor.log_level', 'string', ['info']],
  ],
  [
    'hooks are not run, and modules are loaded when the guest’s kernel asks for them',
    ['hypervisor.guest_hook_path', 'string', ['']],
    ['agent.kernel_modules', 'strings', []],
  ],
  [
    'the guest tells when it is ready, and its ports are fixed: nothing is dialled again and again',
    ['agent.dial_timeout_ms agent.reconnect_timeout_ms agent.health_check_request_timeout_ms', 'number', []],
    ['agent.server_port', 'number', [1024]],
    ['agent.log_port', 'number', [1025]],
    ['agent.passfd_listener_port runtime.passfd_listener_port', 'number', [1027, 0]],
    ['agent.container_pipe_size', 'number', [0]],
    ['runtime.use_passfd_io', 'boolean', [true, false]],
  ],
  [
    'there are no templates and no cache of machines',
    ['factory.enable_template hypervisor.boot_to_be_template hypervisor.boot_from_template', 'boolean', [false]],
    ['factory.template_path factory.vm_cache_endpoint', 'string', []],
    ['hypervisor.memory_path hypervisor.device_state_path', 'string', ['']],
    ['factory.vm_cache_number', 'number', [0]],
  ],
  [
    'there is one hypervisor, which runs on this host',
    ['hypervisor.disable_nesting_checks hypervisor.disable_nested_virtualization', 'boolean', [true, false]],
    ['hypervisor.remote_hypervisor_socket hypervisor.hypervisor_socket', 'string', ['']],
    ['hypervisor.remote_hypervisor_timeout hypervisor.hypervisor_timeout', 'number', []],
    ['runtime.name', 'string', ['virt_container']],
    ['runtime.experimental', 'strings', []],
  ],
];

export const UNHONOURED: ReadonlyMap<string, Unhonoured> = new Map(
  TABLE.flatMap(([reason, ...rows]) =>
    rows.flatMap(([keys, kind, holds]) =>
      keys.split(' ').map((key): [string, Unhonoured] => [key, { kind, reason, holds }]),
    ),
  ),
);

/** A key's entry, or its table's. */
export function unhonoured(key: string): Unhonoured | undefined {
  return UNHONOURED.get(key) ?? UNHONOURED.get(`${key.slice(0, key.lastIndexOf('.'))}.*`);
}

const SHAPES: Readonly<Record<Kind, (value: unknown) => boolean>> = {
  boolean: (value) => typeof value === 'boolean',
  number: (value) => typeof value === 'number' && Number.isFinite(value),
  string: (value) => typeof value === 'string',
  strings: (value) => Array.isArray(value) && value.every((one) => typeof one === 'string'),
  any: () => true,
};

export const hasShape = ({ kind }: Unhonoured, value: unknown): boolean => SHAPES[kind](value);

/** Nothing is missing where it asks for nothing else than what is so. */
export const isSatisfied = ({ holds }: Unhonoured, value: unknown): boolean =>
  holds.includes(value) || (Array.isArray(value) && value.length === 0);

/** Refused where they ask for something: with a warning only, a pod would have less protection than its administrator counts on. */
export const REFUSED: readonly string[] = ['hypervisor.confidential_guest', 'hypervisor.sev_snp_guest', 'agent.policy'];
