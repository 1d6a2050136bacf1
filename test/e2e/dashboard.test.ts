import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { after, before, test } from 'node:test';
import { Browser, type Page } from '../support/browser.ts';
import { kill9, TestEnv, until } from '../support/env.ts';

// The dashboard in Debian's Chromium, with virtual machines behind it.

const MARKUP = '<img src=x onerror="window.taken=1"><b>bold</b>';
const env = new TestEnv();
let browser: Browser;
let page: Page;
let dashboard: ChildProcess;
let address = '';

before(async () => {
  browser = await Browser.start();
  const script = `echo '${MARKUP}'; printf 'turned \\342\\200\\256 around\\033[31m\\n'; echo bad >&2; while read line; do echo "got $line"; done; sleep 1000`;
  await env.ok(['run', '-d', '--name', 'web', '-m', '64m', 'busybox', 'sh', '-c', script, MARKUP]);
  dashboard = env.start(['dashboard'], { stdin: 'ignore' });
  dashboard.stdout?.on('data', (chunk: Buffer) => {
    address += chunk.toString();
  });
  await until(() => address.endsWith('\n'), 'the dashboard tells its address');
  page = await browser.newPage();
});
after(async () => {
  await browser?.close();
  assert.deepEqual(await env.dispose(), []);
});

test('without the token the page tells nothing but why', async () => {
  await page.open(address.replace(/#.*/s, ''));
  await page.until('document.querySelector("#link").dataset.state === "refused"', 'the page is refused');
  assert.match(await page.text('#notice'), /token/);
  assert.equal(await page.eval('document.querySelectorAll("button.row").length'), 0);
  // The browser's own line about the answer 401.
  page.complaints.length = 0;
});

test('the sandbox and its container are there, with their load', async () => {
  await page.open(address.trim());
  await page.until('document.querySelector("button.row .load:not([hidden])")', 'the container is listed');
  assert.equal(await page.eval('location.hash'), '', 'the token is no part of the address any more');
  const uid = (await env.inspect('web')).kata.sandbox?.uid;
  assert.ok((await page.text('#list')).includes(`Sandbox ${uid}`));
  assert.equal(await page.text('button.row .name'), 'web');
  assert.match(await page.text('button.row .status'), /^Up /);
  await page.until('/%/.test(document.querySelector("button.row").innerText)', 'the processor’s load is shown');
  assert.match(await page.text('button.row .load'), /KiB of 64MiB|MiB of 64MiB/);
  assert.match(await page.text('#totals'), /Sandboxes\s+1/);
  assert.match(await page.text('#events'), /container start\s+web/);
});

test('it is used with the keyboard, and shows the start’s phases and the log', async () => {
  await page.eval('document.querySelector("button.row").focus()');
  await page.key('Enter');
  await page.until(
    'document.querySelector(".waterfall") && document.querySelectorAll(".log p").length >= 3',
    'details',
  );
  const phases = await page.eval<string[]>('[...document.querySelectorAll(".waterfall th")].map(e => e.innerText)');
  assert.ok(phases.includes('boot') && phases.includes('create-container'), phases.join());
  const widths = await page.eval<number[]>(
    '[...document.querySelectorAll(".waterfall .span")].map(e => e.offsetWidth)',
  );
  assert.ok(Math.max(...widths) > 20, widths.join());
  assert.match(await page.text('#details .gauges'), /CPU.*Memory.*Network/s);
  await page.key('Escape');
  assert.equal(await page.eval('document.querySelector("#details").hidden'), true);
  assert.equal(await page.eval('document.activeElement.className'), 'row');
  await page.key('Enter');
  await page.until('document.querySelector(".facts") && document.querySelectorAll(".log p").length >= 3', 'both again');
});

test('what guests and callers wrote is text', async () => {
  const log = await page.text('.log');
  assert.ok(log.includes(MARKUP), log);
  assert.ok(log.includes('turned \\u202e around\n'), log);
  assert.equal(await page.eval('document.querySelector(".log .stderr span").innerText'), 'bad');
  assert.ok((await page.text('.facts')).includes(MARKUP));
  assert.equal(await page.eval('document.querySelectorAll("img, b").length'), 0);
  assert.equal(await page.eval('typeof window.taken'), 'undefined');
  // Even a slip of the page itself could not make markup of it, or run a script of another place.
  await assert.rejects(page.eval('document.body.innerHTML = "<b>x</b>"'), /TrustedHTML/);
  await assert.rejects(page.eval('fetch("http://127.0.0.1:1/")'), /Failed to fetch/);
  page.complaints.length = 0;
});

test('what happens is seen as it happens', async () => {
  await env.ok(['run', '-d', '--name', 'side', '--sandbox', 'web', 'busybox', 'sleep', '1000']);
  await page.until('[...document.querySelectorAll("button.row .name")].some(e => e.innerText === "side")', 'a new row');
  assert.equal(await page.eval('document.querySelectorAll("#list .card").length'), 1, 'both are in one sandbox');
  await page.key('Escape');
  await page.eval('document.querySelector("button.row").focus()');
  await page.key('ArrowDown');
  assert.equal(await page.eval('[...document.querySelectorAll("button.row")].indexOf(document.activeElement)'), 1);
  await env.ok(['rm', '-f', 'side']);
  await page.until('document.querySelectorAll("button.row").length === 1', 'the row is gone');
  await page.until('/destroy\\s+side/.test(document.querySelector("#events").innerText)', 'the event');
});

test('it is as wide as a phone, in both colours, and nothing sticks out', async () => {
  await page.eval('document.querySelector("button.row").click()');
  await page.until('document.querySelector(".waterfall")', 'details');
  const grounds: string[] = [];
  for (const scheme of ['light', 'dark'] as const) {
    await page.colours(scheme);
    grounds.push(await page.eval('getComputedStyle(document.body).backgroundColor'));
    for (const width of [360, 768, 1360]) {
      await page.size(width, 800);
      assert.ok((await page.eval<number>('document.documentElement.scrollWidth')) <= width, `${scheme}, ${width}`);
    }
  }
  assert.notEqual(grounds[0], grounds[1]);
});

test('an engine that dies and is started again is found again', async () => {
  const pid = await env.enginePid();
  assert.ok(pid);
  await kill9(pid);
  // Any command does, or the keeper of the sandbox.
  await env.ok(['rename', 'web', 'site']);
  await page.until('document.querySelector("button.row .name").innerText === "site"', 'the next engine tells');
  assert.equal(await page.eval('document.querySelector("#link").dataset.state'), 'live');
});

test('the page had nothing to complain of; a port is taken once; an interrupt ends the server', async () => {
  assert.deepEqual(page.complaints, []);
  const second = await env.kata(['dashboard', '--port', new URL(address).port]);
  assert.equal(second.code, 1);
  assert.match(second.stderr, /code: CONFLICT/);
  dashboard.kill('SIGINT');
  const [code] = await once(dashboard, 'exit');
  assert.equal(code, 0);
});
