import { ERROR_CODES, KataError } from '../base/index.ts';

/** Lines of evidence and characters that a caller is shown. */
const MAX_EVIDENCE = 40;
const MAX_CHARS = 8192;

/** What containerd is told of a failure: its status code, and lines for the person who reads `ctr`'s or kubelet's message. */
export function statusOf(error: unknown): { status: number; message: string } {
  const known = KataError.from(error);
  const lines = [
    known.phase === undefined ? known.message : `${known.phase}: ${known.message}`,
    ...known.evidence.slice(-MAX_EVIDENCE).map((line) => `  ${line}`),
    ...(known.hint === undefined ? [] : [known.hint]),
  ];
  return { status: ERROR_CODES[known.code][0], message: lines.join('\n').slice(0, MAX_CHARS) };
}
