import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { HONOURED_ANNOTATIONS, UNHONOURED } from '../../../src/config/index.ts';
import { qemu } from '../../../src/hypervisor/index.ts';
import { qemuArgv, virtiofsdArgv, vsockDeviceArgv } from '../../../src/hypervisor/qemu/argv.ts';
import { validateSpec } from '../../../src/hypervisor/validate.ts';
import type { MachineSpec } from '../../../src/model/index.ts';
import { criSpec } from './support.ts';
import { Refused, ShimWorld } from './world.ts';

// Whatever a pod says of itself goes to the guest. On the host it changes nothing: each string below has a canary in it, which must
// sing nowhere, and what the engine does is compared with what it does for a pod that says nothing.

const CANARY = 'KaNaRy';
/** Of the mounts' sources: the one thing of the host that a pod names, and kubelet has checked. */
const SOURCE_CANARY = 'SoUrCe';

/** Everything that the engine asked of the host for one pod of two containers. */
interface Effects {
  refused: string[];
  /** VMM, virtiofsd and vsock device. */
  argv: string[][];
  /** What is shared with the guest, by its name there. */
  shares: [id: string, source: unknown][];
  /** Cgroups, network namespace, taps. */
  done: string[];
  /** Names and contents in the sandbox's directory, beside the records of what was asked. */
  files: [name: string, content: string][];
}

interface Pod {
  sandbox: Record<string, unknown>;
  container: Record<string, unknown>;
  /** Names of directories that the container's bind mounts have for sources. */
  sources: string[];
}

/** Records of what containerd asked; they are read by the engine alone, which parses them. */
const RECORDS = ['tasks.json', 'sandbox.json', 'journal.jsonl'];

function argvOf(spec: MachineSpec): string[][] {
  validateSpec(spec, qemu.capabilities);
  const { virtiofsd = '', vsockDevice = '' } = spec.binaries;
  const shares = spec.devices.flatMap((device) =>
    device.kind === 'fs' ? [virtiofsdArgv(virtiofsd, spec, device)] : [],
  );
  const vsock = spec.vsock.mode === 'hybrid' ? [vsockDeviceArgv(vsockDevice, spec.vsock.directory, 'v.sock')] : [];
  return [qemuArgv(spec), ...shares, ...vsock];
}

async function effectsOf(pod: Pod, configuration?: string): Promise<Effects> {
  const world = new ShimWorld();
  try {
    if (configuration !== undefined)
      writeFileSync(join(world.dir, 'configuration.toml'), configuration, { mode: 0o600 });
    world.start('sandbox');
    await world.boots();
    const refused: string[] = [];
    const create = async (id: string, spec: Record<string, unknown>): Promise<void> => {
      const bundle = world.bundle(id);
      const text = JSON.stringify(spec).replaceAll('"@', `"${join(world.dir, 'volumes')}/`);
      writeFileSync(join(bundle, 'config.json'), text);
      await world.call('Create', { id, bundle }).catch((error: unknown) => {
        if (!(error instanceof Refused)) throw error;
        refused.push(error.message);
      });
    };
    for (const name of pod.sources) mkdirSync(join(world.dir, 'volumes', name), { recursive: true });
    await create('pod', pod.sandbox);
    if (refused.length === 0) await create('one', pod.container);
    const { sources, done } = world.keeper;
    const names = readdirSync(world.runDir).sort();
    const plain = (value: unknown): string => JSON.stringify(value).replaceAll(world.dir, '<dir>');
    const effects = {
      argv: world.specs.flatMap(argvOf),
      shares: sources,
      done: [...done, ...world.cgroups],
      files: names.map((name) => [name, RECORDS.includes(name) ? '' : readFileSync(join(world.runDir, name), 'utf8')]),
    };
    const ending = world.running.sandboxes.get(world.uid)?.end('test');
    await ending?.gone;
    await world.gone();
    return { refused, ...JSON.parse(plain(effects)) };
  } finally {
    world.dispose();
  }
}

const CRI = 'io.kubernetes.cri.';
const sandboxOf = (change: Record<string, unknown>, annotations: Record<string, string>): Record<string, unknown> =>
  criSpec({
    ...change,
    annotations: { ...annotations, [`${CRI}container-type`]: 'sandbox', [`${CRI}sandbox-id`]: 'pod' },
  });
