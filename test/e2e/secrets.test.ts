import assert from 'node:assert/strict';
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { kill9, REPO, TestEnv } from '../support/env.ts';

const env = new TestEnv();
after(async () => assert.deepEqual(await env.dispose(), []));

// Never in this process's own environment or arguments.
const VALUES = {
  file: 'correct-horse-7f3a91',
  variable: 'battery-staple-55d0c2',
  exec: 'paper-clip-a8e1b7',
  source: 'from-a-file-19bb3e',
};
const FORMS = Object.values(VALUES).flatMap((value) => [value, Buffer.from(value).toString('base64')]);

/** Files below `path` that hold a secret in any form. */
function found(path: string, except: readonly string[]): string[] {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined || except.includes(path)) return [];
  if (stat.isDirectory()) return readdirSync(path).flatMap((name) => found(join(path, name), except));
  if (!stat.isFile()) return [];
  const bytes = readFileSync(path);
  return FORMS.filter((form) => bytes.includes(form)).map((form) => `${path}: ${form}`);
}

/** Arguments and environment of every process that there is. */
function inProcesses(): string[] {
  const texts = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((pid) =>
      ['cmdline', 'environ'].map((file) => {
        try {
          return [`${pid}/${file}`, readFileSync(`/proc/${pid}/${file}`, 'utf8')] as const;
        } catch {
          return [pid, ''] as const;
        }
      }),
    );
  return texts.filter(([, text]) => FORMS.some((form) => text.includes(form))).map(([place]) => place);
}

test('secrets reach the process and nothing else', async (t) => {
  const source = join(env.root, 'source-of-a-secret');
  writeFileSync(source, VALUES.source);
  const flags = [
    ...['--secret', 'TOKEN', '--secret', 'id=password,env=PASSWORD,type=env,target=DB_PASSWORD'],
    ...['--secret', `id=key,src=${source},target=/etc/key,mode=444`],
  ];
  const callers = { env: { TOKEN: VALUES.file, PASSWORD: VALUES.variable } };
  const script = 'sleep 100000';
  // With a share of the host's: what is written into the guest's shared directory would be on the host.
  const options = [
    '-d',
    '--name',
    's',
    '--disk-size',
    '64m',
    '-v',
    `${REPO}/docs:/docs:ro`,
    '--health-cmd',
    'true',
    ...flags,
  ];
  await env.ok(['run', ...options, 'busybox', 'sh', '-c', script], callers);
  await t.test('as a file that the process alone reads, in memory, and as a variable', async () => {
    const script = [
      'cat /run/secrets/TOKEN; echo',
      'stat -c "%a %u" /run/secrets/TOKEN',
      'echo $DB_PASSWORD',
      "tr '\\0' '\\n' < /proc/1/environ | grep -c ^DB_PASSWORD=",
      'cat /etc/key; echo',
      'stat -c %a /etc/key',
      'awk \'$2 == "/run/secrets/TOKEN" { print $3, substr($4, 1, 2) }\' /proc/mounts',
      'touch /run/secrets/TOKEN 2>&1 || echo read-only',
    ].join('; ');
    const lines = (await env.ok(['exec', 's', 'sh', '-c', script])).split('\n');
    assert.deepEqual(lines.slice(0, 6), [VALUES.file, '400 0', VALUES.variable, '1', VALUES.source, '444']);
    assert.match(lines[6] ?? '', /^(tmpfs|ramfs|rootfs) ro$/);
    assert.match(lines.at(-1) ?? '', /read-only/i);
  });
  await t.test('an exec gets one of its own', async () => {
    const exec = ['exec', '--secret', 'ONCE', 's', 'sh', '-c', 'echo $ONCE'];
    assert.equal(await env.ok(exec, { env: { ONCE: VALUES.exec } }), VALUES.exec);
    const refused = await env.kata(['exec', '--secret', 'ONCE,type=file', 's', 'true'], { env: { ONCE: 'x' } });
    assert.match(refused.stderr, /variables only/);
  });
  await t.test('it is nowhere on the host', async () => {
    await env.ok(['events', '--since', '1h', '--until', '0s', '--json']);
    const shown = `${await env.ok(['inspect', 's'])}${await env.ok(['logs', '--agent', 's'])}`;
    assert.deepEqual(
      FORMS.filter((form) => shown.includes(form)),
      [],
    );
    assert.deepEqual(inProcesses(), []);
    assert.deepEqual(found(env.root, [source]), []);
    // The search finds what is there.
    assert.equal(found(source, []).length, 1);
  });
  await t.test('a restarted engine needs what came from the environment again', async () => {
    await kill9((await env.enginePid()) ?? 0);
    await env.ok(['stop', '-t', '0', 's']);
    const refused = await env.kata(['start', 's']);
    assert.equal(refused.code, 1);
    assert.match(refused.stderr, /SECRET_MISSING/);
    assert.match(refused.stderr, /kata start --secret TOKEN s/);
    const again = ['start', '--secret', 'TOKEN', '--secret', 'password', 's'];
    await env.ok(again, { env: { TOKEN: VALUES.file, password: VALUES.variable } });
    assert.equal(
      await env.ok(['exec', 's', 'sh', '-c', 'cat /run/secrets/TOKEN; echo $DB_PASSWORD']),
      VALUES.file + VALUES.variable,
    );
    // The same engine knows it.
    await env.ok(['restart', '-t', '0', 's']);
    assert.equal(await env.ok(['exec', 's', 'cat', '/run/secrets/TOKEN']), VALUES.file);
  });
  await env.ok(['rm', '-f', 's']);
  assert.deepEqual(found(env.root, [source]), []);
});

test('what cannot be is refused before anything is made', async () => {
  for (const [secret, message] of [
    ['NOT_THERE', /no variable NOT_THERE in the environment/],
    ['id=x,src=/nowhere/at/all', /ENOENT/],
    ['id=x,src=/etc/hostname,env=HOME', /not both/],
    ['id=HOME,type=socket', /type is file or env/],
    ['id=../x,env=HOME', /its name is/],
    ['id=x-y,env=HOME,type=env', /no name of a variable/],
    ['id=x,env=HOME,target=/', /no file/],
  ] as const) {
    const output = await env.kata(['create', '--secret', secret, 'busybox']);
    assert.deepEqual([output.code, message.test(output.stderr)], [125, true], output.stderr);
  }
  assert.equal(await env.ok(['ps', '-aq']), '');
});
