import { randomBytes } from 'node:crypto';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { ExitInfo, FilesRequest, ShellRequest, StreamAnswer } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import type { Sandbox } from '../sandbox/index.ts';
import { GUEST_SHARED, guestImageDir } from '../storage/index.ts';
import { findTool } from './assets.ts';
import type { Container } from './container.ts';
import type { Engine } from './engine.ts';
import { type Visit, visit } from './visit.ts';

type Tool = Parameters<Sandbox['startTool']>[1];

/** A tool that no client has come for by then is ended. */
const CLIENT_TIMEOUT_MS = 60_000;
const SIGKILL = 9;
/** A name that busybox knows itself by. */
const SHELL = 'busybox-shell';
const APPLETS = '/run/busybox';

/** A stream of a container's files: the caller reads or writes it at the keeper. */
export async function openFiles(engine: Engine, container: Container, body: FilesRequest): Promise<StreamAnswer> {
  const writes = body.tool === 'unpack';
  const there = await visit(engine, container, { writes });
  const tool = { tool: body.tool, args: argumentsOf(container, body), terminal: false, env: [] };
  return openTool(engine, container, there, { tool, stdin: writes });
}

function argumentsOf(container: Container, body: FilesRequest): string[] {
  const flag = (name: string, set: boolean): string[] => (set ? [`--${name}`] : []);
  switch (body.tool) {
    case 'pack':
      return [
        `--path=${body.path}`,
        `--name=${body.name}`,
        ...flag('follow', body.follow),
        ...flag('exact', body.exact),
      ];
    case 'unpack':
      return [
        `--to=${body.path}`,
        `--base=${body.name}`,
        ...flag('contents', body.contents),
        ...flag('extract', body.extract),
        ...flag('owner', body.owner),
      ];
    case 'export':
      return ['--path=/', '--name='];
    case 'changes':
      return layerArguments(container);
  }
}

/** Of the tools that look at the writable layer. UNIMPLEMENTED where that is not in the guest. */
export function layerArguments(container: Container): string[] {
  const { record } = container;
  if (record.config.rootfs.driver !== 'block')
    throw new KataError('UNIMPLEMENTED', 'the changes of a root file system on virtio-fs are not told apart', {
      phase: 'files',
      hint: 'create the container without --rootfs virtiofs',
    });
  const mounted = ['/etc/hosts', '/etc/hostname', '/etc/resolv.conf', '/dev', '/proc', '/sys', '/dev/shm'];
  for (const { target } of [...record.mounts, ...record.config.tmpfs]) mounted.push(target);
  for (const { name, target, type } of record.config.secrets)
    if (type === 'file') mounted.push(target ?? `/run/secrets/${name}`);
  return [`--image=${guestImageDir(record.id)}`, ...mounted.map((path) => `--mounted=${path}`)];
}

/** A shell of the guest's, in the agent's own namespaces. The container must run. */
export async function openShell(engine: Engine, container: Container, body: ShellRequest): Promise<StreamAnswer> {
  const sandbox = engine.sandboxOf(container);
  const program = await bringShell(engine, sandbox);
  const env = [`PATH=${APPLETS}`, 'HOME=/root', `TERM=${body.term ?? 'xterm'}`];
  // Its applets get names, so that a shell finds them.
  const install = `[ -d ${APPLETS} ] || { ${program} mkdir ${APPLETS} && ${program} --install -s ${APPLETS}; }; exec "$@"`;
  const args = [program, 'sh', '-c', install, 'sh', ...(body.args.length === 0 ? ['sh'] : body.args)];
  const tool: Tool = { tool: 'shell', args, terminal: body.tty, env };
  return openTool(engine, container, { sandbox, leave: async () => {} }, { tool, stdin: body.stdin });
}

const withShell = new WeakSet<Sandbox>();

/** The guest's image has no shell: busybox is put beside the files of its containers. Answers its path there. */
async function bringShell(engine: Engine, sandbox: Sandbox): Promise<string> {
  if (!withShell.has(sandbox)) {
    const binary = await readFile(findTool(engine.paths.assets, 'busybox'));
    if (sandbox.record.shared === 'no') await sandbox.links.agent.copyFile(`${GUEST_SHARED}${SHELL}`, binary, 0o755);
    else {
      const path = join(sandbox.runDir, 'shared', SHELL);
      await rm(path, { force: true });
      await writeFile(path, binary, { mode: 0o755, flag: 'wx' });
    }
    withShell.add(sandbox);
  }
  return `${GUEST_SHARED}${SHELL}`;
}

async function openTool(
  engine: Engine,
  container: Container,
  there: Visit,
  { tool, stdin }: { tool: Tool; stdin: boolean },
): Promise<StreamAnswer> {
  const execId = randomBytes(16).toString('hex');
  const process = { containerId: container.id, execId };
  const { sandbox } = there;
  const ended = engine.tools.end(sandbox.uid, execId);
  try {
    await sandbox.startTool({ ...process, stdin }, tool, new AbortController().signal);
    const wish = { stdin, stdout: true, stderr: !tool.terminal };
    const stream = await sandbox.links.keeper.openStream({ ...process, ...wish });
    void watch(engine, there, process, ended);
    return { ...stream, execId };
  } catch (error) {
    engine.tools.forget(execId);
    await there.leave();
    throw error;
  }
}

async function watch(
  engine: Engine,
  there: Visit,
  process: { containerId: string; execId: string },
  ended: Promise<ExitInfo>,
): Promise<void> {
  const timer = setTimeout(() => void endUnattended(engine, there.sandbox, process), CLIENT_TIMEOUT_MS);
  await ended;
  clearTimeout(timer);
  await there.leave();
}

async function endUnattended(
  engine: Engine,
  sandbox: Sandbox,
  { containerId, execId }: { containerId: string; execId: string },
): Promise<void> {
  try {
    const { keeper, agent } = sandbox.links;
    const { processes } = await keeper.state();
    const found = processes.find((one) => one.containerId === containerId && one.execId === execId);
    if (found !== undefined && found.attachedClients === 0) await agent.signalProcess(containerId, execId, SIGKILL);
  } catch (error) {
    engine.log(`container ${containerId}: tool ${execId}: ${(error as Error).message}`);
  }
}
