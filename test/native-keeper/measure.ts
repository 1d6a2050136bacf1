// Prints what one keeper costs: size, start time, PSS idle with one sandbox, and throughput of stdout with a fake guest.
//   KATA_KEEPER=<binary> node test/native-keeper/measure.ts
import { execFileSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { KEEPER, Sandbox, until } from './support.ts';

const MIB = 2 ** 20;
const TOTAL_BYTES = 256 * MIB;

const memory = (pid: number | undefined): string => {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  const field = (name: string) => new RegExp(`^${name}: *(\\d+) kB`, 'm').exec(text)?.[1];
  return `PSS ${field('Pss')} kB, anonymous ${field('Anonymous')} kB`;
};

const throughput = async (sandbox: Sandbox, name: string, line: string, logged: boolean): Promise<void> => {
  const log = logged
    ? { path: join(sandbox.dir, `${name}.log`), max_bytes: BigInt(10 * MIB), max_files: 4 }
    : undefined;
  await sandbox.createProcess(name, { log });
  const client = await sandbox.attach(name);
  client.countOnly = true;
  const process = sandbox.guest.process(name);
  const chunk = Buffer.from(line.repeat(Math.ceil(MIB / line.length)));
  const started = performance.now();
  let written = 0;
  while (written < TOTAL_BYTES) {
    written += chunk.length;
    if (!process.stdout?.write(chunk)) await new Promise((resolve) => process.stdout?.once('drain', resolve));
  }
  process.written.stdout = written;
  process.finish({ status: 0 });
  await until('exit frame', () => client.exit);
  const seconds = (performance.now() - started) / 1000;
  if (client.counted !== written) throw new Error(`${client.counted} of ${written} bytes arrived`);
  console.log(`stdout ${name}: ${Math.round(written / MIB / seconds)} MiB/s`);
};

await using sandbox = await Sandbox.start();
console.log(`binary: ${statSync(KEEPER).size} bytes`);
const started = performance.now();
for (let time = 0; time < 20; time++) execFileSync(KEEPER, ['--version']);
console.log(`--version: ${((performance.now() - started) / 20).toFixed(1)} ms with the caller's fork`);
await sandbox.boot();
await sandbox.createProcess('idle', { stdin: true });
await sleep(500);
console.log(`idle, one sandbox, one process: ${memory(sandbox.keeper.pid)}`);
await throughput(sandbox, 'client', `${'x'.repeat(77)}\n`, false);
await throughput(sandbox, 'client-and-log', `${'x'.repeat(77)}\n`, true);
await throughput(sandbox, 'client-and-log-short-lines', 'y\n', true);
await sleep(500);
console.log(`afterwards: ${memory(sandbox.keeper.pid)}`);
