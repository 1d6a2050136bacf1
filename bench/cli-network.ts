import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { until } from '../test/support/env.ts';
import { type Figure, timed } from './measure.ts';
import { read, STREAM_BYTES, STREAM_PORT, serverScript, WORD_PORT } from './network.ts';

// What the host reads from a container on a network of the command line, beside the same program in a plain network namespace.

const PLAIN = { here: '198.51.100.1', there: '198.51.100.2' };

/** The programs in a namespace beyond a veth, without a machine. Answers what ends them. */
async function plainServer(busybox: string, work: string): Promise<() => Promise<void>> {
  const directory = join(work, 'plain');
  mkdirSync(directory);
  const ready = `ip() { ${busybox} ip "$@"; }\nuntil ip link show plain1; do ${busybox} sleep 0.05; done`;
  const up = `ip link set lo up; ip address add ${PLAIN.there}/30 dev plain1; ip link set plain1 up`;
  const applets = ['dd', 'nc', 'cat', 'echo'].map((name) => `${name}() { ${busybox} ${name} "$@"; }`).join('\n');
  // -e starts a program, which a function is not.
  const script = serverScript(directory).replaceAll('-e ', `-e ${busybox} `).replace('exec nc', 'nc');
  const child = spawn('unshare', ['-n', 'sh', '-c', [ready, up, applets, script].join('\n')], {
    stdio: 'ignore',
    detached: true,
  });
  const pid = String(child.pid);
  const link = ['link', 'add', 'plain0', 'type', 'veth', 'peer', 'name', 'plain1', 'netns', pid];
  for (const words of [
    link,
    ['address', 'add', `${PLAIN.here}/30`, 'dev', 'plain0'],
    ['link', 'set', 'plain0', 'up'],
  ]) {
    const { status, stderr } = spawnSync('ip', words, { encoding: 'utf8' });
    if (status !== 0) throw new Error(`ip ${words.join(' ')}: ${stderr}`);
  }
  return async () => {
    const ended = once(child, 'close');
    process.kill(-Number(pid), 'SIGKILL');
    await ended;
    spawnSync('ip', ['link', 'delete', 'plain0']);
  };
}

/** Samples by turns. `address`: of a container that runs `serverScript`. */
export async function cliNetworkFigures(
  address: string,
  { busybox, work, runs }: { busybox: string; work: string; runs: number },
): Promise<Figure[]> {
  const end = await plainServer(busybox, work);
  try {
    const places = [
      { name: 'a container', address, rates: [] as number[], times: [] as number[] },
      { name: 'a plain network namespace', address: PLAIN.there, rates: [] as number[], times: [] as number[] },
    ];
    for (const place of places)
      await until(async () => (await read(place.address, WORD_PORT).catch(() => 0)) > 0, `${place.name} answers`);
    for (let i = 0; i < runs; i += 1)
      for (const place of places) {
        const ms = await timed(async () => {
          const bytes = await read(place.address, STREAM_PORT);
          if (bytes !== STREAM_BYTES) throw new Error(`${bytes} bytes of ${STREAM_BYTES} came`);
        });
        place.rates.push(STREAM_BYTES / 1e6 / (ms / 1e3));
        place.times.push(await timed(() => read(place.address, WORD_PORT)));
      }
    return places.flatMap(({ name, rates, times }) => [
      { name: `TCP out of ${name}`, unit: 'MB/s' as const, samples: rates },
      { name: `connection to ${name}, a process and its word`, unit: 'ms' as const, samples: times },
    ]);
  } finally {
    await end();
  }
}
