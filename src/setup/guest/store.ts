import { randomBytes } from 'node:crypto';
import { mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { KataError } from '../../base/index.ts';
import { sha256OfFile } from '../tools.ts';
import type { GuestImage } from './image.ts';
import { type GuestManifest, imageDigest, readManifest } from './manifest.ts';

const DIGITS = 12;
const NAME = /^[0-9a-f]{12}$/;

const storeDir = (assets: string): string => join(assets, 'guest');
export const imageDir = (assets: string, name: string): string => join(storeDir(assets), name);

/** An image of the store as people see it. */
export interface StoredImage {
  /** First 12 digits of the digest. */
  name: string;
  directory: string;
  current: boolean;
  manifest: GuestManifest;
}

/** Puts an image into its content-addressed place, in one step; an image that is there stays as it is. Answers its name. */
export async function storeImage(assets: string, { manifest, vmlinux, initrd }: GuestImage): Promise<string> {
  const name = manifest.digest.slice(0, DIGITS);
  const target = imageDir(assets, name);
  if (await isIntact(target)) return name;
  const temporary = join(storeDir(assets), `.${name}.${randomBytes(4).toString('hex')}`);
  await mkdir(temporary, { recursive: true });
  try {
    await writeDurably(join(temporary, 'vmlinux'), vmlinux);
    await writeDurably(join(temporary, 'initrd'), initrd);
    await writeDurably(join(temporary, 'manifest.json'), `${JSON.stringify(manifest, null, 2)}\n`);
    // Only a damaged one can be there; running machines have read theirs at their start.
    await rm(target, { recursive: true, force: true });
    await rename(temporary, target);
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
  return name;
}

/** Names the image that new sandboxes boot. */
export async function setCurrentImage(assets: string, name: string): Promise<void> {
  const path = join(storeDir(assets), 'current');
  const temporary = `${path}.${randomBytes(4).toString('hex')}`;
  await writeFile(temporary, `${name}\n`);
  await rename(temporary, path);
}

/** Name of the image that new sandboxes boot, undefined when none was built yet. */
export async function currentImage(assets: string): Promise<string | undefined> {
  const text = await readFile(join(storeDir(assets), 'current'), 'utf8').catch(() => '');
  return NAME.test(text.trim()) ? text.trim() : undefined;
}

/** Images of the store, the current one first, then by name. Directories without a usable manifest are left out. */
export async function listImages(assets: string): Promise<StoredImage[]> {
  const current = await currentImage(assets);
  const names = (await readdir(storeDir(assets)).catch(() => [])).filter((name) => NAME.test(name)).sort();
  const images: StoredImage[] = [];
  for (const name of names) {
    const directory = imageDir(assets, name);
    const manifest = await readManifest(join(directory, 'manifest.json')).catch(() => undefined);
    if (manifest !== undefined) images.push({ name, directory, current: name === current, manifest });
  }
  return images.sort((a, b) => Number(b.current) - Number(a.current));
}

/** Finds an image by a unique beginning of its digest; without one, the current image. Throws NOT_FOUND. */
export async function findImage(assets: string, prefix?: string): Promise<StoredImage> {
  const images = await listImages(assets);
  const found = images.filter(({ current, manifest }) =>
    prefix === undefined ? current : prefix !== '' && manifest.digest.startsWith(prefix),
  );
  const [image] = found;
  if (image !== undefined && found.length === 1) return image;
  const what =
    prefix === undefined ? 'no guest image is in use' : `${found.length || 'no'} guest images start with "${prefix}"`;
  throw new KataError('NOT_FOUND', what, {
    phase: 'guest-image',
    hint: images.length === 0 ? `run 'kata guest build'` : `run 'kata guest list'`,
  });
}

/** Reads an image's files and compares them with its manifest. Throws GUEST_IMAGE_INVALID naming what differs. */
export async function verifyImage(directory: string): Promise<GuestManifest> {
  const manifest = await readManifest(join(directory, 'manifest.json'));
  const evidence: string[] = [];
  for (const name of ['vmlinux', 'initrd'] as const) {
    const found = await sha256OfFile(join(directory, name)).catch((error: Error) => error.message);
    if (found !== manifest[name].sha256) evidence.push(`${name}: ${found}, not sha256 ${manifest[name].sha256}`);
  }
  const digest = imageDigest(manifest.vmlinux.sha256, manifest.initrd.sha256);
  if (digest !== manifest.digest) evidence.push(`digest: ${digest}, not ${manifest.digest}`);
  if (evidence.length > 0)
    throw new KataError('GUEST_IMAGE_INVALID', `the guest image in ${directory} was changed`, {
      phase: 'guest-image',
      evidence,
      hint: `run 'kata guest build'`,
    });
  return manifest;
}

/** Removes images that are not used, and packages that no remaining image names. Answers what was removed. */
export async function pruneImages(assets: string, isUsed: (directory: string) => boolean): Promise<string[]> {
  const removed: string[] = [];
  const kept = new Set<string>();
  for (const { directory, current, manifest } of await listImages(assets)) {
    if (current || isUsed(directory)) {
      kept.add(manifest.kernel.packageSha256);
      continue;
    }
    await rm(directory, { recursive: true, force: true });
    removed.push(directory);
  }
  const cache = join(assets, 'cache');
  for (const name of await readdir(cache).catch(() => [])) {
    const sha256 = /^([0-9a-f]{64})\.deb$/.exec(name)?.[1];
    if (sha256 === undefined || kept.has(sha256)) continue;
    await rm(join(cache, name), { force: true });
    removed.push(join(cache, name));
  }
  return removed;
}

const isIntact = (directory: string): Promise<boolean> =>
  verifyImage(directory).then(
    () => true,
    () => false,
  );

async function writeDurably(path: string, data: Buffer | string): Promise<void> {
  const file = await open(path, 'wx', 0o644);
  try {
    await file.writeFile(data);
    await file.sync();
  } finally {
    await file.close();
  }
}
