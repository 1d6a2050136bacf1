import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { KataError } from '../../../src/base/index.ts';
import {
  type Configuration,
  configurationOf,
  DEFAULT_PATHS,
  HONOURED,
  readConfiguration,
  sandboxConfig,
  UNHONOURED,
} from '../../../src/config/index.ts';
import { readFsArguments } from '../../../src/config/virtiofs.ts';

const of = (text: string): Configuration => configurationOf([{ name: 'c.toml', text }]);
const problems = (text: string): readonly string[] => {
  try {
    of(text);
  } catch (error) {
    assert.ok(error instanceof KataError && error.code === 'INVALID_ARGUMENT', String(error));
    return error.evidence;
  }
  assert.fail(`it is taken: ${text}`);
};
const qemu = (line: string): string => `[hypervisor.qemu]\n${line}\n`;

const work = mkdtempSync(join(tmpdir(), 'kata-config-'));
after(() => rmSync(work, { recursive: true, force: true }));
let serial = 0;
const file = (path: string, text: string, dir = work): string => {
  const full = join(dir, path);
  mkdirSync(dirname(full), { recursive: true });
  writeFileSync(full, text, { mode: 0o644 });
  return full;
};
const fresh = (): string => {
  serial += 1;
  return join(work, String(serial));
};

test('without a configuration everything is as usual, and nothing is said', () => {
  const { values, warnings, files } = configurationOf([]);
  assert.deepEqual([values, warnings, files], [{}, [], []]);
  assert.deepEqual(sandboxConfig({ files: [], values: {} }), {
    version: 1,
    files: [],
    annotations: {},
    cpuFeatures: [],
    kernelParams: [],
    sharedFs: { cache: 'auto', queueSize: 1024 },
    networkModel: 'tcfilter',
    vhostNet: true,
    sandboxCgroupOnly: true,
    guestSeccomp: true,
    kernelDebug: false,
  });
});