const containerOf = (change: Record<string, unknown>, annotations: Record<string, string>): Record<string, unknown> =>
  criSpec({
    ...change,
    annotations: { ...annotations, [`${CRI}container-type`]: 'container', [`${CRI}sandbox-id`]: 'pod' },
  });
const baseline = (sources: readonly string[], annotations: Record<string, string> = {}): Pod => ({
  sandbox: sandboxOf({}, annotations),
  container: containerOf({ mounts: sources.map((name) => bindOf(name, `/${name}`)) }, annotations),
  sources: [...sources],
});
const bindOf = (source: string, destination: string, options: readonly string[] = []) => ({
  destination,
  type: 'bind',
  source: `@${source}`,
  options: ['rbind', ...options],
});

// --- what a pod may say ---

const nasty = fc.constantFrom(
  ...[
    ',',
    ' ',
    '\n',
    '\0',
    '"',
    "'",
    '\\',
    '/../../etc',
    '-o source=/',
    '--sandbox=none',
    ',path=/etc/shadow',
    '$(id)',
    ';',
    '%n',
  ],
  ...[
    'agent.debug_console',
    ' init=/bin/sh ',
    '{"a":1}',
    '=',
    '#',
    '\u001b[31m',
    '\u202e',
    '__proto__',
    '-device',
    ']',
  ],
);
const word = fc.array(fc.oneof(nasty, fc.string({ maxLength: 12 }), fc.string({ unit: 'binary', maxLength: 6 })), {
  maxLength: 4,
});
/** Any text, with the canary in it. */
const hostile = word.map((parts) => [...parts.slice(0, 2), CANARY, ...parts.slice(2)].join(''));
const absolute = hostile.map((text) => `/${text}`);
/** A file's name, as nasty as the file system takes it. */
const fileName = word.map(
  (parts) =>
    `${SOURCE_CANARY}${parts
      .join('')
      .replace(/[/\0\ud800-\udfff]/g, '')
      .slice(0, 40)}`,
);
const strings = (max: number) => fc.array(hostile, { maxLength: max });
/** Of other name-spaces than Kata's, and not what containerd tells a runtime by. */
const annotation = fc.oneof(
  hostile,
  ...[
    'io.kubernetes.cri.',
    'io.kubernetes.cri-o.',
    'cdi.k8s.io/',
    'run.oci.',
    'io.containerd.',
    'io.katacontainers',
  ].map((prefix) => hostile.map((text) => `${prefix}${text}`.replace(/^io\.katacontainers\./, 'x'))),
  fc.constantFrom(
    `${CRI}image-name`,
    `${CRI}container-name`,
    `${CRI}sandbox-memory`,
    `${CRI}sandbox-cpu-quota`,
    `${CRI}sandbox-name`,
  ),
);
const annotations = fc.dictionary(annotation, hostile, { maxKeys: 4 });
const hooks = fc.dictionary(
  fc.constantFrom('prestart', 'createRuntime', 'poststart', 'poststop'),
  fc.array(fc.record({ path: absolute, args: strings(2), env: strings(2) }), { maxLength: 2 }),
);

const said = fc.record({
  hostname: hostile,
  args: strings(3),
  env: strings(3),
  cwd: absolute,
  username: hostile,
  sysctl: fc.dictionary(hostile, hostile, { maxKeys: 2 }),
  masked: fc.array(absolute, { maxLength: 2 }),
  device: absolute,
  hooks,
  propagation: hostile,
  annotations,
  mounts: fc.array(fc.record({ name: fileName, destination: absolute, options: strings(2) }), { maxLength: 3 }),
  tmpfs: fc.record({ destination: absolute, source: hostile, options: strings(2) }),
});
type Said = typeof said extends fc.Arbitrary<infer T> ? T : never;

function podOf(text: Said): Pod {
  const change = (base: Record<string, unknown>, mounts: readonly object[]): Record<string, unknown> => {
    const process = base.process as Record<string, unknown>;
    return {
      process: {
        ...process,
        args: ['/x', ...text.args],
        env: text.env,
        cwd: text.cwd,
        user: { ...(process.user as object), username: text.username },
      },
      hostname: text.hostname,
      hooks: text.hooks,
      mounts: [{ type: 'tmpfs', ...text.tmpfs }, ...mounts],
      linux: {
        ...(base.linux as object),
        sysctl: text.sysctl,
        maskedPaths: text.masked,
        rootfsPropagation: text.propagation,
        devices: [{ path: text.device, type: 'c', major: 10, minor: 232 }],
      },
    };
  };
  const binds = text.mounts.map(({ name, destination, options }) => bindOf(name, destination, options));
  return {
    sandbox: sandboxOf(change(criSpec(), []), text.annotations),
    container: containerOf(change(criSpec(), binds), text.annotations),
    sources: text.mounts.map(({ name }) => name),
  };
}

