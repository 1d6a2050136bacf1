import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import fs from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { collect, HANG_GUARD_MS, REPO, TestEnv, until } from '../support/env.ts';

const env = new TestEnv();
const scratch = fs.mkdtempSync('/tmp/kcp-');
after(async () => {
  fs.rmSync(scratch, { recursive: true, force: true });
  assert.deepEqual(await env.dispose(), []);
});

const TREE_FILES = 10_000;
const MiB = 2 ** 20;

/** One line for each entry: what a copy must keep. */
function listing(dir: string): string {
  const format = '%P %y %m %n %s %l\n';
  const all = execFileSync('find', [dir, '-mindepth', '1', '-printf', format], { maxBuffer: 2 ** 26 }).toString();
  return all
    .split('\n')
    .map((line) => (/ d /.test(line) ? line.replace(/ \d+ \d+ $/, '') : line))
    .sort()
    .join('\n');
}

const sum = (path: string): string => createHash('sha256').update(fs.readFileSync(path)).digest('hex');

test('copies between this host and a container', async (t) => {
  await env.ok(['run', '-d', '--name', 'web', '-v', 'vol:/vol', 'busybox', 'sleep', '1000']);

  await t.test('a tree of 10 000 files goes in and comes back', async () => {
    const tree = join(scratch, 'tree');
    for (let dir = 0; dir < 100; dir++) {
      fs.mkdirSync(join(tree, `${dir}`), { recursive: true });
      for (let file = 0; file < TREE_FILES / 100; file++)
        fs.writeFileSync(join(tree, `${dir}`, `f${file}`), `${dir} ${file}`, { mode: 0o600 + (file % 8) });
    }
    fs.linkSync(join(tree, '0/f0'), join(tree, 'linked'));
    fs.symlinkSync('0/f1', join(tree, 'link'));
    fs.truncateSync(fs.writeFileSync(join(tree, 'sparse'), 'x') ?? join(tree, 'sparse'), 2 ** 34);
    execFileSync('setfattr', ['-n', 'user.k', '-v', 'v', join(tree, 'link')]);
    await env.ok(['cp', '-q', tree, 'web:/']);
    await env.ok(['cp', '-q', 'web:/tree', join(scratch, 'back')]);
    assert.equal(listing(join(scratch, 'back')), listing(tree));
    assert.ok(fs.statSync(join(scratch, 'back/sparse')).blocks < 1000);
    const attributes = execFileSync('getfattr', ['--absolute-names', '-d', join(scratch, 'back/0/f1')]).toString();
    assert.match(attributes, /user\.k="v"/);
    fs.rmSync(join(scratch, 'back'), { recursive: true });
  });

  await t.test('1 GiB through a pipe comes out byte by byte', async () => {
    const script = 'yes 0123456789abcdef | head -c 1000000 >/part; cp /part /gib; truncate -s 1073741824 /gib';
    await env.ok(['exec', 'web', 'sh', '-c', script]);
    const hash = createHash('sha256');
    const through = '"$0" cp web:/gib - | tar xO';
    const pipe = spawn('sh', ['-c', through, join(REPO, 'kata')], {
      env: env.environment,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let bytes = 0;
    pipe.stdout.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
      hash.update(chunk);
    });
    const [code] = await once(pipe, 'close');
    assert.deepEqual([code, bytes], [0, 2 ** 30]);
    const expected = createHash('sha256');
    const start = Buffer.from('0123456789abcdef\n'.repeat(60_000)).subarray(0, 1_000_000);
    expected.update(start);
    const zeros = Buffer.alloc(MiB);
    for (let left = 2 ** 30 - start.length; left > 0; left -= zeros.length) expected.update(zeros.subarray(0, left));
    assert.equal(hash.digest('hex'), expected.digest('hex'));
  });

  await t.test('random bytes go in by a tar stream of any tar', async () => {
    const file = join(scratch, 'random');
    fs.writeFileSync(file, execFileSync('head', ['-c', `${8 * MiB}`, '/dev/urandom'], { maxBuffer: 2 ** 25 }));
    const archive = execFileSync('tar', ['c', '-C', scratch, '--owner=:1234', 'random'], { maxBuffer: 2 ** 25 });
    await env.ok(['cp', '-', 'web:/tmp'], { stdin: archive });
    const found = await env.ok(['exec', 'web', 'sh', '-c', 'sha256sum /tmp/random; stat -c %u /tmp/random']);
    assert.equal(found, `${sum(file)}  /tmp/random\n1234`);
  });

  await t.test('owners are the copier’s, and with -a those of the source', async () => {
    const file = join(scratch, 'owned');
    fs.writeFileSync(file, 'x');
    fs.chownSync(file, 1234, 4321);
    fs.chmodSync(file, 0o4755);
    await env.ok(['cp', file, 'web:/plain']);
    await env.ok(['cp', '-a', file, 'web:/kept']);
    assert.equal(
      await env.ok(['exec', 'web', 'stat', '-c', '%u:%g %a', '/plain', '/kept']),
      '0:0 4755\n1234:4321 4755',
    );
    await env.ok(['cp', 'web:/kept', join(scratch, 'plain')]);
    await env.ok(['cp', '-a', 'web:/kept', join(scratch, 'kept')]);
    const facts = (name: string) => {
      const { uid, gid, mode } = fs.statSync(join(scratch, name));
      return [uid, gid, mode & 0o7777];
    };
    assert.deepEqual(facts('plain'), [0, 0, 0o755]);
    assert.deepEqual(facts('kept'), [1234, 4321, 0o4755]);
  });

  await t.test('volumes, mounted files and generated ones', async () => {
    const file = join(scratch, 'file');
    fs.writeFileSync(file, 'content\n');
    await env.ok(['cp', file, 'web:/vol']);
    assert.equal(fs.readFileSync(join(env.root, 'volumes/vol/_data/file'), 'utf8'), 'content\n');
    await env.ok(['cp', file, 'web:/etc/hosts']);
    assert.equal(await env.ok(['exec', 'web', 'cat', '/etc/hosts']), 'content');
    await env.ok(['cp', 'web:/proc/version', join(scratch, 'version')]);
    assert.match(fs.readFileSync(join(scratch, 'version'), 'utf8'), /^Linux version/);
  });

  await t.test('links: copied as such, followed with -L, never out of the container', async () => {
    await env.ok([
      'exec',
      'web',
      'sh',
      '-c',
      'echo inside >/etc/shadow; ln -s /etc/shadow /s; ln -s ../../../../../.. /up',
    ]);
    await env.ok(['cp', 'web:/s', join(scratch, 's')]);
    assert.equal(fs.readlinkSync(join(scratch, 's')), '/etc/shadow');
    await env.ok(['cp', '-L', 'web:/s', join(scratch, 'followed')]);
    assert.equal(fs.readFileSync(join(scratch, 'followed'), 'utf8'), 'inside\n');
    await env.ok(['cp', 'web:/up/../../etc/shadow', join(scratch, 'again')]);
    assert.equal(fs.readFileSync(join(scratch, 'again'), 'utf8'), 'inside\n');
  });

  await t.test('a link that a guest swaps in leads nowhere on the host', async () => {
    const swap =
      'mkdir -p /swap/dir; echo guest >/swap/dir/passwd; while [ ! -e /end ]; do mv /swap/dir /swap/d2; ln -s /etc /swap/dir; rm /swap/dir; mv /swap/d2 /swap/dir; done';
    await env.ok(['exec', '-d', 'web', 'sh', '-c', swap]);
    await until(async () => (await env.kata(['exec', 'web', 'test', '-e', '/swap'])).code === 0, 'the guest swaps');
    const before = sum('/etc/passwd');
    const to = join(scratch, 'swapped');
    for (let round = 0; round < 5; round++) {
      fs.mkdirSync(to);
      await env.kata(['cp', 'web:/swap', to]);
      const read = execFileSync('sh', ['-c', `find ${to} -type f -exec cat {} +`]).toString();
      assert.ok(['', 'guest\n', 'guest\nguest\n'].includes(read), read);
      fs.rmSync(to, { recursive: true });
    }
    assert.equal(sum('/etc/passwd'), before);
    await env.ok(['exec', 'web', 'touch', '/end']);
  });

  await t.test('what does not fit is refused', async () => {
    const dir = join(scratch, 'tree');
    const cases: [string[], RegExp][] = [
      [['web:/none', scratch], /\/none: no such file or directory/],
      [[join(scratch, 'none'), 'web:/'], /no such file or directory/],
      [[join(scratch, 'file'), 'web:/none/'], /\/none\/: no such directory/],
      [[join(scratch, 'file'), 'web:/none/x'], /\/none\/: no such directory/],
      [[dir, 'web:/etc/hostname'], /cannot copy a directory to a file/],
      [['web:/etc', join(scratch, 'file')], /cannot copy a directory to a file/],
      [['web:/etc', join(scratch, 'none/x')], /no such directory/],
      [['web:/a', 'other:/b'], /copying between containers is not supported/],
      [[scratch, scratch], /must specify at least one container source/],
      [['nobody:/a', scratch], /no such container/],
    ];
    for (const [args, text] of cases) {
      const { code, stderr } = await env.kata(['cp', ...args]);
      assert.equal(code, 1, args.join(' '));
      assert.match(stderr, text, args.join(' '));
    }
  });
});

