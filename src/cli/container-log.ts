import { Writable } from 'node:stream';
import type { ApiAnswer } from '../api/index.ts';
import type { LogPrinter } from './log-printer.ts';
import { LogReader } from './log-reader.ts';
import { StreamClient, type StreamEnd } from './stream.ts';

interface Wish {
  /** Lines; infinite: all. */
  tail: number;
  /** Nothing of the log is left out: then it is told how many lines it lost. */
  whole: boolean;
  untilMs?: number | undefined;
  signal?: AbortSignal;
}

/**
 * Prints the log of a container that the engine described. One that came with a stream is followed to the process's end, which is
 * answered, or until `signal` aborts.
 */
export async function printContainerLog(
  log: ApiAnswer<'containerLogs'>,
  printer: LogPrinter,
  { tail, whole, untilMs, signal }: Wish,
): Promise<StreamEnd | undefined> {
  const reader = new LogReader(log.path, printer);
  // The stream is there before the files are read: its end comes after everything that the log holds then.
  const stream =
    log.stream === undefined
      ? undefined
      : new StreamClient({ answer: log.stream, stdout: nowhere(), stderr: nowhere() });
  const leave = () => stream?.detach();
  if (signal?.aborted) leave();
  signal?.addEventListener('abort', leave, { once: true });
  await reader.existing(tail);
  if (whole && log.droppedLines > printer.dropped) {
    // The log itself can tell it only when there is space again.
    printer.note(`${log.droppedLines - printer.dropped} more lines were dropped: the disk was full`);
    await printer.flush();
  }
  let end: StreamEnd | undefined;
  if (stream !== undefined && !printer.finished) {
    await reader.follow(stream.ended, untilMs);
    end = await Promise.race([stream.ended, undefined]);
  }
  await reader.close();
  signal?.removeEventListener('abort', leave);
  return end;
}

/** The stream only tells the end: the bytes come from the files. */
const nowhere = (): Writable => new Writable({ write: (_chunk, _encoding, done) => done() });