// --- what must hold ---

/** A share's name in the guest: of the task's id and a number. */
const SHARE_ID = /^(pod|one|[0-9a-f]{16}-m\d+)$/;

/** Throws where the pod's strings had an effect on the host. */
function checkEffects(effects: Effects, plain: Effects, pod: Pod): void {
  assert.ok(
    !JSON.stringify([effects.argv, effects.done, effects.files]).includes(CANARY),
    'a string of the pod is on the host',
  );
  assert.deepEqual(effects.argv, plain.argv);
  assert.deepEqual(effects.done, plain.done);
  assert.deepEqual(effects.files, plain.files);
  const allowed = new Set(pod.sources.map((name) => `<dir>/volumes/${name}`));
  for (const [id, source] of effects.shares) {
    assert.match(id, SHARE_ID);
    const { source: path, ...rest } = source as { source: string };
    assert.ok(allowed.has(path) || /^<dir>\/bundles\/(pod|one)\/rootfs$/.test(path), `${path} is shared`);
    assert.ok(!JSON.stringify(rest).includes(CANARY));
  }
}

/** A refused pod leaves the host alone. */
function checkRefused(effects: Effects): void {
  assert.deepEqual([effects.argv, effects.shares, effects.done], [[], [], []]);
  assert.deepEqual(
    effects.files.map(([name]) => name),
    ['door.json', 'sandbox.json', 'tasks.json'].filter((name) => effects.files.some(([one]) => one === name)),
  );
}

const RUNS = { numRuns: 40 };

test('whatever a pod says, programs, paths, cgroups and files on the host are those of a pod that says nothing', async () => {
  const plain = await effectsOf(baseline([]));
  assert.equal(plain.argv.length, 3);
  let taken = 0;
  await fc.assert(
    fc.asyncProperty(said, async (text) => {
      const pod = podOf(text);
      const effects = await effectsOf(pod);
      if (effects.argv.length === 0) return checkRefused(effects);
      taken += 1;
      checkEffects(effects, plain, pod);
    }),
    RUNS,
  );
  assert.ok(taken > RUNS.numRuns / 2, `${taken} pods were taken`);
});

const kataNames = [
  ...HONOURED_ANNOTATIONS,
  ...[...UNHONOURED.keys()].map((key) => `io.katacontainers.config.${key}`),
  ...['config_path', 'asset_hash_type', 'config.runtime.sandbox_bind_mounts', 'container.resource.swap_in_bytes'].map(
    (name) => `io.katacontainers.${name}`,
  ),
];
const kataName = fc.oneof(
  fc.constantFrom(...kataNames),
  hostile.map((text) => `io.katacontainers.${text}`),
);
const asked = fc.dictionary(kataName, fc.oneof(hostile, fc.constantFrom('1', 'true', 'never', '512')), {
  minKeys: 1,
  maxKeys: 4,
});

test('without a configuration every Kata annotation is refused, and the refused pod leaves the host alone', async () => {
  await fc.assert(
    fc.asyncProperty(asked, async (some) => {
      const effects = await effectsOf(baseline([], some));
      assert.match(effects.refused.join(), /annotation ".*" is not allowed|annotations: /s);
      checkRefused(effects);
    }),
    RUNS,
  );
});

/** Where an allowed annotation may make a difference, each with what may stand there. */
const OPEN: readonly [option: string, pattern: RegExp][] = [
  ['-smp', /^\d{1,3}(,maxcpus=\d{1,3},sockets=1,cores=\d{1,3},threads=1)?$/],
  ['-m', /^\d{3,7}M(,slots=\d{1,3},maxmem=\d{3,8}M)?$/],
  ['-object', /^memory-backend-file,id=mem,size=\d+,mem-path=\/proc\/self\/fd\/10,share=on$/],
  ['-cpu', /^max,-erms(,[a-z0-9_.-]+=(on|off))*$/],
  ['-M', /^q35,[a-z0-9=,-]+,hpet=(on|off)$/],
  ['-append', /^[A-Za-z0-9_.,:=/ -]+$/],
];
const FS_ARGUMENT =
  /^--(cache=(never|metadata|auto|always)|thread-pool-size=\d{1,2}|posix-acl|writeback|allow-direct-io)$/;

