// The world outside, in a network namespace of its own: servers that say who called, names, and a client on request.
import { createSocket } from 'node:dgram';
import { createServer } from 'node:net';
import { createInterface } from 'node:readline';

type Records = Record<string, { a?: string[]; aaaa?: string[]; cname?: string }>;

const [records, ports] = [
  JSON.parse(process.argv[2] ?? '{}') as Records,
  JSON.parse(process.argv[3] ?? '[]') as number[],
];

for (const port of ports) {
  createServer((socket) => {
    socket.on('error', () => {});
    socket.end(`outside ${socket.localAddress} ${socket.localPort} called by ${socket.remoteAddress}\n`);
  }).listen(port, '::');
  const echo = createSocket({ type: 'udp6', ipv6Only: false });
  echo.on('message', (message, from) => echo.send(`echo ${message}`, from.port, from.address));
  echo.bind(port, '::');
}

const nameServer = createSocket({ type: 'udp6', ipv6Only: false });
nameServer.on('message', (query, from) => nameServer.send(answer(query, true), from.port, from.address));
nameServer.bind(53, '::');
createServer((socket) => {
  socket.on('error', () => {});
  socket.on('data', (bytes) => {
    const text = answer(bytes.subarray(2), false);
    const length = Buffer.alloc(2);
    length.writeUInt16BE(text.length);
    socket.write(Buffer.concat([length, text]));
  });
}).listen(53, '::', () => console.log('ready'));

/** Over UDP the name "big.…" has only the word that it is too large. */
function answer(query: Buffer, isUdp: boolean): Buffer {
  let at = 12;
  const labels: string[] = [];
  for (let length = query[at] ?? 0; length > 0; length = query[at] ?? 0) {
    labels.push(query.toString('latin1', at + 1, at + 1 + length).toLowerCase());
    at += length + 1;
  }
  const name = labels.join('.');
  const kind = query.readUInt16BE(at + 1);
  const head = Buffer.from(query.subarray(0, at + 5));
  head.writeUInt16BE(0x8180, 2);
  for (const place of [6, 8, 10]) head.writeUInt16BE(0, place);
  const known = records[name];
  if (known === undefined) {
    head.writeUInt16BE(0x8183, 2);
    return head;
  }
  if (isUdp && name.startsWith('big.')) {
    head.writeUInt16BE(0x8380, 2);
    return head;
  }
  const target = known.cname === undefined ? known : (records[known.cname] ?? {});
  const parts: Buffer[] = [];
  if (known.cname !== undefined) parts.push(record(encoded(name), 5, encoded(known.cname)));
  const owner = encoded(known.cname ?? name);
  if (kind === 1)
    for (const text of target.a ?? []) parts.push(record(owner, 1, Buffer.from(text.split('.').map(Number))));
  if (kind === 28) for (const text of target.aaaa ?? []) parts.push(record(owner, 28, bytes6(text)));
  head.writeUInt16BE(parts.length, 6);
  return Buffer.concat([head, ...parts]);
}

function encoded(name: string): Buffer {
  return Buffer.concat([
    ...name.split('.').flatMap((label) => [Buffer.from([label.length]), Buffer.from(label)]),
    Buffer.from([0]),
  ]);
}

function record(owner: Buffer, kind: number, data: Buffer): Buffer {
  const fixed = Buffer.alloc(10);
  fixed.writeUInt16BE(kind, 0);
  fixed.writeUInt16BE(1, 2);
  fixed.writeUInt32BE(60, 4);
  fixed.writeUInt16BE(data.length, 8);
  return Buffer.concat([owner, fixed, data]);
}

function bytes6(text: string): Buffer {
  const [head = '', tail = ''] = text.split('::');
  const [front, back] = [head, tail].map((part) => part.split(':').filter(Boolean));
  const missing = Array<string>(8 - (front?.length ?? 0) - (back?.length ?? 0)).fill('0');
  const groups = [...(front ?? []), ...missing, ...(back ?? [])];
  return Buffer.concat(groups.map((group) => Buffer.from(group.padStart(4, '0'), 'hex')));
}

/** One URL a line; the body, or the error, as one line of JSON. */
createInterface({ input: process.stdin }).on('line', async (url) => {
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(3_000) });
    console.log(JSON.stringify({ status: response.status, body: await response.text() }));
  } catch (error) {
    console.log(JSON.stringify({ status: 0, body: String((error as Error).cause ?? error) }));
  }
});
process.stdin.on('end', () => process.exit(0));