test('files of a container that does not run', async (t) => {
  await env.ok(['kill', 'web']);
  await t.test('are read, and written, by a machine without the workload', async () => {
    await env.ok(['cp', '-q', 'web:/plain', join(scratch, 'read')]);
    await env.ok(['cp', '-q', join(scratch, 'file'), 'web:/written']);
    assert.match(await env.ok(['ps', '-a', '--format', '{{.Names}} {{.State}}']), /web exited/);
  });
  await t.test('a start waits for that, and finds what was written', async () => {
    const copying = env.ok(['cp', '-q', 'web:/gib', join(scratch, 'gib')]);
    await until(() => fs.readdirSync(join(env.runDir, 's')).length > 0, 'the machine is there');
    await env.ok(['start', 'web']);
    await copying;
    assert.equal(fs.statSync(join(scratch, 'gib')).size, 2 ** 30);
    assert.equal(await env.ok(['exec', 'web', 'cat', '/written']), 'content');
  });
  await t.test('diff, export and commit', async () => {
    await env.ok([
      'exec',
      'web',
      'sh',
      '-c',
      'rm -rf /bin/vi /gib /tree /s; mkdir /new; echo new >/new/file; chmod 600 /etc/passwd',
    ]);
    const changes = (await env.ok(['diff', 'web'])).split('\n');
    for (const line of ['C /bin', 'D /bin/vi', 'A /new', 'A /new/file', 'C /etc/passwd'])
      assert.ok(changes.includes(line), line);
    assert.ok(!changes.some((line) => /hosts|resolv|\/vol|\/proc/.test(line)), changes.join('\n'));
    await env.ok(['stop', '-t', '0', 'web']);
    assert.deepEqual((await env.ok(['diff', 'web'])).split('\n'), changes);
    await env.ok(['export', '-o', join(scratch, 'root.tar'), 'web']);
    const names = execFileSync('tar', ['tf', join(scratch, 'root.tar')])
      .toString()
      .split('\n');
    assert.ok(names.includes('new/file') && !names.includes('bin/vi') && !names.includes('vol/file'));
    const id = await env.ok([
      'commit',
      '-a',
      'me',
      '-m',
      'why',
      '-c',
      'ENV A="b c"',
      '-c',
      'CMD cat /new/file',
      'web',
      'made:1',
    ]);
    assert.match(id, /^sha256:[0-9a-f]{64}$/);
    assert.equal(await env.ok(['run', '--rm', 'made:1']), 'new');
    const script = 'echo "$A"; ls /bin/vi 2>&1; stat -c %a /etc/passwd';
    assert.equal(
      await env.ok(['run', '--rm', 'made:1', 'sh', '-c', script]),
      'b c\nls: /bin/vi: No such file or directory\n600',
    );
    assert.equal((await env.kata(['commit', '-c', 'FROM x', 'web'])).code, 1);
  });
  await t.test('a container whose disk is gone says so', async () => {
    const { Id } = await env.inspect('web');
    fs.rmSync(join(env.root, 'containers', String(Id), 'rw.img'));
    const { code, stderr } = await env.kata(['cp', 'web:/etc/hosts', '-']);
    assert.equal(code, 1);
    assert.match(stderr, /STATE_CORRUPT/);
    assert.match(stderr, /missing: .*rw\.img/);
  });
  await t.test('rm -f ends a copy', async () => {
    await env.ok(['create', '--name', 'fresh', 'busybox']);
    const client = env.start(['cp', '-', 'fresh:/']);
    const copying = collect(client, HANG_GUARD_MS, 'cp');
    await until(() => fs.readdirSync(join(env.runDir, 's')).length > 0, 'the machine is there');
    await env.ok(['rm', '-f', 'fresh']);
    client.stdin?.end();
    assert.notEqual((await copying).code, 0);
  });
});

