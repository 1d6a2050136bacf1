/**
 * Bundles the command line, the engine and the dashboard's script into dist/. The command line is split, so that a command loads only what it uses;
 * the engine is one file, which a running engine has read whole: replacing it does not disturb that engine.
 */
import { mkdtempSync, readdirSync, renameSync, rmSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { type BuildOptions, build, type Metafile } from 'esbuild';

const home = join(import.meta.dirname, '..');
const dist = join(home, 'dist');
/** A command that runs for long may still load a part of the bundle that it was started from. */
const KEEP_CHUNKS_MS = 7 * 24 * 60 * 60_000;

const common = {
  absWorkingDir: home,
  bundle: true,
  format: 'esm',
  platform: 'node',
  target: 'node24',
  outExtension: { '.js': '.mjs' },
  // Names stay as they are, so that a stack trace can be read.
  minifySyntax: true,
  minifyWhitespace: true,
  legalComments: 'none',
  metafile: true,
  logLevel: 'warning',
} satisfies BuildOptions;

const temporary = mkdtempSync(join(dist, '.build-'));
try {
  const results = await Promise.all([
    build({
      ...common,
      entryPoints: { kata: 'src/cli/main.ts' },
      outdir: temporary,
      splitting: true,
      chunkNames: '[name]-[hash]',
    }),
    build({
      ...common,
      entryPoints: { katad: 'src/wiring.ts' },
      outdir: temporary,
      // CommonJS packages ask for Node's modules by require, which an ES module does not have.
      banner: { js: "import{createRequire}from'node:module';const require=createRequire(import.meta.url);" },
    }),
  ]);
  await build({
    ...common,
    entryPoints: { dashboard: 'src/dashboard/page/app.ts' },
    outdir: temporary,
    platform: 'browser',
    target: 'es2022',
  });
  refuseRequire(results[0].metafile);
  const files = readdirSync(temporary);
  // Entry points come last: what they load is there by then.
  for (const name of files.sort((a, b) => Number(isEntry(a)) - Number(isEntry(b))))
    renameSync(join(temporary, name), join(dist, name));
  removeOldChunks(new Set(files));
} finally {
  rmSync(temporary, { recursive: true, force: true });
}

function isEntry(name: string): boolean {
  return name === 'kata.mjs' || name === 'katad.mjs';
}

/** A CommonJS package in the command line would fail only when a user comes to it. */
function refuseRequire({ outputs }: Metafile): void {
  for (const [file, { imports }] of Object.entries(outputs))
    for (const { path, kind } of imports)
      if (kind === 'require-call') throw new Error(`${basename(file)} requires "${path}" from a CommonJS package`);
}

function removeOldChunks(current: ReadonlySet<string>): void {
  for (const name of readdirSync(dist)) {
    if (!name.endsWith('.mjs') || current.has(name)) continue;
    const path = join(dist, name);
    if (Date.now() - statSync(path).mtimeMs > KEEP_CHUNKS_MS) rmSync(path);
  }
}
