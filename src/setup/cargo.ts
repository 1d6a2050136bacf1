import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';
import type { SetupContext } from './context.ts';
import type { StepProgress } from './progress.ts';
import { accountHome } from './runner.ts';
import type { Toolchain } from './rust.ts';
import { sourceFiles, sourcesDigest } from './sources.ts';
import { installTool, type Tool, type Tools } from './tools.ts';

const NATIVE = ['kata-keeper', 'kata-agent'] as const;

/** A published crate with a program, pinned. */
export interface CratePin {
  name: string;
  version: string;
}

/**
 * Builds keeper and agent: static, the same bytes for the same sources, lock file and compiler wherever the checkout lies.
 */
export async function buildNative(
  context: SetupContext,
  rust: Toolchain,
  progress: StepProgress,
  signal: AbortSignal,
): Promise<Tools> {
  const manifest = join(context.home, 'native', 'Cargo.toml');
  const targetDir = join(context.assets, 'cache', 'native');
  const phase = 'native';
  const common = ['--locked', '--manifest-path', manifest, '--target', rust.staticTarget];
  const env: Record<string, string> = { CARGO_TARGET_DIR: targetDir, SOURCE_DATE_EPOCH: '0', ...PROGRESS_ENV };
  const hint = `look at the compiler's messages; native/ may be changed`;
  const call = { phase, signal, hint, cwd: join(context.home, 'native'), onLine: cargoProgress(progress) };
  progress.update('fetching crates');
  await context.runner.run({ ...call, env, argv: [rust.cargo, 'fetch', ...common], hint: 'check the network' });
  env.CARGO_ENCODED_RUSTFLAGS = (await staticFlags(context, targetDir)).join('\x1f');
  const packages = NATIVE.flatMap((name) => ['-p', name]);
  await context.runner.run({ ...call, env, argv: [rust.cargo, 'build', '--release', ...common, ...packages] });
  const tools: Record<string, Tool> = {};
  const builtWith = nativeBuiltWith(context.home, rust);
  const version = await workspaceVersion(context.home);
  for (const name of NATIVE)
    tools[name] = await installTool(context.assets, name, join(targetDir, rust.staticTarget, 'release', name), {
      version,
      builtWith,
    });
  return tools;
}

/** What keeper and agent of this checkout are made of and with. */
export const nativeBuiltWith = (home: string, rust: Toolchain): string =>
  `rustc ${rust.version}, ${rust.staticTarget}, sources ${sourcesDigest(sourceFiles(join(home, 'native'))).slice(0, 16)}`;

async function workspaceVersion(home: string): Promise<string> {
  const { readFile } = await import('node:fs/promises');
  const text = await readFile(join(home, 'native', 'Cargo.toml'), 'utf8');
  return /^version = "([^"]+)"/m.exec(text)?.[1] ?? 'unknown';
}

/** Paths of this machine would get into panic messages, and with them into the digest of the guest image. */
async function staticFlags(context: SetupContext, targetDir: string): Promise<string[]> {
  const cargoHome = process.env.CARGO_HOME ?? join(accountHome(), '.cargo');
  const registries = join(cargoHome, 'registry', 'src');
  const remaps = [
    [context.home, '/kata'],
    [targetDir, '/target'],
    [cargoHome, '/cargo'],
  ];
  for (const name of (await readdir(registries).catch(() => [])).sort())
    remaps.push([join(registries, name), '/crates']);
  return [
    '-Ctarget-feature=+crt-static',
    '-Crelocation-model=static',
    // The last one that fits wins.
    ...remaps.map(([from, to]) => `--remap-path-prefix=${from}=${to}`),
  ];
}

/** Builds a published program with the lock file that it was published with. */
export async function installCrate(
  context: SetupContext,
  rust: Toolchain,
  pin: CratePin,
  progress: StepProgress,
  signal: AbortSignal,
): Promise<Tool> {
  const work = join(context.assets, 'cache', `crate-${pin.name}-${pin.version}`);
  const root = join(work, 'root');
  const argv = ['install', '--locked', '--force', '--version', `=${pin.version}`, '--root', root, pin.name];
  await context.runner.run({
    argv: [rust.cargo, ...argv],
    phase: pin.name,
    env: { CARGO_TARGET_DIR: join(work, 'target'), ...PROGRESS_ENV },
    onLine: cargoProgress(progress),
    signal,
    hint: 'check the network; the crate registry must be reachable',
  });
  const tool = await installTool(context.assets, pin.name, join(root, 'bin', pin.name), {
    version: pin.version,
    builtWith: `rustc ${rust.version}, crate ${pin.name} ${pin.version}`,
  });
  await rm(work, { recursive: true, force: true });
  return tool;
}

/** cargo shows its bar on a pipe only when told how wide the terminal would be. */
const PROGRESS_ENV = {
  CARGO_TERM_PROGRESS_WHEN: 'always',
  CARGO_TERM_PROGRESS_WIDTH: '100',
  CARGO_TERM_COLOR: 'never',
};

/** "Building [====>    ] 34/61: tokio, prost", "Downloaded 12 crates", "Downloading 3 crates, remaining bytes: 1.2MB" */
function cargoProgress(progress: StepProgress): (line: string) => boolean {
  return (line) => {
    const crates = /\b(\d+\/\d+)(?:: *([\w-]+))?/.exec(/^\s*(?:Building|Downloading|Fetch) \[/.test(line) ? line : '');
    if (crates !== null) progress.update(`${crates[1]} crates${crates[2] === undefined ? '' : ` (${crates[2]})`}`);
    const bytes = /remaining bytes: (\S+)/.exec(line);
    if (bytes !== null) progress.update(`downloading, ${bytes[1]} to go`);
    return (
      crates !== null || bytes !== null || /^\s*(Compiling|Downloaded|Downloading|Adding|Locking|Fetch) /.test(line)
    );
  };
}

/** Throws when a program that was just built is not static: it could not run in the guest. */
export function requireStatic(name: string, elf: Buffer): void {
  const count = elf.readUInt16LE(0x38);
  const table = Number(elf.readBigUInt64LE(0x20));
  for (let index = 0; index < count; index += 1)
    if (elf.readUInt32LE(table + index * 56) === 3)
      throw new KataError('GUEST_IMAGE_INVALID', `${name} needs a dynamic linker, which the guest does not have`, {
        phase: 'guest-image',
        hint: `remove <assets>/cache/native and run 'kata setup'`,
      });
}
