import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join, resolve } from 'node:path';
import {
  add,
  cargoTests,
  countMismatch,
  endAll,
  nodeTests,
  noOutcome,
  type Outcome,
  oneFailure,
  run,
} from './support/runner.ts';

// Runs the suites, two lanes side by side: what computes, and what boots virtual machines; whichever is done first goes on with
// the files of the cluster's suites, whose tools compile from the start. Ends with one line that counts.
// The number of tests that ran is compared with test/expected.json, so that none vanishes silently.

const REPO = resolve(import.meta.dirname, '..');
const SUITES = ['lint', 'unit', 'native', 'e2e', 'fault', 'critest', 'cluster'] as const;
type Suite = (typeof SUITES)[number];

const testFiles = (directory: string): string[] =>
  readdirSync(join(REPO, directory), { recursive: true })
    .map(String)
    .filter((name) => name.endsWith('.test.ts'))
    .sort()
    .map((name) => join(directory, name));

/** Debian packages of programs that only tests call; set-up has no use for them. */
const TEST_PACKAGES = [
  'attr',
  'busybox-static',
  // The dashboard's browser, and letters for its pictures.
  'chromium',
  'fonts-dejavu-core',
  // Its service is not used: the tests start a registry of their own.
  'docker-registry',
  'erofs-utils',
  'iproute2',
  'lz4',
  'mandoc',
  'openssl',
  'python3-minimal',
  'skopeo',
  'socat',
  'xz-utils',
];

/** Installs what is missing of the packages that tests need. */
async function installTestPackages(): Promise<boolean> {
  const missing = TEST_PACKAGES.filter(
    (name) => !spawnSync('dpkg-query', ['-s', name]).stdout?.toString().includes('Status: install ok installed'),
  );
  if (missing.length === 0) return true;
  const apt = async (...args: string[]) =>
    (await run(REPO, 'setup', 'apt-get', ['-q', '-oDPkg::Lock::Timeout=600', ...args])) === undefined;
  const install = () => apt('install', '-y', '--no-install-recommends', ...missing);
  // The package lists may be absent, or older than what the mirror still has.
  const installed = (await install()) || ((await apt('update')) && (await install()));
  // Debian starts what it installs, by systemd or by the script.
  if (missing.includes('docker-registry')) {
    spawnSync('systemctl', ['disable', '--now', 'docker-registry']);
    spawnSync('/etc/init.d/docker-registry', ['stop']);
  }
  return installed;
}

const CARGO = ['--manifest-path', 'native/Cargo.toml', '--locked'];

async function lint(): Promise<Outcome> {
  const checks: [string, string[]][] = [
    ['node_modules/.bin/tsc', ['-p', '.']],
    ['node_modules/.bin/tsc', ['-p', 'src/dashboard/page']],
    ['node_modules/@biomejs/cli-linux-x64/biome', ['check', '--error-on-warnings', '.']],
    ['cargo', ['fmt', '--manifest-path', 'native/Cargo.toml', '--all', '--check']],
    ['cargo', ['clippy', ...CARGO, '--all-targets', '--quiet', '--', '-D', 'warnings']],
  ];
  const outcome = noOutcome('lint');
  // Debian's Rust, which set-up installs, has these in packages of their own.
  if ((await run(REPO, 'lint', 'cargo', ['clippy', '--version'])) !== undefined)
    await run(REPO, 'lint', 'apt-get', [
      'install',
      '-y',
      '-q',
      '--no-install-recommends',
      '-oDPkg::Lock::Timeout=600',
      'rustfmt-web',
      'rust-web-clippy',
    ]);
  for (const [command, args] of checks) {
    const wrong = await run(REPO, 'lint', command, args);
    outcome.counts[wrong === undefined ? 'passed' : 'failed'] += 1;
    if (wrong !== undefined) outcome.failures.push(wrong);
  }
  return outcome;
}

const inNamespaces = (suite: Suite): Promise<Outcome> =>
  nodeTests(REPO, suite, testFiles(`test/${suite}`), { namespaces: true });

