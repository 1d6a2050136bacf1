import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { KataError } from '../../../src/base/index.ts';
import {
  type Configuration,
  checkContainer,
  configurationOf,
  HONOURED_ANNOTATIONS,
  type PodConfiguration,
  podConfiguration,
} from '../../../src/config/index.ts';
import { isPattern, matches, matchesGlob } from '../../../src/config/pattern.ts';

const HYPERVISOR = 'io.katacontainers.config.hypervisor.';
const RUNTIME = 'io.katacontainers.config.runtime.';
const AGENT = 'io.katacontainers.config.agent.';

const allowing = (patterns: readonly string[], more = ''): Configuration =>
  configurationOf([
    { name: '/etc/c.toml', text: `[hypervisor.qemu]\nenable_annotations = ${JSON.stringify(patterns)}\n${more}\n` },
  ]);
const ALL = allowing(['.*']);
const pod = (annotations: Record<string, string>, configuration = ALL): PodConfiguration =>
  podConfiguration(configuration, annotations);
const plain = pod({}).config;
/** What the annotations change, beside that they are kept. */
const changed = (annotations: Record<string, string>, configuration = ALL): object => {
  const { config } = pod(annotations, configuration);
  assert.deepEqual(config.annotations, annotations);
  return Object.fromEntries(
    Object.entries(config).filter(
      ([name, value]) =>
        name !== 'annotations' && JSON.stringify(value) !== JSON.stringify(plain[name as keyof typeof plain]),
    ),
  );
};
const refused = (code: string, pattern: RegExp, call: () => unknown): KataError => {
  try {
    call();
  } catch (error) {
    assert.ok(error instanceof KataError && error.code === code, String(error));
    assert.match(`${error.message}\n${error.evidence.join('\n')}\n${error.hint}`, pattern);
    return error;
  }
  assert.fail('it is taken');
};

test('an annotation is refused unless it is allowed: the error has its name, the list, and what would allow it', () => {
  const none = configurationOf([]);
  for (const name of [...HONOURED_ANNOTATIONS, 'io.katacontainers.anything', 'io.katacontainers.'])
    refused('PERMISSION_DENIED', /is not allowed/, () => pod({ [name]: '1' }, none));
  const error = refused('PERMISSION_DENIED', /\/etc\/c\.toml: \["kernel_params"\]/, () =>
    pod({ [`${HYPERVISOR}default_memory`]: '512' }, allowing(['kernel_params'])),
  );
  assert.match(error.message, /"io\.katacontainers\.config\.hypervisor\.default_memory"/);
  assert.match(error.hint ?? '', /"default_memory" to enable_annotations/);
  refused('PERMISSION_DENIED', /there is none/, () => pod({ [`${HYPERVISOR}default_memory`]: '512' }, none));
});

test('the other runtimes’ annotations and Kubernetes’ own are no concern', () => {
  const annotations = {
    'io.kubernetes.cri.sandbox-id': 'x',
    'io.kubernetes.cri-o.ContainerType': 'sandbox',
    'cri-o.io/x': 'y',
    'run.oci.io/x': 'y',
    'io.katacontainer.x': 'y',
    'IO.KATACONTAINERS.x': 'y',
    'x.io.katacontainers.config_path': '/x',
  };
  const { config, warnings } = podConfiguration(configurationOf([]), annotations);
  assert.deepEqual([config.annotations, warnings], [{}, []]);
});

test('names are matched as a whole, in every section alike', () => {
  const only = allowing(['default_memory', 'kernel_p.*', 'a|create_container_timeout']);
  for (const name of [`${HYPERVISOR}default_memory`, `${HYPERVISOR}kernel_params`])
    pod({ [name]: name.endsWith('s') ? '' : '512' }, only);
  assert.deepEqual(changed({ [`${RUNTIME}create_container_timeout`]: '5' }, only), { createTimeoutMs: 5000 });
  for (const name of ['xdefault_memory', 'default_memory2', 'default_vcpus', 'akernel_params'])
    refused('PERMISSION_DENIED', /not allowed/, () => pod({ [`${HYPERVISOR}${name}`]: '1' }, only));
  // The sections have one list: none is open.
  refused('PERMISSION_DENIED', /not allowed/, () => pod({ [`${RUNTIME}disable_guest_seccomp`]: 'true' }, only));
  refused('PERMISSION_DENIED', /not allowed/, () => pod({ [`${AGENT}kernel_modules`]: 'x' }, only));
});

