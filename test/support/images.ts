// Images for tests and measurements, written byte by byte: what load reads is never made by the program that is tested.

import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** A tar member as a test writes it; names, link names and PAX values are binary strings (latin1). */
export interface Entry {
  name: string;
  /** POSIX type flag; "0" unless given. */
  type?: string;
  mode?: number;
  uid?: number;
  gid?: number;
  mtime?: number;
  link?: string;
  major?: number;
  minor?: number;
  data?: Uint8Array | string;
  pax?: Record<string, string>;
}

const octal = (value: number, width: number): string => `${value.toString(8).padStart(width - 1, '0')}\0`;

function header(entry: Entry, size: number): Buffer {
  const block = Buffer.alloc(512);
  block.write(entry.name.slice(0, 100), 0, 'latin1');
  block.write(octal(entry.mode ?? (entry.type === '5' ? 0o755 : 0o644), 8), 100);
  block.write(octal(Math.min(entry.uid ?? 0, 0o7777777), 8), 108);
  block.write(octal(Math.min(entry.gid ?? 0, 0o7777777), 8), 116);
  block.write(octal(size, 12), 124);
  block.write(octal(Math.max(0, Math.floor(entry.mtime ?? 0)), 12), 136);
  block.write('        ', 148);
  block.write(entry.type ?? '0', 156);
  block.write((entry.link ?? '').slice(0, 100), 157, 'latin1');
  block.write('ustar\x0000', 257, 'latin1');
  block.write(octal(entry.major ?? 0, 8), 329);
  block.write(octal(entry.minor ?? 0, 8), 337);
  block.write(
    octal(
      block.reduce((sum, byte) => sum + byte, 0),
      7,
    ),
    148,
  );
  return block;
}

const padded = (data: Buffer): Buffer => Buffer.concat([data, Buffer.alloc((512 - (data.length % 512)) % 512)]);

export function paxRecord(key: string, value: string): string {
  const body = ` ${key}=${value}\n`;
  let length = body.length + 1;
  while (String(length).length + body.length !== length) length = String(length).length + body.length;
  return length + body;
}

/** A tar with PAX headers where a value does not fit into the plain one. */
export function tar(entries: readonly Entry[]): Buffer {
  const parts: Buffer[] = [];
  for (const entry of entries) {
    const pax = { ...entry.pax };
    if (entry.name.length > 100) pax.path ??= entry.name;
    if ((entry.link?.length ?? 0) > 100) pax.linkpath ??= entry.link as string;
    if ((entry.uid ?? 0) > 0o7777777) pax.uid ??= String(entry.uid);
    if ((entry.gid ?? 0) > 0o7777777) pax.gid ??= String(entry.gid);
    if (entry.mtime !== undefined && (!Number.isInteger(entry.mtime) || entry.mtime < 0))
      pax.mtime ??= String(entry.mtime);
    const records = Buffer.from(
      Object.entries(pax)
        .map(([key, value]) => paxRecord(key, value))
        .join(''),
      'latin1',
    );
    if (records.length > 0) parts.push(header({ name: 'PaxHeader', type: 'x' }, records.length), padded(records));
    const data = Buffer.from(entry.data ?? '');
    parts.push(header(entry, data.length), padded(data));
  }
  return Buffer.concat([...parts, Buffer.alloc(1024)]);
}

export const sha256 = (data: Uint8Array): string => createHash('sha256').update(data).digest('hex');
export const digest = (data: Uint8Array): string => `sha256:${sha256(data)}`;

export interface TestImage {
  layers: Buffer[];
  /** Blobs as they travel; the layers unless given. */
  blobs?: Buffer[];
  layerTypes?: string[];
  names?: string[];
  architecture?: string;
  config?: object;
}

export const configOf = (image: TestImage): Buffer =>
  Buffer.from(
    JSON.stringify({
      architecture: image.architecture ?? 'amd64',
      os: 'linux',
      config: { Cmd: ['sh'], Entrypoint: null, ...image.config },
      rootfs: { type: 'layers', diff_ids: image.layers.map(digest) },
    }),
  );

/** The members of an OCI layout with the images. */
export function layoutFiles(images: readonly TestImage[]): Map<string, Buffer> {
  const files = new Map<string, Buffer>([['oci-layout', Buffer.from('{"imageLayoutVersion":"1.0.0"}')]]);
  const put = (data: Buffer, mediaType: string) => {
    files.set(`blobs/sha256/${sha256(data)}`, data);
    return { mediaType, digest: digest(data), size: data.length };
  };
  const manifests = images.flatMap((image) => {
    const blobs = image.blobs ?? image.layers;
    const manifest = Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: 'application/vnd.oci.image.manifest.v1+json',
        config: put(configOf(image), 'application/vnd.oci.image.config.v1+json'),
        layers: blobs.map((blob, i) => put(blob, image.layerTypes?.[i] ?? 'application/vnd.oci.image.layer.v1.tar')),
      }),
    );
    const descriptor = put(manifest, 'application/vnd.oci.image.manifest.v1+json');
    const platform = { os: 'linux', architecture: image.architecture ?? 'amd64' };
    if (image.names === undefined) return [{ ...descriptor, platform }];
    return image.names.map((name) => ({
      ...descriptor,
      platform,
      annotations: { 'org.opencontainers.image.ref.name': name },
    }));
  });
  files.set('index.json', Buffer.from(JSON.stringify({ schemaVersion: 2, manifests })));
  return files;
}

/** The members of what `docker save` wrote before it wrote OCI layouts. */
export function dockerFiles(images: readonly TestImage[]): Map<string, Buffer> {
  const files = new Map<string, Buffer>();
  const manifest = images.map((image) => {
    const config = configOf(image);
    files.set(`${sha256(config)}.json`, config);
    const layers = (image.blobs ?? image.layers).map((layer, i) => {
      const name = `${sha256(layer).slice(0, 60)}${i}/layer.tar`;
      files.set(name, layer);
      return name;
    });
    return { Config: `${sha256(config)}.json`, RepoTags: image.names ?? null, Layers: layers };
  });
  files.set('manifest.json', Buffer.from(JSON.stringify(manifest)));
  return files;
}

export const archiveOf = (files: ReadonlyMap<string, Buffer>): Buffer =>
  tar([...files].map(([name, data]) => ({ name, data })));

/** Writes files below a directory, and answers the directory. */
export function writeFiles(dir: string, files: ReadonlyMap<string, Buffer>): string {
  for (const [name, data] of files) {
    mkdirSync(dirname(join(dir, name)), { recursive: true });
    writeFileSync(join(dir, name), data);
  }
  return dir;
}
