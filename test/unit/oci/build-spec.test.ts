import assert from 'node:assert/strict';
import test from 'node:test';
import type { ErrorCode, KataError } from '../../../src/base/index.ts';
import {
  ALL_CAPABILITIES,
  buildExecProcess,
  buildSpec,
  type ContainerOptions,
  DEFAULT_CAPABILITIES,
  type ExecOptions,
  effectiveConfig,
  type ImageConfig,
  type ImageRuntimeConfig,
  INIT_PATH,
  imageVolumes,
  type SpecContext,
  stopSignalOf,
} from '../../../src/oci/index.ts';

const imageWith = (config: ImageRuntimeConfig = {}): ImageConfig => ({
  architecture: 'amd64',
  os: 'linux',
  config: { Cmd: ['sh'], ...config },
  rootfs: { type: 'layers', diff_ids: [] },
});
const context: SpecContext = { containerId: 'abcdef012345'.padEnd(64, '0'), rootPath: '/run/kata-containers/c/rootfs' };
const build = (options: ContainerOptions = {}, config: ImageRuntimeConfig = {}, more: Partial<SpecContext> = {}) =>
  buildSpec(imageWith(config), options, { ...context, ...more });
const isRefused = (code: ErrorCode, text: RegExp) => (error: KataError) => {
  assert.equal(error.code, code, error.stack);
  assert.match(error.message, text);
  return true;
};
const PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** Docker's table: user's entrypoint and command over the image's. */
const COMMANDS: [ContainerOptions, ImageRuntimeConfig, string[]][] = [
  [{}, { Cmd: ['c'] }, ['c']],
  [{}, { Entrypoint: ['e'], Cmd: ['c'] }, ['e', 'c']],
  [{}, { Entrypoint: ['e'], Cmd: undefined }, ['e']],
  [{ args: ['a'] }, { Cmd: ['c'] }, ['a']],
  [{ args: ['a', ''] }, { Entrypoint: ['e'], Cmd: ['c'] }, ['e', 'a', '']],
  [{ args: [] }, { Entrypoint: ['e'], Cmd: ['c'] }, ['e', 'c']],
  [{ entrypoint: ['x', 'y'] }, { Entrypoint: ['e'], Cmd: ['c'] }, ['x', 'y']],
  [{ entrypoint: ['x'], args: ['a'] }, { Entrypoint: ['e'], Cmd: ['c'] }, ['x', 'a']],
  [{ entrypoint: [], args: ['a'] }, { Entrypoint: ['e'], Cmd: ['c'] }, ['a']],
];
for (const [options, config, args] of COMMANDS)
  test(`command: ${JSON.stringify(options)} over ${JSON.stringify(config)}`, () => {
    assert.deepEqual(build(options, config).process.args, args);
  });

test('no command at all is refused', () => {
  for (const [options, config] of [
    [{}, { Cmd: undefined }],
    [{ entrypoint: [] }, { Entrypoint: ['e'], Cmd: ['c'] }],
  ] as const)
    assert.throws(() => build(options, config as ImageRuntimeConfig), isRefused('INVALID_ARGUMENT', /no command/));
});

test('environment: defaults, image, user; a name keeps its place', () => {
  assert.deepEqual(build().process.env, [PATH, 'HOSTNAME=abcdef012345']);
  assert.deepEqual(
    build(
      { env: ['B=user', 'C=', 'HOSTNAME=mine', 'B=last', 'D=a=b'], tty: true, hostname: 'h' },
      { Env: ['PATH=/image', 'A=1', 'B=image', 'novalue', '=x'] },
    ).process.env,
    ['PATH=/image', 'HOSTNAME=mine', 'TERM=xterm', 'A=1', 'B=last', 'C=', 'D=a=b'],
  );
  // A name alone takes away what the image or the engine would set.
  assert.deepEqual(build({ env: ['A', 'HOSTNAME', 'ABSENT', 'B=1', 'B'] }, { Env: ['A=1', 'C=1'] }).process.env, [
    PATH,
    'C=1',
  ]);
  for (const env of ['=value', ''])
    assert.throws(() => build({ env: [env] }), isRefused('INVALID_ARGUMENT', /not NAME=value/));
  assert.throws(() => build({ env: ['A=\0'] }), isRefused('INVALID_ARGUMENT', /NUL/));
});