test('what an allowed annotation does, and its range', () => {
  const table: [name: string, right: [string, object][], wrong: string[]][] = [
    [
      `${HYPERVISOR}default_vcpus`,
      [
        ['2', { vcpus: 2 }],
        ['1.5', { vcpus: 2 }],
      ],
      ['-2', '241', '1e2', ' 1', '0x2', '', 'NaN', '٣'],
    ],
    [`${HYPERVISOR}default_max_vcpus`, [['4', { maxVcpus: 4 }]], ['-1', '1.5', '999']],
    [
      `${HYPERVISOR}default_memory`,
      [['512', { memoryBytes: 2 ** 29 }]],
      ['1', '-512', '512M', '99999999999999999999', '5e2'],
    ],
    [
      `${HYPERVISOR}cpu_features`,
      [['pmu=off,vmx=on', { cpuFeatures: ['pmu=off', 'vmx=on'] }]],
      ['pmu', 'a=on b=on', 'x=on,-smp=9'],
    ],
    [
      `${HYPERVISOR}kernel_params`,
      [
        [
          'mitigations=off sysctl.net.core.somaxconn=9',
          { kernelParams: ['mitigations=off', 'sysctl.net.core.somaxconn=9'] },
        ],
      ],
      [
        'agent.debug_console',
        'agent.log=debug',
        'init=/bin/sh',
        'rdinit=/x',
        'root=/dev/vda',
        '--',
        'a"b',
        'mitigations=off\tx',
        'mitigations=off\nquiet',
        'module_blacklist=x',
        'panic=0',
        'console=tty0',
        'initcall_blacklist=x',
      ],
    ],
    [`${HYPERVISOR}machine_type`, [['q35', {}]], ['microvm', 'q35,accel=kvm']],
    [`${HYPERVISOR}shared_fs`, [['virtio-fs', {}]], ['none', 'virtio-9p']],
    [
      `${HYPERVISOR}virtio_fs_cache`,
      [['never', { sharedFs: { cache: 'never', queueSize: 1024 } }]],
      ['none', 'auto --sandbox=none'],
    ],
    [
      `${HYPERVISOR}virtio_fs_extra_args`,
      [['["--thread-pool-size=4"]', { sharedFs: { cache: 'auto', queueSize: 1024, threads: 4 } }]],
      [
        '["-o","source=/"]',
        '["--shared-dir=/"]',
        '--writeback',
        '[1]',
        '{',
        '["--sandbox=none"]',
        '["--modcaps=+sys_admin"]',
      ],
    ],
    [
      `${HYPERVISOR}disable_vhost_net`,
      [
        ['true', { vhostNet: false }],
        ['false', {}],
      ],
      ['1', 'True', ''],
    ],
    [`${RUNTIME}disable_guest_seccomp`, [['true', { guestSeccomp: false }]], ['yes', '1']],
    [`${RUNTIME}create_container_timeout`, [['5', { createTimeoutMs: 5000 }]], ['0', '-1', '86401', '1s']],
    [`${RUNTIME}internetworking_model`, [['tcfilter', {}]], ['bridge', '']],
  ];
  for (const [name, right, wrong] of table) {
    for (const [value, expected] of right) assert.deepEqual(changed({ [name]: value }), expected, `${name}=${value}`);
    for (const value of wrong)
      assert.match(
        refused('INVALID_ARGUMENT', /must be/, () => pod({ [name]: value })).message,
        new RegExp(`^annotation ${name.replaceAll('.', '\\.')} must be `),
      );
  }
  assert.deepEqual(table.map(([name]) => name).sort(), [...HONOURED_ANNOTATIONS].sort());
});

test('a pod stays within the administrator’s bounds', () => {
  const bounded = allowing(['.*'], 'default_maxmemory = 1024\ndefault_maxvcpus = 2\n');
  assert.equal(pod({ [`${HYPERVISOR}default_memory`]: '1024' }, bounded).config.memoryBytes, 2 ** 30);
  refused('INVALID_ARGUMENT', /from 1 to 1024 MiB/, () => pod({ [`${HYPERVISOR}default_memory`]: '1025' }, bounded));
  for (const [name, value] of [
    ['default_vcpus', '3'],
    ['default_vcpus', '-1'],
    ['default_max_vcpus', '3'],
    ['default_max_vcpus', '0'],
  ])
    refused('INVALID_ARGUMENT', /from 1 to 2 processors/, () =>
      pod({ [`${HYPERVISOR}${name}`]: value as string }, bounded),
    );
});

test('some are refused whatever is allowed: they would name files of the host', () => {
  for (const name of ['io.katacontainers.config_path', `${RUNTIME}sandbox_bind_mounts`])
    refused('PERMISSION_DENIED', /a pod does not choose/, () => pod({ [name]: '/' }));
  for (const name of ['confidential_guest', 'sev_snp_guest'])
    refused('INVALID_ARGUMENT', /cannot be had/, () => pod({ [`${HYPERVISOR}${name}`]: 'true' }));
});

