import { connect } from 'node:net';
import { join } from 'node:path';
import { KataError } from '../base/index.ts';

/** The engine's socket in a run directory. */
export const socketOf = (runDir: string): string => join(runDir, 'katad.sock');

/** Whether somebody listens at a socket. The socket of a dead engine stays behind. Throws PERMISSION_DENIED. */
export function reach(socketPath: string): Promise<'listening' | 'absent'> {
  return new Promise((done, fail) => {
    const socket = connect({ path: socketPath });
    socket.once('connect', () => {
      socket.destroy();
      done('listening');
    });
    socket.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EACCES' || error.code === 'EPERM')
        fail(
          new KataError('PERMISSION_DENIED', `no access to the engine's socket ${socketPath}`, {
            cause: error,
            hint: 'run kata as root',
          }),
        );
      // EAGAIN: the accept queue is full, so there is a listener.
      else done(error.code === 'EAGAIN' ? 'listening' : 'absent');
    });
  });
}
