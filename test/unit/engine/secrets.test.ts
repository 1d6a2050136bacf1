import assert from 'node:assert/strict';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, test } from 'node:test';
import { SecretSpec } from '../../../src/api/schemas.ts';
import type { Container } from '../../../src/engine/container.ts';
import { start } from '../../../src/engine/lifecycle.ts';
import { checkSecrets, checkValues, MAX_SECRET_BYTES, Secrets } from '../../../src/engine/secrets.ts';
import { config, World } from './fakes.ts';

let world: World;
beforeEach(() => {
  world = new World();
});
afterEach(() => world.dispose());

const spec = (more: Partial<SecretSpec>): SecretSpec => SecretSpec.parse({ name: 'TOKEN', ...more });
const base64 = (text: string): string => Buffer.from(text).toString('base64');
const made = async (
  secrets: SecretSpec[],
  user = '',
): Promise<{ engine: ReturnType<World['engine']>; container: Container }> => {
  const engine = world.engine();
  return { engine, container: await engine.create(config({ secrets, user }), undefined) };
};

test('two secrets at one place, and places that are none, are refused', () => {
  checkSecrets([spec({}), spec({ name: 'other' }), spec({ name: 'variable', type: 'env', target: 'TOKEN' })]);
  for (const wrong of [
    [spec({}), spec({ target: '/elsewhere' })],
    [spec({}), spec({ name: 'other', target: 'TOKEN' })],
    [spec({ target: '/etc/../run/secrets/x' }), spec({ name: 'x' })],
    [spec({ type: 'env' }), spec({ name: 'other', type: 'env', target: 'TOKEN' })],
    [spec({ type: 'env', target: 'A=B' })],
    [spec({ target: '/' })],
  ])
    assert.throws(() => checkSecrets(wrong), { code: 'INVALID_ARGUMENT' });
});

test('values that nothing waits for, and too large ones, are refused', () => {
  const specs = [spec({}), spec({ name: 'file', source: '/x' })];
  checkValues(specs, { TOKEN: base64('v') });
  const tooLarge = Buffer.alloc(MAX_SECRET_BYTES + 1).toString('base64');
  const wrong: Record<string, string>[] = [{ other: '' }, { file: '' }, { TOKEN: tooLarge }];
  for (const values of wrong) assert.throws(() => checkValues(specs, values), { code: 'INVALID_ARGUMENT' });
});

test('files get their place, owner and mode, variables their name; an exec inherits these', async () => {
  const source = join(world.dir, 'source');
  writeFileSync(source, 'from a file');
  const { engine, container } = await made(
    [
      spec({}),
      spec({ name: 'db', type: 'env', target: 'DB' }),
      spec({ name: 'f', source, target: '/etc/f', mode: 0o440, uid: 7 }),
    ],
    '1000:1001',
  );
  engine.secrets.remember(container, { TOKEN: base64('value'), db: base64('text') });
  const plan = engine.secrets.addTo(engine.planOf(container), container);
  assert.deepEqual(
    plan.secrets?.map(({ content, mode, uid, gid }) => [content.toString(), mode, uid, gid]),
    [
      ['value', 0o400, 1000, 1001],
      ['from a file', 0o440, 7, 1001],
    ],
  );
  const [first, second] = plan.secrets ?? [];
  const mounts = plan.spec.mounts.filter(({ source }) => source.includes('/secrets/'));
  assert.deepEqual(
    mounts.map(({ source, destination, options }) => [source, destination, options.includes('ro')]),
    [
      [first?.path, '/run/secrets/TOKEN', true],
      [second?.path, '/etc/f', true],
    ],
  );
  assert.ok(plan.spec.process.env.includes('DB=text'));
  assert.ok(engine.processOf(container).env.includes('DB=text'));
  assert.equal(JSON.stringify(container.record).includes('value'), false);
  // Read again at every start.
  writeFileSync(source, 'changed');
  assert.equal(engine.secrets.addTo(engine.planOf(container), container).secrets?.[1]?.content.toString(), 'changed');
  rmSync(source);
  assert.throws(() => engine.secrets.addTo(engine.planOf(container), container), { code: 'SECRET_MISSING' });
});

test('a start without a value fails and says what to do; a variable holds text only', async () => {
  const { engine, container } = await made([spec({ type: 'env' })]);
  const begin = () => start(engine, container, { resumed: false });
  await assert.rejects(begin(), (error: { code: string; hint: string }) => {
    assert.deepEqual([error.code, /kata start --secret TOKEN/.test(error.hint)], ['SECRET_MISSING', true]);
    return true;
  });
  assert.deepEqual(
    engine.processOf(container).env.filter((entry) => entry.startsWith('TOKEN')),
    [],
  );
  engine.secrets.remember(container, { TOKEN: Buffer.from([0xff]).toString('base64') });
  await assert.rejects(begin(), { code: 'INVALID_ARGUMENT' });
  engine.secrets.remember(container, { TOKEN: base64('x') });
  await begin();
  await engine.discard(container, false).catch(() => {});
  const other = new Secrets();
  assert.throws(() => other.addTo(engine.planOf(container), container), { code: 'SECRET_MISSING' });
});
