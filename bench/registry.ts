import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { gzipSync } from 'node:zlib';
import { REPO, TestEnv } from '../test/support/env.ts';
import { type Entry, layoutFiles, tar, writeFiles } from '../test/support/images.ts';
import { Registry } from '../test/support/registry.ts';
import { call, commitOf, type Figure, machineOf, median, timed } from './measure.ts';
import { writeReport } from './report.ts';

// An image from a registry of this host to a root file system: `kata pull`, and skopeo with umoci, by turns.

const { values } = parseArgs({
  options: { runs: { type: 'string', default: '5' }, out: { type: 'string', default: join(REPO, 'bench/out') } },
});
const RUNS = Number(values.runs);
const out = resolve(values.out);
/** As of a language's base image: a few layers, files of a few KiB to a few MiB, which compress to a third. */
const LAYERS = 5;
const SMALL_FILES = 1500;
const SMALL_BYTES = 6 * 2 ** 10;
const LARGE_FILES = 12;
const LARGE_BYTES = 2 * 2 ** 20;

/** The same bytes at each run; hexadecimal digits, each half of them twice. */
function content(seed: string, bytes: number): Buffer {
  const data = Buffer.alloc(bytes);
  for (let at = 0, round = 0; at < bytes; round += 1) {
    const words = createHash('sha256').update(`${seed} ${round}`).digest('hex').repeat(2);
    at += data.write(words, at, 'latin1');
  }
  return data;
}

function layer(index: number): Buffer {
  const file = (name: string, bytes: number): Entry => ({ name, data: content(name, bytes) });
  const small = Array.from({ length: SMALL_FILES }, (_, i) => file(`usr/lib/${index}/small-${i}`, SMALL_BYTES));
  const large = Array.from({ length: LARGE_FILES }, (_, i) => file(`usr/lib/${index}/large-${i}`, LARGE_BYTES));
  const directories = ['usr/', 'usr/lib/', `usr/lib/${index}/`].map((name): Entry => ({ name, type: '5' }));
  return tar([...directories, ...small, ...large]);
}

const env = new TestEnv();
const work = mkdtempSync(join(tmpdir(), 'kt-bench-'));
const registry = await Registry.start({ auth: 'none', tls: false });
try {
  const name = `${registry.host}/bench/image:1`;
  const layers = Array.from({ length: LAYERS }, (_, index) => layer(index));
  const blobs = layers.map((bytes) => gzipSync(bytes));
  const layerTypes = layers.map(() => 'application/vnd.oci.image.layer.v1.tar+gzip');
  const layout = layoutFiles([{ names: [name], config: { Cmd: ['true'] }, layers, blobs, layerTypes }]);
  const bytes = layers.reduce((sum, { length }) => sum + length, 0);
  await env.ok(['load', '-i', writeFiles(join(work, 'layout'), layout)]);
  await env.ok(['push', name]);

  const ours: number[] = [];
  const theirs: number[] = [];
  const rate = (ms: number): number => bytes / 1e6 / (ms / 1e3);
  for (let run = 0; run < RUNS; run += 1) {
    await env.ok(['rmi', name]);
    await env.ok(['image', 'prune', '-af']);
    ours.push(rate(await timed(() => env.ok(['pull', '-q', name]))));
    const dir = join(work, `run-${run}`);
    mkdirSync(dir);
    theirs.push(
      rate(
        await timed(async () => {
          const from = `docker://${name}`;
          await call(dir, 'skopeo', 'copy', '-q', '--src-tls-verify=false', from, 'oci:layout:1');
          await call(dir, 'umoci', 'unpack', '--image', 'layout:1', 'bundle');
        }),
      ),
    );
    rmSync(dir, { recursive: true });
  }
  const packed = blobs.reduce((sum, { length }) => sum + length, 0);
  const note = `${LAYERS} layers, ${LAYERS * (SMALL_FILES + LARGE_FILES)} files, ${Math.round(bytes / 1e6)} MB, compressed ${Math.round(packed / 1e6)} MB`;
  const figures: Figure[] = [
    { name: '`kata pull`, verified and unpacked', unit: 'MB/s', samples: ours, note },
    { name: '`skopeo copy` and `umoci unpack`', unit: 'MB/s', samples: theirs, note },
    {
      name: 'pull beside skopeo and umoci',
      unit: 'ratio',
      samples: ours.map((value, run) => value / (theirs[run] as number)),
      aim: { value: 1, better: 'higher' },
    },
  ];
  for (const { name, samples, unit } of figures)
    process.stderr.write(`${name}: ${median(samples).toFixed(2)} ${unit}\n`);
  mkdirSync(out, { recursive: true });
  const about = { version: 1, commit: commitOf(REPO), at: new Date().toISOString(), machine: machineOf() };
  writeFileSync(join(out, 'registry.json'), `${JSON.stringify({ ...about, runs: RUNS, figures }, null, 1)}\n`);
  writeReport(out);
  process.stdout.write(`${join(out, 'report.md')}\n`);
} finally {
  await registry.stop();
  const residue = await env.dispose();
  rmSync(work, { recursive: true, force: true });
  if (residue.length > 0) process.stderr.write(`left behind: ${JSON.stringify(residue)}\n`);
}