for (const [dialect, expected] of [
  ['go', { annotations: 3, bootTimeoutMs: 45_000, createTimeoutMs: 60_000, kernelParams: 2 }],
  ['rust', { annotations: 5, bootTimeoutMs: undefined, createTimeoutMs: 30_000, kernelParams: 0 }],
] as const)
  test(`a file of the ${dialect} runtime is read, with a warning for what it asks for in vain and none for the rest`, () => {
    const path = join(import.meta.dirname, `fixtures/configuration-qemu-${dialect}.toml`);
    const configuration = readConfiguration({ path });
    const { values, warnings } = configuration;
    const config = sandboxConfig(configuration);
    assert.deepEqual(
      [config.memoryBytes, config.vcpus, config.maxVcpus, config.guestSeccomp, config.cpuFeatures, config.sharedFs],
      [2 ** 31, 1, undefined, false, ['pmu=off'], { cache: 'auto', queueSize: 1024, threads: 1 }],
    );
    assert.deepEqual(
      [values['hypervisor.enable_annotations']?.length, config.bootTimeoutMs, config.createTimeoutMs],
      [expected.annotations, expected.bootTimeoutMs, expected.createTimeoutMs],
    );
    assert.equal(config.kernelParams.length, expected.kernelParams);
    assert.ok(!warnings.some((warning) => warning.includes('is not known')), warnings.join('\n'));
    for (const key of ['path', 'kernel', 'image', 'entropy_source', 'dan_conf'])
      assert.ok(
        warnings.some(
          (warning) => /configuration-qemu-\w+\.toml:\d+: \[/.test(warning) && warning.includes(`] ${key} =`),
        ),
        `${key} in ${warnings.join('\n')}`,
      );
    // Asked for and so in any case: there is nothing to warn of.
    for (const key of ['enable_iommu', 'rootless', 'shared_fs', 'vfio_mode'])
      assert.ok(!warnings.some((warning) => warning.includes(` ${key} `)), key);
  });

test('every honoured key: what is right is taken, what is wrong is told with its place', () => {
  const table: [key: string, right: string[], wrong: string[]][] = [
    ['hypervisor.qemu.default_vcpus', ['1', '0', '-1', '1.5', '240'], ['-2', '241', '"1"', 'true', 'nan', 'inf']],
    ['hypervisor.qemu.default_maxvcpus', ['0', '240'], ['-1', '241', '1.5']],
    ['hypervisor.qemu.default_memory', ['128', '4194304'], ['127', '4194305', '0', '-1', '1.5', '"2048"']],
    ['hypervisor.qemu.default_maxmemory', ['0', '4194304'], ['-1', '4194305']],
    ['hypervisor.qemu.machine_type', ['"q35"'], ['"pc"', '"microvm"', '"q35,accel=kvm"', '1', '""']],
    [
      'hypervisor.qemu.cpu_features',
      ['""', '"pmu=off"', '"pmu=off,vmx=on"'],
      ['"pmu"', '"a=b"', '"pmu=off, x=on"', '1'],
    ],
    [
      'hypervisor.qemu.kernel_params',
      ['""', '"a=1  b"', '"agent.log=debug"', '"cgroup_no_v1=all"'],
      ['"init=/bin/sh"', '"rdinit=/x"', '"agent.ready_vport=7"', '"agent.server_addr=x"', '"a=\\"b c\\""', '"--"', '1'],
    ],
    ['hypervisor.qemu.shared_fs', ['"virtio-fs"'], ['"none"', '"virtio-9p"', '"inline-virtio-fs"']],
    ['hypervisor.qemu.virtio_fs_cache', ['"never"', '"metadata"', '"auto"', '"always"'], ['"none"', '""', '0']],
    ['hypervisor.qemu.virtio_fs_queue_size', ['64', '1024'], ['0', '63', '100', '2048', '"64"']],
    ['hypervisor.qemu.virtio_fs_extra_args', ['[]', '["--writeback"]'], ['["-o", "source=/"]', '"--xattr"', '[1]']],
    ['hypervisor.qemu.disable_vhost_net', ['true', 'false'], ['"true"', '1']],
    ['hypervisor.qemu.enable_debug', ['true', 'false'], ['"true"', '1']],
    ['hypervisor.qemu.enable_annotations', ['[]', '[".*"]', '["a|b", "c_.+"]'], ['["("]', '["(a+)+"]', '".*"', '[1]']],
    ['hypervisor.qemu.valid_hypervisor_paths', ['["/opt/*/qemu"]', '[]'], ['["relative"]', '["/a b"]', '"/a"']],
    ['agent.kata.enable_debug', ['true'], ['1']],
    ['agent.kata.log_level', ['"debug"', '"warn"'], ['"loud"']],
    ['agent.kata.dial_timeout', ['1', '86400'], ['0', '86401', '-1', '1.5']],
    ['agent.kata.create_container_timeout', ['1'], ['0']],
    ['runtime.create_container_timeout', ['1'], ['0']],
    ['runtime.hypervisor_name', ['"qemu"'], ['"clh"', '""']],
    ['runtime.agent_name', ['"kata"'], ['"other"']],
    ['runtime.internetworking_model', ['"tcfilter"', '"macvtap"', '"none"'], ['"bridge"', '""']],
    ['runtime.sandbox_cgroup_only', ['true', 'false'], ['1']],
    ['runtime.disable_guest_seccomp', ['true', 'false'], ['"no"']],
  ];
  const seen = new Set<string>();
  for (const [path, right, wrong] of table) {
    const parts = path.split('.');
    const key = `${parts[0]}.${parts.at(-1)}`;
    assert.ok(Object.hasOwn(HONOURED, key), key);
    seen.add(key);
    const toml = (value: string): string => `# first\n[${parts.slice(0, -1).join('.')}]\n${parts.at(-1)} = ${value}\n`;
    for (const value of right) {
      const { values, warnings } = of(toml(value));
      assert.deepEqual([Object.keys(values), warnings], [[key], []], toml(value));
    }
    for (const value of wrong) {
      const [problem = '', ...more] = problems(toml(value));
      assert.deepEqual(more, []);
      assert.match(problem, /^c\.toml:3: \[/, problem);
      assert.ok(problem.includes(`] ${parts.at(-1)} must be `), problem);
    }
  }
  const lists = Object.keys(HONOURED).filter((key) => key.includes('.valid_'));
  assert.deepEqual([...new Set([...seen, ...lists])].sort(), Object.keys(HONOURED).sort());
});

test('every key that is not honoured: of another type it is refused; with a value of its own it is named with the reason', () => {
  const samples = { boolean: ['true', 'false'], number: ['77'], string: ['"other"'], strings: ['["x"]'], any: ['1'] };
  const wrong = { boolean: '1', number: '"1"', string: 'true', strings: '"x"' };
  for (const [key, { kind, reason, holds }] of UNHONOURED) {
    const [section = '', ...rest] = key.split('.');
    const table = { hypervisor: 'hypervisor.qemu', agent: 'agent.kata' }[section] ?? section;
    const toml = (value: string): string => `[${table}]\n${rest.join('.').replace('*', 'any_key')} = ${value}\n`;
    if (kind !== 'any') assert.equal(problems(toml(wrong[kind])).length, 1, key);
    const isRefused = ['confidential_guest', 'sev_snp_guest', 'policy'].includes(rest[0] ?? '');
    for (const sample of samples[kind]) {
      if (holds.includes(JSON.parse(sample))) assert.deepEqual(of(toml(sample)).warnings, [], toml(sample));
      else if (isRefused) assert.match(problems(toml(sample))[0] ?? '', /cannot be had/);
      else {
        const { warnings } = of(toml(sample));
        assert.equal(warnings.length, 1, toml(sample));
        assert.ok(
          warnings[0]?.includes(`${rest.at(-1)?.replace('*', 'any_key')} = `) && warnings[0].endsWith(reason),
          key,
        );
      }
    }
  }
  assert.deepEqual(
    [...UNHONOURED.keys()].filter((key) => Object.hasOwn(HONOURED, key)),
    [],
  );
});

test('what nobody knows is named, at any depth, and changes nothing', () => {
  const { values, warnings } = of(
    'top = 1\n[hypervisor.qemu]\nno_such = 1\n[hypervisor.qemu.deep]\nx = 1\n[netmon]\npath = "/x"\n[agent.other]\ny = 1\n[__proto__]\nz = 1\n',
  );
  assert.deepEqual(values, {});
  assert.deepEqual(warnings, [
    'c.toml:1: top is not known',
    'c.toml:3: [hypervisor.qemu] no_such is not known',
    'c.toml:5: [hypervisor.qemu.deep] x is not known',
    'c.toml:7: [netmon] path is not known',
    'c.toml:9: [agent.other] y is not known',
    'c.toml:11: [__proto__] z is not known',
  ]);
  for (const name of ['constructor', 'toString', '__proto__', 'hasOwnProperty'])
    assert.equal(of(qemu(`${name} = 1`)).warnings.length, 1, name);
});

test('another hypervisor is refused where it is the one in use, and passed over where it is not', () => {
  assert.match(problems('[hypervisor.clh]\npath = "/x"\n')[0] ?? '', /c\.toml:2: \[hypervisor\.clh\] cannot be used/);
  assert.match(
    problems('[hypervisor.clh]\npath="/x"\n[runtime]\nhypervisor_name = "clh"\n')[0] ?? '',
    /hypervisor_name/,
  );
  const { warnings } = of(
    '[hypervisor.clh]\npath = "/x"\ndefault_memory = "wrong"\n[hypervisor.qemu]\ndefault_vcpus = 1\n',
  );
  assert.deepEqual(warnings, ['c.toml:2: [hypervisor.clh] is not the section in use']);
});

test('all problems are told together, and TOML that is none with its line', () => {
  assert.equal(problems('[hypervisor.qemu]\ndefault_vcpus = "x"\ndefault_memory = 1\nenable_iommu = 3\n').length, 3);
  assert.match(problems('[hypervisor.qemu]\ndefault_vcpus = \n')[0] ?? '', /^c\.toml:2: is no TOML/);
  assert.match(problems('a = 1\na = 2\n')[0] ?? '', /^c\.toml:2: is no TOML/);
  assert.match(problems(qemu('default_memory = 99999999999999999999'))[0] ?? '', /must be an integer/);
});

test('drop-ins: sorted by name, tables merged, everything else replaced; each value knows its place', () => {
  const dir = fresh();
  const base = file(
    'configuration.toml',
    qemu('default_vcpus = 2\ndefault_memory = 512\nvirtio_fs_extra_args = ["--writeback"]'),
    dir,
  );
  file('config.d/20-later.toml', qemu('default_memory = 1024\nvirtio_fs_extra_args = []'), dir);
  file('config.d/10-first.toml', `${qemu('default_memory = 768')}[runtime]\ndisable_guest_seccomp = true\n`, dir);
  file('config.d/ignored.conf', 'no toml', dir);
  const configuration = readConfiguration({ path: base });
  const config = sandboxConfig(configuration);
  assert.deepEqual(
    [config.vcpus, config.memoryBytes, config.sharedFs.writeback, config.guestSeccomp],
    [2, 2 ** 30, undefined, false],
  );
  assert.deepEqual(configuration.files, [
    base,
    join(dir, 'config.d/10-first.toml'),
    join(dir, 'config.d/20-later.toml'),
  ]);
  assert.equal(configuration.places.get('hypervisor.default_memory'), `${dir}/config.d/20-later.toml:2`);
  assert.equal(configuration.places.get('hypervisor.default_vcpus'), `${base}:2`);
});

test('drop-ins lie beside the file that a symbolic link names, where there are none beside the link', () => {
  const dir = fresh();
  file('real/configuration-qemu.toml', qemu('default_vcpus = 2'), dir);
  file('real/config.d/1.toml', qemu('default_vcpus = 3'), dir);
  symlinkSync('real/configuration-qemu.toml', join(dir, 'configuration.toml'));
  assert.equal(sandboxConfig(readConfiguration({ path: join(dir, 'configuration.toml') })).vcpus, 3);
});

test('the search: containerd’s path, its options’ text, the environment, upstream’s places; what is named must be there', () => {
  const root = fresh();
  const two = DEFAULT_PATHS.slice(0, 2);
  file(DEFAULT_PATHS[1] as string, qemu('default_vcpus = 2'), root);
  file('/named.toml', qemu('default_vcpus = 5'), root);
  file('/env.toml', qemu('default_vcpus = 6'), root);
  const vcpus = (search: object) => sandboxConfig(readConfiguration({ root, ...search })).vcpus;
  assert.equal(vcpus({}), 2);
  file(DEFAULT_PATHS[0] as string, qemu('default_vcpus = 3'), root);
  assert.equal(vcpus({}), 3);
  assert.equal(vcpus({ environment: '/env.toml' }), 6);
  assert.equal(vcpus({ path: '/named.toml', environment: '/env.toml', body: qemu('default_vcpus = 7') }), 5);
  assert.equal(vcpus({ path: '', environment: '/env.toml', body: qemu('default_vcpus = 7') }), 7);
  assert.equal(vcpus({ path: '', body: '', environment: '' }), 3);
  assert.deepEqual(readConfiguration({ root: fresh() }).files, []);
  assert.throws(() => vcpus({ path: '/nosuch.toml' }), { code: 'NOT_FOUND', message: /nosuch/ });
  assert.throws(() => vcpus({ environment: 'relative.toml' }), { code: 'INVALID_ARGUMENT' });
  assert.throws(() => vcpus({ path: '/etc' }), { code: 'INVALID_ARGUMENT', message: /is no file/ });
  assert.equal(two.length, 2);
});

test('a file that others than root can write is not believed', () => {
  const dir = fresh();
  const base = file('c.toml', qemu('default_vcpus = 2'), dir);
  chmodSync(base, 0o664);
  assert.throws(() => readConfiguration({ path: base }), { code: 'PERMISSION_DENIED', hint: /chmod/ });
  chmodSync(base, 0o644);
  const dropIn = file('config.d/x.toml', '', dir);
  chmodSync(dropIn, 0o666);
  assert.throws(() => readConfiguration({ path: base }), { code: 'PERMISSION_DENIED', message: /config\.d/ });
});

test('virtiofsd’s options become fields; whatever else is written is refused', () => {
  const table: [string[], object | undefined][] = [
    [[], {}],
    [['--thread-pool-size=1', '--announce-submounts'], { threads: 1 }],
    [['--thread-pool-size', '64', '-o', 'announce_submounts'], { threads: 64 }],
    [
      ['-o=writeback', '--posix-acl', '--allow-direct-io', '--xattr'],
      { writeback: true, posixAcl: true, directIo: true },
    ],
    [['--thread-pool-size=65'], undefined],
    [['--thread-pool-size=1 --sandbox=none'], undefined],
    [['--thread-pool-size'], undefined],
    [['-o', 'source=/'], undefined],
    [['-o'], undefined],
    [['--shared-dir=/'], undefined],
    [['--sandbox=none'], undefined],
    [['--seccomp=none'], undefined],
    [['--writeback=x'], undefined],
    [['__proto__'], undefined],
    [['-o', '__proto__'], undefined],
    [[''], undefined],
  ];
  for (const [words, expected] of table) assert.deepEqual(readFsArguments(words), expected, words.join(' '));
  const known = ['threads', 'posixAcl', 'writeback', 'directIo'];
  const word = fc.oneof(fc.string(), fc.constantFrom('-o', '--writeback', '--thread-pool-size', '3', 'source=/'));
  fc.assert(
    fc.property(fc.array(word, { maxLength: 5 }), (words) => {
      for (const [name, value] of Object.entries(readFsArguments(words) ?? {})) {
        assert.ok(known.includes(name));
        assert.ok(value === true || (Number.isInteger(value) && value >= 0 && value <= 64));
      }
    }),
  );
});

test('any text is read, or refused with places; it never throws anything else', () => {
  const line = fc.oneof(
    fc.string(),
    fc.constantFrom(
      '[hypervisor.qemu]',
      '[runtime]',
      '[[runtime]]',
      'default_vcpus = 1',
      'hypervisor = 1',
      'runtime.x = {}',
    ),
    fc
      .tuple(fc.constantFrom(...Object.keys(HONOURED)), fc.json())
      .map(([key, json]) => `${key.split('.')[1]} = ${json}`),
  );
  fc.assert(
    fc.property(fc.array(line, { maxLength: 8 }), (lines) => {
      try {
        of(lines.join('\n'));
      } catch (error) {
        assert.ok(error instanceof KataError && error.code === 'INVALID_ARGUMENT', String(error));
        assert.ok(error.evidence.every((one) => one.startsWith('c.toml')));
      }
    }),
    { numRuns: 500 },
  );
});

test('the fixtures name every key that is known of their dialect', () => {
  const text = ['go', 'rust']
    .map((dialect) => readFileSync(join(import.meta.dirname, `fixtures/configuration-qemu-${dialect}.toml`), 'utf8'))
    .join('\n');
  const named = Object.keys(HONOURED).filter((key) => text.includes(`${key.split('.')[1]} = `));
  assert.ok(named.length >= Object.keys(HONOURED).length - 4, `${named.length} of ${Object.keys(HONOURED).length}`);
});
