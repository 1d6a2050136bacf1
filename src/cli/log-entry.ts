/** One line of a log file (docs/ARCHITECTURE.md, "Log files"; the format of Kubernetes' CRI logs). */
export interface LogEntry {
  /** RFC 3339 with nine decimals: sorts as text. */
  time: string;
  stream: 'stdout' | 'stderr' | 'system';
  /** F: the line ends here; P: a part, more follows; D: `text` lines were dropped. */
  tag: 'F' | 'P' | 'D';
  /** A view into the buffer that was read. */
  text: Buffer;
  /** Of the agent's log: stands in JSON in place of the stream. */
  agent?: { level: string; subsystem: string };
}

/** Reads a line without its newline; undefined: it is not one of the log, 'other': it is not wanted. */
export type LogParser = (line: Buffer) => LogEntry | 'other' | undefined;

const SPACE = 0x20;
const NEWLINE = 0x0a;
/** Longest head: a time, a stream name, a tag and three spaces. */
const MAX_HEAD_BYTES = 64;

/** Reads a line without its newline; undefined when it is not one of a log. */
export function parseLogLine(line: Buffer): LogEntry | undefined {
  const first = line.indexOf(SPACE);
  const second = line.indexOf(SPACE, first + 1);
  if (first < 20 || second < 0 || second > MAX_HEAD_BYTES) return undefined;
  const stream = line.toString('latin1', first + 1, second);
  const tag = line.toString('latin1', second + 1, second + 2);
  const hasText = line[second + 2] === SPACE;
  if (!hasText && line.length !== second + 2) return undefined;
  const known = stream === 'system' ? tag === 'D' : (stream === 'stdout' || stream === 'stderr') && 'FP'.includes(tag);
  if (!known || tag === '') return undefined;
  return {
    time: normalizeTime(line.toString('latin1', 0, first)),
    stream: stream as LogEntry['stream'],
    tag: tag as LogEntry['tag'],
    text: line.subarray(hasText ? second + 3 : second + 2),
  };
}

function normalizeTime(time: string): string {
  if (time.length === 30) return time;
  const [, seconds = '', fraction = ''] = /^([^.Z]*)(?:\.(\d+))?Z$/.exec(time) ?? [];
  return seconds === '' ? time : `${seconds}.${fraction.slice(0, 9).padEnd(9, '0')}Z`;
}

export interface LogFormat {
  parse: LogParser;
  /** What has no newline at the end is shown; otherwise it is damaged. */
  takesRest: boolean;
}

export const CONTAINER_LOG: LogFormat = { parse: parseLogLine, takesRest: false };

/** Cuts chunks into lines; a rest without a newline waits for the next chunk, up to `maxLineBytes`. */
export class LineSplitter {
  #rest: Buffer[] = [];
  #restBytes = 0;
  readonly #maxLineBytes: number;

  constructor(maxLineBytes: number) {
    this.#maxLineBytes = maxLineBytes;
  }

  /** Bytes that wait for their newline. */
  get pendingBytes(): number {
    return this.#restBytes;
  }

  takeRest(): Buffer {
    return this.#joined(Buffer.alloc(0));
  }

  *push(chunk: Buffer): Generator<Buffer> {
    let at = 0;
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, at)) {
      const line = chunk.subarray(at, end);
      at = end + 1;
      yield this.#restBytes === 0 ? line : this.#joined(line);
    }
    if (at === chunk.length) return;
    // A copy: the chunk's memory is read into again.
    this.#rest.push(Buffer.from(chunk.subarray(at)));
    this.#restBytes += chunk.length - at;
    if (this.#restBytes > this.#maxLineBytes) yield this.#joined(Buffer.alloc(0));
  }

  #joined(end: Buffer): Buffer {
    const line = Buffer.concat([...this.#rest, end]);
    this.#rest = [];
    this.#restBytes = 0;
    return line;
  }
}
