import { createInterface } from 'node:readline';
import { KataError } from '../base/index.ts';
import { rawMode } from './terminal.ts';

const MAX_PASSWORD_BYTES = 64 * 2 ** 10;
const INTERRUPT = '\x03';
const END_OF_FILE = '\x04';

/** One line of the terminal, shown as it is typed. */
export function askLine(question: string): Promise<string> {
  const reader = createInterface({ input: process.stdin, output: process.stderr });
  return new Promise((resolve) => {
    reader.once('close', () => resolve(''));
    reader.question(question, (answer) => {
      resolve(answer.trim());
      reader.close();
    });
  });
}

/** One line of the terminal that nobody sees. */
export async function askSecret(question: string): Promise<string> {
  process.stderr.write(question);
  const raw = rawMode(process.stdin);
  let text = '';
  try {
    process.stdin.setEncoding('utf8');
    for await (const chunk of process.stdin as AsyncIterable<string>)
      for (const character of chunk) {
        if (character === '\r' || character === '\n' || character === END_OF_FILE) return text;
        if (character === INTERRUPT) throw new KataError('CANCELLED', 'no password was given');
        text = character === '\x7f' || character === '\b' ? text.slice(0, -1) : text + character;
      }
    return text;
  } finally {
    raw.restore();
    process.stderr.write('\n');
  }
}

/** All of standard input, without the line's end, as docker takes it. */
export async function passwordFromStdin(): Promise<string> {
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
    chunks.push(chunk);
    length += chunk.length;
    if (length > MAX_PASSWORD_BYTES) throw new KataError('INVALID_ARGUMENT', 'the password is too long');
  }
  return Buffer.concat(chunks)
    .toString('utf8')
    .replace(/\r?\n$/, '');
}