/** The argv without what an annotation may change, which is checked here. */
function closed([vmm = [], fs = [], ...rest]: readonly string[][]): string[][] {
  const masked = vmm.map((value, at) => {
    const open = OPEN.find(([option]) => option === vmm[at - 1]);
    if (open === undefined) return value;
    assert.match(value, open[1]);
    return open[0];
  });
  return [masked, fs.filter((argument) => !FS_ARGUMENT.test(argument)), ...rest];
}

const right = fc.record(
  Object.fromEntries(
    [
      ['default_vcpus', ['1', '2', '1.5']],
      ['default_memory', ['256', '1024', '3000']],
      ['kernel_params', ['mitigations=off', 'sysctl.vm.swappiness=1 quiet', '']],
      ['cpu_features', ['pmu=off', '']],
      ['virtio_fs_cache', ['never', 'always']],
      ['virtio_fs_extra_args', ['["--thread-pool-size=4"]', '["--writeback","-o","xattr"]']],
    ].map(([name, values]) => [
      `io.katacontainers.config.hypervisor.${name}`,
      fc.constantFrom(...(values as string[])),
    ]),
  ),
  { noNullPrototype: true, requiredKeys: [] },
) as fc.Arbitrary<Record<string, string>>;

test('where everything is allowed, annotations change numbers and words of a list, and nothing else', async () => {
  const configuration = '[hypervisor.qemu]\nenable_annotations = [".*"]\nvalid_hypervisor_paths = ["/*"]\n';
  const plain = await effectsOf(baseline([]), configuration);
  let taken = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.oneof(
        right,
        asked,
        fc.tuple(right, asked).map((both) => Object.assign({}, ...both)),
      ),
      async (some) => {
        const effects = await effectsOf(baseline([], some), configuration);
        if (effects.argv.length === 0) return checkRefused(effects);
        taken += 1;
        assert.ok(!JSON.stringify([effects.argv, effects.done, effects.shares]).includes(CANARY));
        assert.deepEqual(closed(effects.argv), closed(plain.argv));
        assert.deepEqual([effects.done, effects.shares], [plain.done, plain.shares]);
        assert.deepEqual(
          effects.files.map(([name]) => name),
          plain.files.map(([name]) => name),
        );
      },
    ),
    RUNS,
  );
  assert.ok(taken > 5, `${taken} pods were taken`);
});

test('the checks see a leak, wherever it is', async () => {
  const pod = baseline([`${SOURCE_CANARY}1`]);
  const plain = await effectsOf(pod);
  checkEffects(plain, plain, pod);
  assert.equal(plain.shares.length, 3);
  const spec = plain.argv[0] as string[];
  const leaks: [what: string, leak: Partial<Effects>][] = [
    ['a word of the pod on the command line', { argv: [[...spec, `${CANARY}`], ...plain.argv.slice(1)] }],
    ['one more argument', { argv: [[...spec, '-snapshot'], ...plain.argv.slice(1)] }],
    ['another cache', { argv: [spec, ['/virtiofsd', '--cache=never'], ...plain.argv.slice(2)] }],
    ['a cgroup of its own', { done: plain.done.map((one) => `${one}/pod`) }],
    ['a file of its own', { files: [...plain.files, ['x', '']] }],
    ['its hostname in a file', { files: plain.files.map(([name, content]) => [name, `${content}${CANARY}`]) }],
    ['a path that is not its own', { shares: [...plain.shares, ['one', { source: '/etc' }]] }],
    ['a name with a path', { shares: [['../x', plain.shares[0]?.[1]]] }],
  ];
  for (const [what, leak] of leaks) assert.throws(() => checkEffects({ ...plain, ...leak }, plain, pod), what);
  for (const planted of ['-append', '-smp', '-cpu', '-m'])
    assert.throws(
      () =>
        closed([spec.map((value, at) => (spec[at - 1] === planted ? `${value},"x` : value)), ...plain.argv.slice(1)]),
      planted,
    );
  assert.throws(() => checkRefused(plain));
});