/** Both lanes call it, and each file is run by the one that comes for it first. */
function shared(suite: Suite): () => Promise<Outcome> {
  const files = testFiles(`test/${suite}`).values();
  return () => nodeTests(REPO, suite, files, { namespaces: 'cluster' });
}

const RUN: Record<Suite, () => Promise<Outcome>> = {
  lint,
  unit: () => nodeTests(REPO, 'unit', [...testFiles('test/architecture'), ...testFiles('test/unit')], {}),
  native: async () => {
    const crates = await cargoTests(REPO, 'native', ['test', ...CARGO, '--workspace']);
    add(crates, await nodeTests(REPO, 'native', testFiles('test/native-keeper'), { namespaces: true }));
    add(crates, await nodeTests(REPO, 'native', testFiles('test/integration'), {}));
    return crates;
  },
  e2e: () => inNamespaces('e2e'),
  fault: () => inNamespaces('fault'),
  critest: shared('critest'),
  cluster: shared('cluster'),
};

async function lane(suites: readonly Suite[]): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  for (const suite of suites) outcomes.push(await RUN[suite]());
  return outcomes;
}

/** One outcome of each suite. */
function merge(outcomes: readonly Outcome[]): Outcome[] {
  const merged: Outcome[] = [];
  for (const outcome of outcomes) {
    const known = merged.find(({ suite }) => suite === outcome.suite);
    if (known === undefined) merged.push(outcome);
    else add(known, outcome);
  }
  return merged;
}

const asked = process.argv.slice(2).filter((name) => name !== 'all');
for (const name of asked)
  if (!SUITES.includes(name as Suite)) {
    process.stderr.write(`test/run: no suite "${name}"; there are ${SUITES.join(', ')}, all\n`);
    process.exit(2);
  }
const wanted = SUITES.filter((suite) => asked.length === 0 || asked.includes(suite));
const only = (...suites: Suite[]): Suite[] => wanted.filter((suite) => suites.includes(suite));
const onCluster = only('critest', 'cluster');
for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
  process.once(name, () => {
    endAll();
    process.exit(128 + constants.signals[name]);
  });
if (!(await installTestPackages())) process.exit(1);
// Compiling Go takes minutes: it goes beside everything else, and only the cluster's suites wait for it.
const clusterSetup = onCluster.length === 0 ? undefined : run(REPO, 'setup', 'test/cluster/setup', []);
// Tests of the vsock device run also where the kernel would do its work. Rust comes with set-up, too.
const setup = ['KATA_VSOCK=hybrid', './kata', 'setup', '--all'];
if (wanted.some((suite) => suite !== 'unit') && (await run(REPO, 'setup', 'env', setup)) !== undefined) {
  endAll();
  process.exit(1);
}

const lanes = [only('lint', 'unit', 'native'), only('e2e', 'fault')].map(async (suites) => {
  const outcomes = await lane(suites);
  if (onCluster.length === 0) return outcomes;
  const wrong = await clusterSetup;
  if (wrong === undefined) return [...outcomes, ...(await lane(onCluster))];
  return [...outcomes, ...onCluster.map((suite) => oneFailure(suite, wrong))];
});
const outcomes = merge((await Promise.all(lanes)).flat());
const expected: Record<string, number> = JSON.parse(readFileSync(join(REPO, 'test/expected.json'), 'utf8'));
const total = noOutcome('all');
for (const outcome of outcomes) {
  const { suite, counts } = outcome;
  const missing = countMismatch(suite, counts, expected);
  if (missing !== undefined) add(outcome, oneFailure(suite, missing));
  add(total, outcome);
}
// Last, so that nobody has to look for them in what every program said.
for (const { suite, failures } of outcomes)
  for (const failure of failures) process.stdout.write(`\nFAILED ${suite}: ${failure}\n`);
for (const { suite, counts } of [...outcomes, total])
  process.stdout.write(`${suite}: ${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped\n`);
process.exitCode = total.counts.failed === 0 ? 0 : 1;
