import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { collect, HANG_GUARD_MS, until } from './env.ts';

interface Reply {
  id?: number;
  method?: string;
  params?: Record<string, unknown>;
  result?: Record<string, unknown>;
  error?: { message: string };
}

/** Debian's Chromium without a window, by its DevTools protocol. */
export class Browser {
  readonly #child: ChildProcess;
  readonly #profile: string;
  readonly #ended: Promise<unknown>;

  private constructor(child: ChildProcess, profile: string) {
    this.#child = child;
    this.#profile = profile;
    this.#ended = collect(child, 10 * HANG_GUARD_MS, 'chromium');
  }

  static async start(): Promise<Browser> {
    const profile = mkdtempSync(join(tmpdir(), 'kt-browser-'));
    const flags = [
      '--headless=new',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-dev-shm-usage',
      '--no-first-run',
      '--no-proxy-server',
      '--disable-background-networking',
      '--disable-component-update',
      '--hide-scrollbars',
      '--remote-debugging-port=0',
      `--user-data-dir=${profile}`,
    ];
    // A group of its own: its helpers end with it.
    const child = spawn('/usr/bin/chromium', [...flags, 'about:blank'], {
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { PATH: process.env.PATH ?? '/usr/bin:/bin', HOME: profile },
    });
    const browser = new Browser(child, profile);
    await until(() => existsSync(join(profile, 'DevToolsActivePort')), 'chromium listens');
    return browser;
  }

  async newPage(): Promise<Page> {
    const [port = ''] = readFileSync(join(this.#profile, 'DevToolsActivePort'), 'utf8').split('\n');
    const answer = await fetch(`http://127.0.0.1:${port}/json/new?about:blank`, { method: 'PUT' });
    const { webSocketDebuggerUrl } = (await answer.json()) as { webSocketDebuggerUrl: string };
    return Page.connect(webSocketDebuggerUrl);
  }

  async close(): Promise<void> {
    if (this.#child.pid !== undefined) process.kill(-this.#child.pid, 'SIGKILL');
    await this.#ended;
    rmSync(this.#profile, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 });
  }
}

/** One tab. What its console said and which scripts failed is in `complaints`. */
export class Page {
  readonly complaints: string[] = [];
  readonly #socket: WebSocket;
  readonly #waiting = new Map<number, (reply: Reply) => void>();
  #calls = 0;

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.addEventListener('message', ({ data }) => this.#take(JSON.parse(String(data)) as Reply));
  }

  static async connect(url: string): Promise<Page> {
    const socket = new WebSocket(url);
    await new Promise((resolve, reject) => {
      socket.addEventListener('open', resolve, { once: true });
      socket.addEventListener('error', () => reject(new Error(`no connection to ${url}`)), { once: true });
    });
    const page = new Page(socket);
    for (const domain of ['Page', 'Runtime', 'Log', 'Audits']) await page.send(`${domain}.enable`);
    return page;
  }

  async send(method: string, params: Record<string, unknown> = {}): Promise<Record<string, unknown>> {
    this.#calls += 1;
    const id = this.#calls;
    const reply = await new Promise<Reply>((resolve) => {
      this.#waiting.set(id, resolve);
      this.#socket.send(JSON.stringify({ id, method, params }));
    });
    if (reply.error !== undefined) throw new Error(`${method}: ${reply.error.message}`);
    return reply.result ?? {};
  }

  /** Opens an address and answers when its document is there. */
  async open(url: string): Promise<void> {
    // A mere change of what follows the # would load nothing.
    await this.send('Page.navigate', { url: 'about:blank' });
    await this.send('Page.navigate', { url });
    await this.until('document.readyState === "complete" && location.href !== "about:blank"', `${url} is loaded`);
  }

  /** The value of an expression in the page. */
  async eval<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = (await this.send('Runtime.evaluate', {
      expression,
      returnByValue: true,
      awaitPromise: true,
    })) as { result: { value: T; description?: string }; exceptionDetails?: { text: string } };
    if (exceptionDetails !== undefined)
      throw new Error(`${expression}: ${result.description ?? exceptionDetails.text}`);
    return result.value;
  }

  text(selector: string): Promise<string> {
    return this.eval<string>(`document.querySelector(${JSON.stringify(selector)})?.innerText ?? ''`);
  }

  /** Waits until an expression is true in the page. */
  async until(expression: string, what: string): Promise<void> {
    try {
      await until(() => this.eval<boolean>(`Boolean(${expression})`), what);
    } catch (error) {
      throw new Error(`${(error as Error).message}\n${await this.text('body')}\n${this.complaints.join('\n')}`);
    }
  }

  async key(key: string): Promise<void> {
    const code = { Enter: { code: 'Enter', windowsVirtualKeyCode: 13, text: '\r' } }[key] ?? { code: key };
    await this.send('Input.dispatchKeyEvent', { type: 'keyDown', key, ...code });
    await this.send('Input.dispatchKeyEvent', { type: 'keyUp', key, ...code });
  }

  async size(width: number, height: number, scale = 1): Promise<void> {
    await this.send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: scale, mobile: false });
  }

  async colours(scheme: 'light' | 'dark'): Promise<void> {
    await this.send('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: scheme }] });
  }

  async picture(): Promise<Buffer> {
    const { data } = await this.send('Page.captureScreenshot', { format: 'png' });
    return Buffer.from(String(data), 'base64');
  }

  #take(message: Reply): void {
    if (message.id !== undefined) {
      this.#waiting.get(message.id)?.(message);
      this.#waiting.delete(message.id);
    } else if (message.method === 'Runtime.exceptionThrown' || message.method === 'Log.entryAdded')
      this.complaints.push(JSON.stringify(message.params));
    else if (message.method === 'Audits.issueAdded') this.complaints.push(JSON.stringify(message.params));
  }
}
