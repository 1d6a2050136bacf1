import { chmodSync, existsSync, readdirSync, readFileSync } from 'node:fs';
import { mkdir, rename, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { candidatePackage, fetchPackage } from '../../../src/setup/apt.ts';
import type { SetupContext } from '../../../src/setup/context.ts';
import type { StepProgress } from '../../../src/setup/progress.ts';
import { CACHE, SOURCES } from './pieces.ts';
import { BUILDS, MODULES } from './pins.ts';

/** Used where no Go on the search path is new enough. */
const TOOLCHAIN = '1.26.8';
/** Debian's own, too old to build the tools but not to fetch that one. */
const DEBIAN_GO = { package: 'golang-1.19-go', path: 'usr/lib/go-1.19/bin/go' };

interface Call {
  context: SetupContext;
  progress: StepProgress;
  signal: AbortSignal;
}

/** Go's caches, for the time until everything is built. */
const WORK = join(CACHE, 'go-work');

function goEnv(): Record<string, string> {
  const env: Record<string, string> = {
    GOTOOLCHAIN: 'local',
    GOFLAGS: '-buildvcs=false -trimpath -modcacherw',
    GOMODCACHE: join(WORK, 'modules'),
    GOCACHE: join(WORK, 'build'),
    CGO_ENABLED: '0',
  };
  for (const name of ['GOPROXY', 'GOSUMDB', 'GONOSUMDB', 'GONOPROXY', 'GOPRIVATE', 'GOINSECURE'])
    if (process.env[name] !== undefined) env[name] = process.env[name];
  return env;
}

/** Builds all programs into `directory`. */
export async function buildTools(directory: string, call: Call): Promise<void> {
  const go = await ensureGo(call);
  for (const { module, command, flags, programs } of BUILDS) {
    const names = programs.map((program) => basename(program));
    // A test's program gets its name only from -o, and several programs a directory only.
    const output = names.length === 1 ? join(directory, names[0] as string) : `${directory}/`;
    call.progress.update(`compiling ${names.join(', ')}`);
    await call.context.runner.run({
      argv: ['nice', go, ...command, ...flags, '-o', output, ...programs],
      phase: 'tools',
      cwd: join(SOURCES, 'tools', module),
      env: goEnv(),
      signal: call.signal,
    });
  }
  // Nothing reads them again until a version changes, and they are big.
  await rm(WORK, { recursive: true, force: true });
}

/** A Go that can compile the tools. */
async function ensureGo(call: Call): Promise<string> {
  const kept = join(CACHE, `go-${TOOLCHAIN}`, 'bin/go');
  const needed = neededVersion();
  for (const directory of [...(process.env.PATH ?? '').split(':'), '/usr/local/go/bin']) {
    const go = join(directory, 'go');
    if (existsSync(go) && (await isNewEnough(go, needed, call))) return go;
  }
  if (existsSync(kept)) return kept;
  await fetchToolchain(join(CACHE, `go-${TOOLCHAIN}`), call);
  return kept;
}

/** The newest `go` line of the go.mod files. */
function neededVersion(): number[] {
  const versions = MODULES.map((module) => {
    const text = readFileSync(join(SOURCES, 'tools', module, 'go.mod'), 'utf8');
    return numbers(/^go (\S+)$/m.exec(text)?.[1] ?? '');
  });
  return versions.reduce((a, b) => (isAtLeast(a, b) ? a : b));
}

async function isNewEnough(go: string, needed: readonly number[], { context, signal }: Call): Promise<boolean> {
  const call = { phase: 'tools', env: goEnv(), signal };
  const version = await context.runner.run({ argv: [go, 'env', 'GOVERSION'], ...call }).catch(() => '');
  return isAtLeast(numbers(version.trim().replace(/^go/, '')), needed);
}

const numbers = (version: string): number[] => version.split('.').map((part) => Number.parseInt(part, 10) || 0);

function isAtLeast(version: readonly number[], needed: readonly number[]): boolean {
  for (const [index, wanted] of needed.entries()) if (version[index] !== wanted) return (version[index] ?? 0) > wanted;
  return true;
}

/**
 * Go publishes its toolchains as modules too, of which its checksum database knows the sums. Debian's Go fetches and checks
 * one as it does any other module.
 */
async function fetchToolchain(directory: string, { context, progress, signal }: Call): Promise<void> {
  const phase = 'tools';
  progress.update(`fetching Go ${TOOLCHAIN}`);
  const wanted = await candidatePackage(context, DEBIAN_GO.package, phase, progress, signal);
  const archive = await fetchPackage(context, wanted, phase, progress, signal);
  const debian = join(WORK, 'debian-go');
  await mkdir(debian, { recursive: true });
  await context.runner.run({ argv: ['dpkg-deb', '-x', archive, debian], phase, signal });
  await rm(archive);
  const module = `golang.org/toolchain@v0.0.1-go${TOOLCHAIN}.linux-amd64`;
  await context.runner.run({
    argv: [join(debian, DEBIAN_GO.path), 'mod', 'download', module],
    phase,
    cwd: debian,
    env: { ...goEnv(), GOROOT: join(debian, 'usr/lib/go-1.19'), GOFLAGS: '-modcacherw' },
    signal,
    hint: 'check that the Go module proxy can be reached (GOPROXY), or install Go 1.26',
  });
  const unpacked = join(WORK, 'modules', module);
  // The files of a module are not executable.
  for (const programs of ['bin', 'pkg/tool/linux_amd64'])
    for (const name of readdirSync(join(unpacked, programs))) chmodSync(join(unpacked, programs, name), 0o755);
  await rename(unpacked, directory);
}
