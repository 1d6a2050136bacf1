const TOKEN = 'kata-token';

/** The token of the address goes into this tab's memory and out of the address: a bookmark or a picture does not have it. */
export function takeToken(): void {
  const given = location.hash.slice(1);
  if (given === '') return;
  sessionStorage.setItem(TOKEN, given);
  history.replaceState(null, '', location.pathname);
}

/** What the server said in place of an answer. */
export class Refused extends Error {
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

async function get(path: string, signal: AbortSignal): Promise<Response> {
  const authorization = `Bearer ${sessionStorage.getItem(TOKEN) ?? ''}`;
  const response = await fetch(path, { headers: { authorization }, signal, cache: 'no-store' });
  if (response.ok) return response;
  const { message = response.statusText } = await response.json().catch(() => ({}));
  throw new Refused(response.status, String(message));
}

export async function answer<T>(path: string, signal: AbortSignal): Promise<T> {
  return (await get(path, signal)).json();
}

/** A stream of one JSON object a line; several that arrive together come together. Ends with the server's. */
export async function* batches<T>(path: string, signal: AbortSignal): AsyncGenerator<T[]> {
  const { body } = await get(path, signal);
  if (body === null) return;
  let rest = '';
  for await (const chunk of body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + chunk).split('\n');
    rest = lines.pop() ?? '';
    if (lines.length > 0) yield lines.map((line) => JSON.parse(line) as T);
  }
}

/** Runs `work` while the page is looked at, anew after each interruption. */
export async function whileVisible(work: (signal: AbortSignal) => Promise<void>, lost: (why: string) => void) {
  for (;;) {
    if (document.hidden) {
      lost('paused');
      await new Promise((resolve) => document.addEventListener('visibilitychange', resolve, { once: true }));
      continue;
    }
    const hidden = new AbortController();
    const hide = () => document.hidden && hidden.abort();
    document.addEventListener('visibilitychange', hide);
    try {
      await work(hidden.signal);
      lost('connection lost');
    } catch (error) {
      if (error instanceof Refused && error.status === 401) throw error;
      if (!hidden.signal.aborted) lost(error instanceof Refused ? error.message : 'connection lost');
    } finally {
      document.removeEventListener('visibilitychange', hide);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}