test('directory: user, image, root; a relative one counts from the root', () => {
  assert.equal(build().process.cwd, '/');
  assert.equal(build({}, { WorkingDir: 'srv/app' }).process.cwd, '/srv/app');
  assert.equal(build({}, { WorkingDir: '' }).process.cwd, '/');
  assert.equal(build({ workdir: '/w/../x' }, { WorkingDir: '/srv' }).process.cwd, '/x');
});

test('user: names stay for the guest, numbers are filled in', () => {
  assert.deepEqual(build().process.user, { uid: 0, gid: 0, additionalGids: [] });
  const users: [string, number, number][] = [
    ['app', 0, 0],
    ['app:staff', 0, 0],
    ['1000', 1000, 0],
    ['1000:50', 1000, 50],
    ['app:50', 0, 50],
    ['0', 0, 0],
  ];
  for (const [user, uid, gid] of users)
    assert.deepEqual(build({ user }).process.user, { uid, gid, additionalGids: [], username: user });
  assert.equal(build({}, { User: 'image' }).process.user.username, 'image');
  assert.equal(build({ user: 'own' }, { User: 'image' }).process.user.username, 'own');
  for (const user of ['a:b:c', ':x', 'x:', 'a b', '2147483648', '1:4294967295'])
    assert.throws(() => build({ user }), isRefused('INVALID_ARGUMENT', /user "/));
});

test("capabilities: docker's, nothing effective for who is not root", () => {
  const { capabilities } = build().process;
  assert.deepEqual(capabilities, {
    bounding: [...DEFAULT_CAPABILITIES],
    effective: [...DEFAULT_CAPABILITIES],
    permitted: [...DEFAULT_CAPABILITIES],
    inheritable: [],
    ambient: [],
  });
  const user = build({ user: '1000' }).process.capabilities;
  assert.deepEqual([user.bounding.length, user.effective, user.permitted], [14, [], []]);
});

const CAPS: [string[], string[], string[]][] = [
  [['NET_ADMIN'], [], [...DEFAULT_CAPABILITIES, 'CAP_NET_ADMIN']],
  [['cap_chown'], [], [...DEFAULT_CAPABILITIES]],
  [[], ['chown', 'CAP_KILL'], DEFAULT_CAPABILITIES.filter((cap) => cap !== 'CAP_CHOWN' && cap !== 'CAP_KILL')],
  [['CHOWN'], ['CHOWN'], [...DEFAULT_CAPABILITIES.filter((cap) => cap !== 'CAP_CHOWN'), 'CAP_CHOWN']],
  [[], ['ALL'], []],
  [['SYS_TIME', 'CHOWN'], ['all'], ['CAP_CHOWN', 'CAP_SYS_TIME']],
  [['ALL'], [], [...ALL_CAPABILITIES]],
  [['ALL'], ['SYS_ADMIN'], ALL_CAPABILITIES.filter((cap) => cap !== 'CAP_SYS_ADMIN')],
];
for (const [capAdd, capDrop, expected] of CAPS)
  test(`capabilities: add ${capAdd}, drop ${capDrop}`, () => {
    assert.deepEqual(build({ capAdd, capDrop }).process.capabilities.bounding, expected);
  });

test('unknown capabilities are refused', () => {
  assert.throws(() => build({ capAdd: ['FLY'] }), isRefused('INVALID_ARGUMENT', /--cap-add: unknown capability "FLY"/));
  assert.throws(() => build({ capDrop: ['CAP_ALL'] }), isRefused('INVALID_ARGUMENT', /--cap-drop/));
  assert.equal(ALL_CAPABILITIES.length, 41);
});

test('security options', () => {
  assert.equal(build().process.noNewPrivileges, false);
  for (const [option, value] of [
    ['no-new-privileges', true],
    ['no-new-privileges=true', true],
    ['no-new-privileges:true', true],
    ['no-new-privileges=false', false],
  ] as const)
    assert.equal(build({ securityOpt: [option] }).process.noNewPrivileges, value);
  assert.equal(build({ securityOpt: ['seccomp=unconfined'] }).linux.seccomp, undefined);
  assert.equal(build({ securityOpt: ['seccomp:unconfined'] }).linux.seccomp, undefined);
  assert.deepEqual(
    build({ securityOpt: ['seccomp=unconfined', 'seccomp=builtin'] }).linux.seccomp,
    build().linux.seccomp,
  );
  const own = build({ securityOpt: ['seccomp={"defaultAction":"SCMP_ACT_LOG"}'] }).linux.seccomp;
  assert.equal(own?.defaultAction, 'SCMP_ACT_LOG');
  for (const option of ['apparmor=x', 'label=disable', 'seccomp', 'seccomp=', 'nonsense', 'Seccomp=unconfined'])
    assert.throws(() => build({ securityOpt: [option] }), isRefused('UNSUPPORTED_FLAG', /is not supported/));
  assert.throws(
    () => build({ securityOpt: ['no-new-privileges=maybe'] }),
    isRefused('INVALID_ARGUMENT', /true or false/),
  );
});

test("default mounts are docker's, parents first", () => {
  assert.deepEqual(
    build().mounts.map((mount) => `${mount.destination} ${mount.type} ${mount.options.join(',')}`),
    [
      '/proc proc nosuid,noexec,nodev',
      '/dev tmpfs nosuid,strictatime,mode=755,size=65536k',
      '/sys sysfs nosuid,noexec,nodev,ro',
      '/dev/pts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5',
      '/dev/mqueue mqueue nosuid,noexec,nodev',
      '/dev/shm tmpfs nosuid,noexec,nodev,mode=1777,size=65536k',
      '/sys/fs/cgroup cgroup ro,nosuid,noexec,nodev',
    ],
  );
});

test('own mounts replace default ones and follow their parents', () => {
  const bind = (destination: string) => ({
    destination,
    type: 'bind',
    source: `/src${destination}`,
    options: ['rbind'],
  });
  const { mounts } = build(
    { tmpfs: [{ target: '/a', options: [] }] },
    {},
    { mounts: [bind('/a/b/c'), bind('/a/b/'), bind('/dev/shm')], shmPath: '/run/shm' },
  );
  const destinations = mounts.map((mount) => mount.destination);
  assert.deepEqual(
    destinations.filter((path) => path.startsWith('/a')),
    ['/a', '/a/b', '/a/b/c'],
  );
  assert.deepEqual(
    mounts.filter((mount) => mount.destination === '/dev/shm').map((mount) => mount.source),
    ['/src/dev/shm'],
  );
  assert.equal(
    build({}, {}, { shmPath: '/run/shm' }).mounts.find((mount) => mount.destination === '/dev/shm')?.source,
    '/run/shm',
  );
  for (const destination of ['/', '//', '/x/..'])
    assert.throws(
      () => build({}, {}, { mounts: [bind(destination)] }),
      isRefused('INVALID_ARGUMENT', /root file system/),
    );
  assert.throws(
    () => build({}, {}, { mounts: [bind('/a'), bind('/a/')] }),
    isRefused('INVALID_ARGUMENT', /two mounts at \/a/),
  );
  assert.throws(
    () => build({ tmpfs: [{ target: '/a', options: [] }] }, {}, { mounts: [bind('/a')] }),
    isRefused('INVALID_ARGUMENT', /two mounts at \/a/),
  );
});

const TMPFS: [string[], string[]][] = [
  [[], ['noexec', 'nosuid', 'nodev', 'rprivate']],
  [
    ['exec', 'size=64m', 'mode=1777'],
    ['exec', 'nosuid', 'nodev', 'rprivate', 'size=64m', 'mode=1777'],
  ],
  [
    ['ro', 'rw', 'suid', 'size=1g', 'size=50%'],
    ['noexec', 'suid', 'nodev', 'rprivate', 'rw', 'size=50%'],
  ],
  [
    ['uid=1000', 'gid=5', 'nr_inodes=1k', 'noatime'],
    ['noexec', 'nosuid', 'nodev', 'rprivate', 'uid=1000', 'gid=5', 'nr_inodes=1k', 'noatime'],
  ],
];
for (const [options, expected] of TMPFS)
  test(`tmpfs: ${options.join(',')}`, () => {
    const mount = build({ tmpfs: [{ target: '/t', options }] }).mounts.find(({ destination }) => destination === '/t');
    assert.deepEqual(mount, { destination: '/t', type: 'tmpfs', source: 'tmpfs', options: expected });
  });

test("tmpfs options that are not tmpfs's are refused", () => {
  for (const option of ['bind', 'size=', 'size=x', 'size=1m,exec', 'mode=9', 'toString=1', 'ro=1', '', 'lowerdir=/'])
    assert.throws(
      () => build({ tmpfs: [{ target: '/t', options: [option] }] }),
      isRefused('INVALID_ARGUMENT', /--tmpfs \/t: option/),
    );
});

test('ulimits', () => {
  const limitsOf = (ulimits: ContainerOptions['ulimits']) => build({ ulimits }).process.rlimits;
  assert.deepEqual(limitsOf([]), [{ type: 'RLIMIT_NOFILE', soft: 1024n, hard: 524288n }]);
  assert.deepEqual(
    limitsOf([
      { name: 'nofile', soft: 10, hard: 20 },
      { name: 'core', soft: 0, hard: -1 },
      { name: 'core', soft: -1, hard: -1 },
    ]),
    [
      { type: 'RLIMIT_NOFILE', soft: 10n, hard: 20n },
      { type: 'RLIMIT_CORE', soft: 2n ** 64n - 1n, hard: 2n ** 64n - 1n },
    ],
  );
  for (const [name, soft, hard, text] of [
    ['nofile', 2, 1, /soft limit is above/],
    ['nofile', -1, 1, /soft limit is above/],
    ['nofile', -2, 1, /-1 \(unlimited\)/],
    ['files', 1, 1, /unknown limit/],
    ['NOFILE', 1, 1, /unknown limit/],
  ] as const)
    assert.throws(() => limitsOf([{ name, soft, hard }]), isRefused('INVALID_ARGUMENT', text));
});

test('resources', () => {
  const { memory, cpu, pids, devices } = build().linux.resources;
  assert.deepEqual([memory, cpu, pids], [undefined, undefined, undefined]);
  assert.deepEqual(devices[0], { allow: false, type: 'a', access: 'rwm' });
  assert.ok(devices.slice(1).every((rule) => rule.allow && (rule.access === 'm' || rule.major !== undefined)));
  const limited = build({ memoryBytes: 64 * 2 ** 20, cpus: 1.5, pidsLimit: 100 }).linux.resources;
  assert.deepEqual(
    [limited.memory, limited.cpu, limited.pids],
    [{ limit: 67108864 }, { quota: 150_000, period: 100_000 }, { limit: 100 }],
  );
  for (const pidsLimit of [0, -1]) assert.deepEqual(build({ pidsLimit }).linux.resources.pids, { limit: -1 });
  assert.throws(() => build({ memoryBytes: 6 * 2 ** 20 - 1 }), isRefused('INVALID_ARGUMENT', /--memory/));
  assert.throws(() => build({ cpus: 0.001 }), isRefused('INVALID_ARGUMENT', /--cpus/));
  assert.throws(() => build({ cpus: Number.NaN }), isRefused('INVALID_ARGUMENT', /--cpus/));
});

test("init runs the command from the guest's own program", () => {
  const { process, mounts } = build({ init: true, args: ['a', '-b'] });
  assert.deepEqual(process.args, [INIT_PATH, '--', 'a', '-b']);
  assert.deepEqual(
    mounts.find((mount) => mount.destination === INIT_PATH),
    {
      destination: INIT_PATH,
      type: 'bind',
      source: INIT_PATH,
      options: ['bind', 'ro', 'nosuid', 'nodev'],
    },
  );
});

test('the rest of the spec', () => {
  const { ociVersion, root, hostname, process, linux, annotations } = build(
    { readOnly: true, hostname: 'host', tty: true, consoleSize: { rows: 24, columns: 80 } },
    {},
    { annotations: { k: 'v' } },
  );
  assert.equal(ociVersion, '1.1.0');
  assert.deepEqual(root, { path: context.rootPath, readonly: true });
  assert.equal(hostname, 'host');
  assert.deepEqual([process.terminal, process.consoleSize], [true, { height: 24, width: 80 }]);
  assert.deepEqual(
    linux.namespaces.map(({ type }) => type),
    ['mount', 'uts', 'ipc', 'pid', 'cgroup'],
  );
  assert.deepEqual(annotations, { k: 'v' });
  assert.ok(linux.maskedPaths.includes('/proc/kcore') && linux.readonlyPaths.includes('/proc/sys'));
  assert.equal(linux.cgroupsPath, `/kata/${context.containerId}`);
  assert.equal(build().hostname, 'abcdef012345');
});

test('two specs share nothing that can be changed', () => {
  const one = build({ tmpfs: [{ target: '/t', options: [] }] });
  const two = structuredClone(one);
  for (const mount of one.mounts) mount.options.push('changed');
  for (const rule of one.linux.resources.devices) rule.access = '';
  for (const rule of one.linux.seccomp?.syscalls ?? []) rule.names.push('changed');
  one.linux.maskedPaths.push('/x');
  one.process.capabilities.bounding.push('x');
  one.process.rlimits[0] = { type: '', soft: 0n, hard: 0n };
  one.linux.sysctl.x = 'y';
  assert.deepEqual(build({ tmpfs: [{ target: '/t', options: [] }] }), two);
});

test("a stop signal: the user's, the image's, TERM", () => {
  assert.equal(stopSignalOf(imageWith(), undefined), 15);
  assert.equal(stopSignalOf(imageWith({ StopSignal: 'SIGQUIT' }), undefined), 3);
  assert.equal(stopSignalOf(imageWith({ StopSignal: 'SIGQUIT' }), 'INT'), 2);
  assert.equal(stopSignalOf(imageWith({ StopSignal: '' }), undefined), 15);
});

test('volumes of an image', () => {
  assert.deepEqual(
    imageVolumes(imageWith({ Volumes: { '/data': {}, '/b/../a/': {}, relative: {}, '/': {}, '/data/': {} } })),
    ['/a', '/data'],
  );
  assert.deepEqual(imageVolumes(imageWith()), []);
});

test("what docker's inspect shows: the image's configuration with the options over it", () => {
  const image = imageWith({
    Entrypoint: ['/entry'],
    Cmd: ['serve'],
    Env: ['A=image', 'B=image'],
    User: 'app',
    WorkingDir: '/srv',
    Volumes: { '/data/': {} },
    StopSignal: 'SIGQUIT',
  });
  assert.deepEqual(effectiveConfig(image, {}), {
    entrypoint: ['/entry'],
    cmd: ['serve'],
    env: ['A=image', 'B=image'],
    user: 'app',
    workdir: '/srv',
    volumes: ['/data'],
    stopSignal: 'SIGQUIT',
  });
  const options = {
    args: ['x'],
    env: ['B=own', 'C=1'],
    user: '7',
    workdir: '/',
    volumes: ['/mine'],
    stopSignal: 'INT',
  };
  assert.deepEqual(effectiveConfig(image, options), {
    entrypoint: ['/entry'],
    cmd: ['x'],
    env: ['B=own', 'C=1', 'A=image'],
    user: '7',
    workdir: '/',
    volumes: ['/data', '/mine'],
    stopSignal: 'INT',
  });
  const replaced = effectiveConfig(image, { entrypoint: [], args: [] });
  assert.deepEqual([replaced.entrypoint, replaced.cmd], [[], []]);
});

const exec = (options: ContainerOptions, more: Partial<ExecOptions>) =>
  buildExecProcess(build(options).process, { args: ['ls'], ...more });

test('exec inherits from the container', () => {
  const container = build({
    user: '5:6',
    workdir: '/w',
    env: ['A=1'],
    securityOpt: ['no-new-privileges'],
    capDrop: ['ALL'],
  });
  const process = buildExecProcess(container.process, { args: ['ls', '-l'] });
  assert.deepEqual(process, { ...container.process, args: ['ls', '-l'], terminal: false });
  assert.notEqual(process.env, container.process.env);
});

test('exec: own environment, directory, user, terminal', () => {
  const process = exec(
    { env: ['A=1', 'B=2'] },
    { env: ['A=x', 'C=3'], workdir: '/tmp', user: '7', tty: true, consoleSize: { rows: 1, columns: 2 } },
  );
  assert.deepEqual(process.env, ['TERM=xterm', PATH, 'HOSTNAME=abcdef012345', 'A=x', 'B=2', 'C=3']);
  assert.equal(
    exec({ env: ['TERM=dumb'] }, { tty: true }).env.find((entry) => entry.startsWith('TERM=')),
    'TERM=dumb',
  );
  assert.deepEqual(
    [process.cwd, process.user.uid, process.terminal, process.consoleSize],
    ['/tmp', 7, true, { height: 1, width: 2 }],
  );
  assert.deepEqual([process.capabilities.effective, process.capabilities.bounding.length], [[], 14]);
});

test('exec: privileged has every capability and may gain privileges', () => {
  const process = exec({ capDrop: ['ALL'], securityOpt: ['no-new-privileges'] }, { privileged: true });
  assert.deepEqual(process.capabilities.effective, [...ALL_CAPABILITIES]);
  assert.equal(process.noNewPrivileges, false);
});

test("exec: a root user of an exec in a container of another user holds the container's capabilities", () => {
  assert.deepEqual(exec({ user: '5' }, { user: '0' }).capabilities.effective, [...DEFAULT_CAPABILITIES]);
});

test('exec without a command is refused', () => {
  assert.throws(() => exec({}, { args: [] }), isRefused('INVALID_ARGUMENT', /no command/));
  assert.throws(() => exec({}, { env: ['=x'] }), isRefused('INVALID_ARGUMENT', /NAME=value/));
});
