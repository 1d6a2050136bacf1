import { extract, type Header } from 'tar-stream';
import { KataError } from '../../base/index.ts';

/**
 * One member of a tar stream. Names are "binary strings" (latin1): tar stores bytes. `pax` has a null prototype; its values
 * are binary strings too, so that a binary attribute such as security.capability arrives unharmed.
 */
export type TarHeader = Omit<Header, 'pax' | 'type' | 'linkname'> & {
  /** Null: a type that is none of the known ones. */
  type: Header['type'] | null;
  linkname: string | null;
  pax: Record<string, string> | null;
};

/**
 * tar-stream reads PAX records as UTF-8, which destroys binary values, and takes damaged ones for their end.
 * These members, of the pinned version, are replaced or used to do better; a unit test holds the binding.
 */
interface ExtractInternals {
  _header: { type: string };
  _pax: Record<string, string> | null;
  _paxGlobal: Record<string, string> | null;
  _decodeLongHeader(data: Uint8Array): void;
}

/**
 * Feeds `source` to the parser and calls `onEntry` for each member, one after the other; `onEntry` reads `body` as far as it likes.
 * Rejects with the first error of source, parser or `onEntry`; the source is closed then.
 */
export async function readTar(
  source: AsyncIterable<Uint8Array>,
  onEntry: (header: TarHeader, body: AsyncIterable<Uint8Array>) => Promise<void>,
): Promise<void> {
  const parser = extract({ filenameEncoding: 'latin1', allowUnknownFormat: true } as object);
  readPaxAsBytes(parser as unknown as ExtractInternals);
  let failure: unknown;
  const ended = new Promise<void>((resolve) => {
    parser.on('entry', (header, body, next) => {
      onEntry(header as TarHeader, body as AsyncIterable<Uint8Array>).then(
        () => {
          body.resume();
          next();
        },
        (error: unknown) => {
          failure ??= error;
          parser.destroy(error as Error);
        },
      );
    });
    parser.on('error', (error: Error) => {
      failure ??= error;
    });
    parser.on('close', () => resolve());
  });
  try {
    for await (const chunk of source) {
      if (parser.destroyed) break;
      if (!parser.write(chunk)) await drained(parser, ended);
    }
    parser.end(undefined);
  } catch (error) {
    failure ??= error;
    parser.destroy(error as Error);
  }
  await ended;
  if (failure !== undefined) throw failure;
}

function drained(parser: NodeJS.EventEmitter, ended: Promise<void>): Promise<void> {
  return new Promise((resolve) => {
    parser.once('drain', resolve);
    void ended.then(() => {
      parser.off('drain', resolve);
      resolve();
    });
  });
}

function readPaxAsBytes(parser: ExtractInternals): void {
  const readLongName = parser._decodeLongHeader;
  if (typeof readLongName !== 'function') throw new KataError('INTERNAL', 'tar-stream is not the pinned version');
  parser._decodeLongHeader = function decode(this: ExtractInternals, data: Uint8Array): void {
    if (this._header.type === 'pax-global-header') this._paxGlobal = decodePax(data);
    else if (this._header.type === 'pax-header')
      this._pax = Object.assign(Object.create(null), this._paxGlobal, decodePax(data));
    else readLongName.call(this, data);
  };
}

/** Records "<length> <key>=<value>\n" (POSIX pax). Throws on anything else. */
export function decodePax(data: Uint8Array): Record<string, string> {
  const records: Record<string, string> = Object.create(null);
  const text = Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString('latin1');
  for (let at = 0; at < text.length; ) {
    const space = text.indexOf(' ', at);
    const digits = text.slice(at, space < 0 ? at : space);
    const end = at + Number(digits);
    const equals = text.indexOf('=', space);
    if (!/^[1-9]\d{0,9}$/.test(digits) || end > text.length || text[end - 1] !== '\n' || equals < 0 || equals >= end)
      throw new KataError('IMAGE_INVALID', 'a PAX header of the tar is damaged', { phase: 'image' });
    records[text.slice(space + 1, equals)] = text.slice(equals + 1, end - 1);
    at = end;
  }
  return records;
}
