import { once } from 'node:events';
import { connect } from 'node:net';
import { BUSYBOX, type Containerd } from '../test/support/cluster/index.ts';
import { until } from '../test/support/env.ts';
import { type Figure, timed } from './measure.ts';

// A pod's network on the bridge, from the host: bytes out of the pod and a small answer to a connection.

export const STREAM_BYTES = 64 * 2 ** 20;
export const STREAM_PORT = 81;
export const WORD_PORT = 82;
/** A server of bytes and one of a word, for busybox's shell; the bytes lie in `directory`. */
export const serverScript = (directory: string): string =>
  [
    `dd if=/dev/zero of=${directory}/big bs=1M count=${STREAM_BYTES / 2 ** 20}`,
    `nc -ll -p ${STREAM_PORT} -e cat ${directory}/big &`,
    `exec nc -ll -p ${WORD_PORT} -e echo word`,
  ].join('\n');

export async function read(address: string, port: number): Promise<number> {
  const socket = connect(port, address);
  let bytes = 0;
  socket.on('data', (chunk) => {
    bytes += chunk.length;
  });
  await once(socket, 'close');
  return bytes;
}

/** Samples of each handler by turns, so that load from outside falls on both alike. */
export async function networkFigures(
  containerd: Containerd,
  handlers: readonly string[],
  runs: number,
): Promise<Figure[]> {
  const pods = new Map<string, { address: string; id: string; rates: number[]; times: number[] }>();
  for (const handler of handlers) {
    const pod = await containerd.runPod(handler, { name: `net-${handler}` });
    const script = serverScript('/dev/shm');
    await containerd.runContainer(pod, { name: 'server', image: BUSYBOX, command: ['sh', '-c', script] });
    const address = await containerd.address(pod);
    await until(async () => (await read(address, WORD_PORT).catch(() => 0)) > 0, 'the server answers');
    pods.set(handler, { address, id: pod.id, rates: [], times: [] });
  }
  for (let i = 0; i < runs; i += 1)
    for (const { address, rates, times } of pods.values()) {
      const ms = await timed(async () => {
        const bytes = await read(address, STREAM_PORT);
        if (bytes !== STREAM_BYTES) throw new Error(`${bytes} bytes of ${STREAM_BYTES} came`);
      });
      rates.push(STREAM_BYTES / 1e6 / (ms / 1e3));
      times.push(await timed(() => read(address, WORD_PORT)));
    }
  for (const { id } of pods.values()) await containerd.crictl('rmp', '--force', id);
  return [...pods].flatMap(([handler, { rates, times }]) => [
    { name: `TCP out of a pod with ${handler}`, unit: 'MB/s', samples: rates },
    { name: `connection to a pod, a process and its word with ${handler}`, unit: 'ms', samples: times },
  ]);
}
