import type { ReadStream, WriteStream } from 'node:tty';

export interface TerminalSize {
  rows: number;
  columns: number;
}

/** The terminal that shows the output: the size of another one means nothing to the process. */
export function outputTerminal(): WriteStream | undefined {
  return [process.stdout, process.stderr].find((stream) => stream.isTTY);
}

export function terminalSize(terminal: WriteStream | undefined): TerminalSize | undefined {
  if (terminal === undefined) return undefined;
  const [columns, rows] = terminal.getWindowSize();
  return rows > 0 && columns > 0 ? { rows, columns } : undefined;
}

/**
 * Puts the terminal into raw mode until `restore` is called or the process exits by any way that runs code (an exception
 * and process.exit do). Stopped and continued, it takes raw mode again: the shell set its own meanwhile.
 */
export function rawMode(input: ReadStream): { restore(): void } {
  let active = true;
  const again = () => {
    if (!active) return;
    input.setRawMode(false);
    input.setRawMode(true);
  };
  const restore = () => {
    if (!active) return;
    active = false;
    process.off('SIGCONT', again);
    process.off('exit', restore);
    try {
      input.setRawMode(false);
    } catch {
      // The terminal is gone (hang-up): nothing is left to restore.
    }
  };
  input.setRawMode(true);
  process.on('SIGCONT', again);
  process.on('exit', restore);
  return { restore };
}
