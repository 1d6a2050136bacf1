import assert from 'node:assert/strict';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildGuest, findImage, type StoredImage } from '../../src/setup/guest/index.ts';
import { install } from '../../src/setup/install.ts';
import { silentProgress } from '../../src/setup/progress.ts';
import { readTools } from '../../src/setup/tools.ts';
import { ASSETS, REPO } from '../support/env.ts';

/** Two whole builds of keeper and agent on two cores. */
const TIMEOUT_MS = 15 * 60_000;

let directory: string;
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'kata-guest-'));
});
after(() => rmSync(directory, { recursive: true, force: true }));

/** A checkout elsewhere with assets of its own; the kernel package is the one that is in the cache. */
async function buildElsewhere(name: string): Promise<{ image: StoredImage; assets: string }> {
  const home = join(directory, name, 'checkout');
  const assets = join(directory, name, 'assets');
  const filter = (path: string) => !path.startsWith(join(REPO, 'native', 'target'));
  for (const part of ['native', 'guest']) cpSync(join(REPO, part), join(home, part), { recursive: true, filter });
  mkdirSync(join(assets, 'cache'), { recursive: true });
  const { packageSha256 } = (await findImage(ASSETS)).manifest.kernel;
  cpSync(join(ASSETS, 'cache', `${packageSha256}.deb`), join(assets, 'cache', `${packageSha256}.deb`));
  await install(home, assets, ['base'], { progress: silentProgress });
  return { image: await findImage(assets), assets };
}

test('the same sources give the same programs and image wherever they are built', { timeout: TIMEOUT_MS }, async () => {
  const one = await buildElsewhere('one');
  const two = await buildElsewhere('another-place');
  assert.deepEqual(two.image.manifest, one.image.manifest);
  const [first, second] = [await readTools(one.assets), await readTools(two.assets)];
  assert.equal(second['kata-keeper']?.sha256, first['kata-keeper']?.sha256);
  const text = readFileSync(first['kata-agent']?.path as string).toString('latin1');
  assert.ok(!text.includes(directory), 'the agent names the directory that it was built in');
});

test('a manifest is enough to repeat an image', { timeout: TIMEOUT_MS }, async () => {
  const image = await findImage(ASSETS);
  const manifest = join(directory, 'manifest.json');
  writeFileSync(manifest, JSON.stringify(image.manifest));
  const repeated = await buildGuest(ASSETS, { from: manifest, progress: silentProgress });
  assert.equal(repeated.manifest.kernel.packageSha256, image.manifest.kernel.packageSha256);
  assert.equal(repeated.manifest.vmlinux.sha256, image.manifest.vmlinux.sha256);
});