test('a path is taken only where a list of the configuration has it, and even then does nothing', () => {
  const listed = allowing(['.*'], 'valid_hypervisor_paths = ["/opt/*/bin/qemu-?"]\n');
  const { config, warnings } = pod({ [`${HYPERVISOR}path`]: '/opt/kata/bin/qemu-8' }, listed);
  assert.deepEqual({ ...config, annotations: {} }, { ...plain, files: ['/etc/c.toml'] });
  assert.match(warnings.join(), /hypervisor\.path = "\/opt\/kata\/bin\/qemu-8" is not honoured/);
  for (const path of [
    '/bin/sh',
    '/opt/kata/x/bin/qemu-8',
    '/opt/../bin/qemu-8',
    '/opt/./bin/qemu-8',
    'opt/k/bin/qemu-8',
    '',
  ])
    refused('INVALID_ARGUMENT', /valid_hypervisor_paths/, () => pod({ [`${HYPERVISOR}path`]: path }, listed));
  for (const name of [
    'kernel',
    'image',
    'initrd',
    'firmware',
    'guest_hook_path',
    'jailer_path',
    'virtio_fs_daemon',
    'entropy_source',
  ])
    refused('INVALID_ARGUMENT', /must be a path/, () => pod({ [`${HYPERVISOR}${name}`]: '/bin/sh' }, listed));
});

test('what is allowed and not honoured is named with the reason; what nobody knows, too', () => {
  const { config, warnings } = pod({
    [`${HYPERVISOR}enable_hugepages`]: 'true',
    [`${AGENT}kernel_modules`]: 'x',
    [`${RUNTIME}hypervisor_name`]: 'clh',
    'io.katacontainers.container.resource.swappiness': '60',
    'io.katacontainers.no.such': '\u001b[31m',
  });
  assert.deepEqual({ ...config, annotations: {} }, plain);
  assert.deepEqual(
    warnings.map((warning) => warning.replace(/^annotation io\.katacontainers\./, '').slice(0, 72)),
    [
      'config.hypervisor.enable_hugepages = "true" is not honoured: the guest\'s m',
      'config.agent.kernel_modules = "x" is not honoured: hooks are not run, an',
      'config.runtime.hypervisor_name = "clh" is not honoured: it is not for pod',
      'container.resource.swappiness = "60" is not honoured: it is not known',
      'no.such = "\\u001b[31m" is not honoured: it is not known',
    ].map((line) => line.slice(0, 72)),
  );
});

test('a container has its pod’s annotations, and none of its own for the machine', () => {
  const memory = { [`${HYPERVISOR}default_memory`]: '512' };
  const { config } = pod(memory);
  const never = (): Configuration => assert.fail('read for nothing');
  assert.deepEqual(checkContainer(config, never, { ...memory, 'io.kubernetes.cri.sandbox-id': 'x' }), []);
  refused('INVALID_ARGUMENT', /not its pod's/, () =>
    checkContainer(config, () => ALL, { [`${HYPERVISOR}default_memory`]: '1024' }),
  );
  refused('PERMISSION_DENIED', /not allowed/, () =>
    checkContainer(config, () => allowing([]), { 'io.katacontainers.container.resource.swappiness': '1' }),
  );
  assert.match(
    checkContainer(config, () => ALL, { 'io.katacontainers.container.resource.swappiness': '1' }).join(),
    /swappiness = "1" is not honoured/,
  );
});

test('too many annotations are refused before they are read', () => {
  const many = Object.fromEntries(Array.from({ length: 65 }, (_, at) => [`io.katacontainers.x${at}`, '']));
  refused('INVALID_ARGUMENT', /65 annotations/, () => pod(many));
});

test('patterns whose time could explode are none; the others take any name at once', () => {
  for (const pattern of [
    '',
    'a',
    '.*',
    'default_.*',
    '(a|b)_c',
    '[a-z]+',
    'a.*b.*c.*',
    'a{1,3}',
    '^x$',
    '\\.',
    '[(+*]',
  ])
    assert.ok(isPattern(pattern), pattern);
  for (const pattern of [
    '(a+)+',
    '(a|a)*',
    '(.*){9}',
    '([a-z]+)?x',
    'a*a*a*a*',
    '(?=a)',
    '(a)\\1',
    '\\k<x>',
    '(',
    '[',
    'a'.repeat(257),
    1,
    undefined,
  ])
    assert.ok(!isPattern(pattern), String(pattern));
  // A pattern of the slowest kind with the longest name that is looked at.
  const name = 'a'.repeat(64);
  assert.equal(matches(['a.*a.*a.*b'], name), false);
  assert.equal(matches(['.*'], `${name}a`), false);
  fc.assert(
    fc.property(fc.string({ maxLength: 40 }), fc.string({ maxLength: 80 }), (pattern, text) => {
      if (isPattern(pattern)) matches([pattern], text);
    }),
    { numRuns: 1000 },
  );
});

test('globs are of one path segment', () => {
  for (const [glob, path, expected] of [
    ['/a/*', '/a/b', true],
    ['/a/*', '/a/b/c', false],
    ['/a/*', '/a', false],
    ['/a/b*d', '/a/bcd', true],
    ['/a/b*d', '/a/bd', true],
    ['/a/?', '/a/b', true],
    ['/a/?', '/a/', false],
    ['/*/*x*y', '/a/1x2xy', true],
    ['/*/*x*y', '/a/1x2x', false],
    ['', '/a', false],
    ['/a.b', '/axb', false],
  ] as const)
    assert.equal(matchesGlob(glob, path), expected, `${glob} ${path}`);
});
