import { connect } from 'node:net';
import { FRAME, FrameDecoder } from '../api/index.ts';
import { KataError } from '../base/index.ts';

/**
 * The beginning of a process's output, both streams as they came, and its exit code: for what the engine itself runs in a guest and
 * judges. Whatever a person or a program asked for passes the engine by. The rest of the output is read and dropped.
 */
export function readOutput(
  { socket: path, token }: { socket: string; token: string },
  maxBytes: number,
  signal: AbortSignal,
): Promise<{ code: number; output: string }> {
  return new Promise((resolve, reject) => {
    const pieces: Buffer[] = [];
    let room = maxBytes;
    const socket = connect({ path, signal });
    const fail = (error: unknown): void => {
      socket.destroy();
      reject(KataError.from(error, 'stream'));
    };
    const decoder = new FrameDecoder({
      output: (_, bytes) => {
        const piece = bytes.subarray(0, room);
        room -= piece.length;
        // A view would keep the whole chunk.
        if (piece.length > 0) pieces.push(Buffer.from(piece));
      },
      control: (type, payload) => {
        if (type !== FRAME.exit && type !== FRAME.error) return;
        socket.destroy();
        const end = JSON.parse(payload.toString('utf8')) as { code?: unknown; message?: unknown };
        if (type === FRAME.error) reject(new KataError('KEEPER_UNAVAILABLE', String(end.message), { phase: 'stream' }));
        else resolve({ code: Number(end.code), output: Buffer.concat(pieces).toString('utf8') });
      },
    });
    socket.on('connect', () => socket.write(`KATA1 ${token}\n`));
    socket.on('data', (chunk: Buffer) => {
      try {
        decoder.push(chunk);
      } catch (error) {
        fail(error);
      }
    });
    socket.on('error', fail);
    socket.on('close', () =>
      fail(new KataError('KEEPER_UNAVAILABLE', 'the keeper closed the stream', { phase: 'stream' })),
    );
  });
}