test('what runs in a container, and a shell beside it', async () => {
  await env.ok(['run', '-d', '--name', 'busy', 'busybox', 'sh', '-c', 'sleep 1000 & sleep 2000']);
  const top = await env.ok(['top', 'busy', '-o', 'pid,ppid,user,args']);
  assert.match(top, /^PID +PPID +USER +COMMAND\n1 +0 +root +sleep 2000\n/);
  assert.match(top, /\n\d+ +1 +root +sleep 1000$/);
  assert.match(await env.ok(['top', 'busy']), /^USER +PID +PPID +C +STIME +TTY +TIME +CMD\n/);
  assert.equal((await env.kata(['top', 'busy', '-o', 'nothing'])).code, 1);
  const shell = await env.kata(['debug', 'busy', 'sh', '-c', 'cat /proc/1/comm; ps | grep -c sleep; exit 7']);
  assert.equal(shell.code, 7, shell.stderr);
  assert.match(shell.stdout.toString(), /^init\n[2-9]/);
  const typed = await env.kata(['debug', 'busy'], { stdin: 'mount | grep -c erofs\n' });
  assert.equal(typed.stdout.toString().trim(), '1');
  assert.equal((await env.kata(['build', '.'])).code, 1);
  assert.match((await env.kata(['build', '.'])).stderr, /docker build .*kata load/);
});

