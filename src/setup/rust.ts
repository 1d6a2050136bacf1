import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import { installPackages } from './apt.ts';
import type { SetupContext } from './context.ts';
import type { StepProgress } from './progress.ts';

/** A Rust that builds the native parts. */
export interface Toolchain {
  cargo: string;
  /** "1.95.0" */
  version: string;
  /** What static programs are built for: musl where its standard library is there, else glibc. */
  staticTarget: string;
}

/** The newest `rust-version` among the pinned crates. */
const MIN_RUST = [1, 85];
const PHASE = 'rust';
const MUSL = 'x86_64-unknown-linux-musl';
const GNU = 'x86_64-unknown-linux-gnu';

/** The Rust that is there if it is new enough; else Debian's, which this installs. A C linker comes with it. */
export async function ensureRust(
  context: SetupContext,
  progress: StepProgress,
  signal: AbortSignal,
): Promise<Toolchain> {
  const linker = (await context.runner.which('cc')) === undefined || !(await hasStaticLibc());
  if (linker) await installPackages(context, ['gcc', 'libc6-dev'], PHASE, progress, signal);
  const present = await findRust(context, signal);
  if (present !== undefined && isNewEnough(present.version)) return withTarget(context, present, progress, signal);
  progress.update("installing Debian's Rust");
  await installPackages(context, ['rustc-web', 'cargo-web'], PHASE, progress, signal);
  const installed = await findRust(context, signal, '/usr/bin');
  if (installed === undefined || !isNewEnough(installed.version))
    throw new KataError('SETUP_INCOMPLETE', `Rust ${MIN_RUST.join('.')} or newer is needed`, {
      phase: PHASE,
      evidence: [`found: ${installed?.version ?? 'none'}`],
      hint: 'install a newer Rust (rustup, or the distribution) so that cargo and rustc are on the path',
    });
  return withTarget(context, installed, progress, signal);
}

async function findRust(
  context: SetupContext,
  signal: AbortSignal,
  directory?: string,
): Promise<{ cargo: string; rustc: string; version: string } | undefined> {
  const cargo = directory === undefined ? await context.runner.which('cargo') : join(directory, 'cargo');
  const rustc = directory === undefined ? await context.runner.which('rustc') : join(directory, 'rustc');
  if (cargo === undefined || rustc === undefined) return undefined;
  const text = await context.runner.run({ argv: [rustc, '-vV'], phase: PHASE, signal }).catch(() => '');
  const version = /^release: (\d+\.\d+\.\d+\S*)$/m.exec(text)?.[1];
  return version === undefined ? undefined : { cargo, rustc, version };
}

async function withTarget(
  context: SetupContext,
  rust: { cargo: string; rustc: string; version: string },
  progress: StepProgress,
  signal: AbortSignal,
): Promise<Toolchain> {
  const { cargo, rustc, version } = rust;
  if (await hasStandardLibrary(context, rustc, MUSL)) return { cargo, version, staticTarget: MUSL };
  const rustup = await context.runner.which('rustup');
  if (rustup !== undefined) {
    progress.update('fetching the standard library for musl');
    const argv: [string, ...string[]] = [rustup, 'target', 'add', MUSL];
    // glibc does as well: a rustup that may not or cannot fetch is no failure.
    await context.runner.run({ argv, phase: PHASE, signal, timeoutMs: 5 * 60_000 }).catch(() => '');
    if (await hasStandardLibrary(context, rustc, MUSL)) return { cargo, version, staticTarget: MUSL };
  }
  return { cargo, version, staticTarget: GNU };
}

async function hasStandardLibrary(context: SetupContext, rustc: string, target: string): Promise<boolean> {
  const argv: [string, ...string[]] = [rustc, '--print', 'target-libdir', '--target', target];
  const directory = (await context.runner.run({ argv, phase: PHASE }).catch(() => '')).trim();
  return directory !== '' && (await exists(directory));
}

/** libc6-dev has the archive that a static glibc program needs; a musl target brings its own. */
const hasStaticLibc = async (): Promise<boolean> =>
  (await exists('/usr/lib/x86_64-linux-gnu/libc.a')) || (await exists('/usr/lib64/libc.a'));

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

function isNewEnough(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  const [minMajor = 0, minMinor = 0] = MIN_RUST;
  return major > minMajor || (major === minMajor && minor >= minMinor);
}