test('what nobody uses is measured and removed', async () => {
  await env.ok(['rm', '-f', 'busy']);
  await env.ok(['create', '--name', 'left', '-l', 'stage=test', '-v', '/anonymous', 'busybox']);
  const df = JSON.parse(await env.ok(['system', 'df', '--json']));
  assert.ok(df.imagesBytes > 0 && df.images.some((image: { tags: string[] }) => image.tags.includes('busybox:latest')));
  const table = await env.ok(['system', 'df']);
  assert.match(table, /^TYPE +TOTAL +ACTIVE +SIZE +RECLAIMABLE\nImages .*\nContainers +2 +0 .*\nLocal Volumes +2 +2 /);
  assert.match(await env.ok(['system', 'df', '-v']), /VOLUME NAME +LINKS +SIZE\n/);
  assert.equal(await env.ok(['info', '-f', '{{.Containers}} {{.ContainersStopped}}']), '2 2');
  assert.equal(await env.ok(['container', 'prune']), '', 'nobody answers');
  assert.match(
    await env.ok(['container', 'prune', '-f', '--filter', 'label=stage=test']),
    /Deleted Containers:\n[0-9a-f]{64}\n/,
  );
  assert.match(await env.ok(['volume', 'prune', '-f']), /Deleted Volumes:\n[0-9a-f]{64}\n/);
  assert.match(
    await env.ok(['system', 'prune', '-f']),
    /Deleted Containers:\n[0-9a-f]{64}\n[\s\S]*Total reclaimed space: /,
  );
  assert.match(await env.ok(['volume', 'prune', '-af']), /Deleted Volumes:\nvol\n/);
  assert.equal(await env.ok(['ps', '-aq']), '');
});
