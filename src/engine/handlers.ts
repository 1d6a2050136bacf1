import { createHash, randomBytes } from 'node:crypto';
import type { StreamAnswer } from '../api/index.ts';
import type { Call, Handlers } from '../api/server.ts';
import { KataError } from '../base/index.ts';
import { buildExecProcess } from '../oci/index.ts';
import { failpoint, needsSharing } from '../sandbox/index.ts';
import { commit } from './commit.ts';
import { Container } from './container.ts';
import { corruptSummary, detailsOf, droppedLines, logFiles, statsOf, summaryOf } from './describe.ts';
import type { Engine } from './engine.ts';
import { openFiles, openShell } from './files.ts';
import { containerFilter } from './filters.ts';
import { checkOf } from './health.ts';
import * as lifecycle from './lifecycle.ts';
import { pendingRestart } from './restart.ts';
import { findLogs, setAgentLogLevel } from './sandbox-logs.ts';
import { checkValues, secretEnvironment } from './secrets.ts';
import { update } from './update.ts';

/** Calls about containers, as the API's routes name them. `ready` settles when recovery is done. */
export function containerHandlers(engine: Engine, ready: Promise<void>): Handlers {
  const find = async (reference: string): Promise<Container> => {
    await ready;
    return engine.containers.find(reference);
  };
  return {
    listContainers: async ({ query }) => {
      await ready;
      const fits = containerFilter(query.filters);
      const all = query.all || Object.keys(query.filters).some((key) => key === 'status' || key === 'exited');
      const known = engine.containers.all
        .filter((one) => (all || one.isLive || pendingRestart(one)) && fits(one))
        .map((one) => summaryOf(one, engine.ownerOf(one)));
      const corrupt = all && Object.keys(query.filters).length === 0 ? engine.containers.corrupt : [];
      return [...known, ...corrupt.map(corruptSummary)].sort((a, b) => b.createdAt.localeCompare(a.createdAt));
    },
    createContainer: async ({ body: { secretValues, ...config }, requestId }) => {
      await ready;
      checkValues(config.secrets, secretValues);
      const container = await engine.create(config, requestId);
      engine.secrets.remember(container, secretValues);
      return {
        id: container.id,
        name: container.record.name,
        warnings: [],
        shares: needsSharing(engine.planOf(container)),
      };
    },
    inspectContainer: async ({ path }) => detailsOf(engine, await find(path.id)),
    startContainer: async ({ path, body, requestId, resumed }) => {
      const container = await find(path.id);
      engine.secrets.remember(container, body.secretValues);
      const stream = await lifecycle.start(engine, container, { attach: body.attach, requestId, resumed });
      const { startup, config } = container.record;
      return {
        ...(stream === undefined ? {} : { stream: { ...stream, execId: '' } }),
        ...(config.traceStartup && startup !== undefined ? { startup } : {}),
      };
    },
    stopContainer: async ({ path, body, requestId }) => {
      await lifecycle.stop(engine, await find(path.id), { ...body, requestId });
      return {};
    },
    killContainer: async ({ path, body, requestId, resumed }) => {
      await ready;
      await killOnce(engine, path.id, { signal: body.signal, requestId }, resumed);
      return {};
    },
    restartContainer: async ({ path, body, requestId, resumed }) => {
      await lifecycle.restart(engine, await find(path.id), { ...body, requestId, resumed });
      return {};
    },
    removeContainer: async ({ path, query, resumed }) => {
      await ready;
      await removeAny(engine, path.id, query, resumed);
      return {};
    },
    waitContainer: async (call) => waitFor(await find(call.path.id), call),
    renameContainer: async ({ path, body }) => {
      const container = await find(path.id);
      engine.announce(container, [['rename']], (told) => engine.containers.rename(container, body.name, told));
      const network = engine.networkOf(container).lease?.network;
      if (network !== undefined) engine.networks.tellNames(network);
      return {};
    },
    pauseContainer: async ({ path }) => {
      await lifecycle.pause(engine, await find(path.id));
      return {};
    },
    unpauseContainer: async ({ path }) => {
      await lifecycle.unpause(engine, await find(path.id));
      return {};
    },
    updateContainer: async ({ path, body }) => {
      await update(engine, await find(path.id), body);
      return {};
    },
    containerStats: async ({ path }) => statsOf(engine, await find(path.id)),
    attachContainer: async ({ path, body }) => {
      const container = await find(path.id);
      const stream = await openStream(engine, container, '', body);
      engine.emit('attach', container);
      return stream;
    },
    containerLogs: async ({ path, query }) => {
      const container = await find(path.id);
      const live = query.follow && container.isLive;
      const silent = { stdin: false, stdout: false, stderr: false };
      // The process may end between the question and the stream: its log is complete then.
      const stream = live ? await openStream(engine, container, '', silent).catch(() => undefined) : undefined;
      return {
        path: container.logPath,
        files: logFiles(container),
        ...(stream === undefined ? {} : { stream }),
        terminal: container.record.process.terminal,
        droppedLines: await droppedLines(container, engine.sandboxes.get(summaryOf(container).sandboxUid ?? '')),
      };
    },
    sandboxLogs: async ({ path }) => {
      await ready;
      return findLogs(engine, path.id);
    },
    setAgentLogLevel: async ({ path, body }) => {
      await ready;
      await setAgentLogLevel(engine, path.id, body.level);
      return {};
    },
    resizeProcess: async ({ path, body }) => {
      const container = await find(path.id);
      const { agent } = engine.sandboxOf(container).links;
      await agent.resizeTerminal(container.id, body.execId, body, { timeoutMs: 10_000 });
      return {};
    },
    createExec: async (call) => exec(engine, await find(call.path.id), call),
    openFiles: async ({ path, body }) => openFiles(engine, await find(path.id), body),
    openShell: async ({ path, body }) => openShell(engine, await find(path.id), body),
    commitContainer: async ({ path, body }) => ({ id: await commit(engine, await find(path.id), body) }),
    listProcesses: async ({ path }) => {
      const container = await find(path.id);
      return engine.sandboxOf(container).links.agent.listProcesses(container.id, { timeoutMs: 10_000 });
    },
    inspectExec: async ({ path }) => {
      const container = await find(path.id);
      const record = engine.sandboxOf(container).execOf(container.id, path.execId);
      if (record === undefined) throw new KataError('NOT_FOUND', `no such exec: ${path.execId}`);
      return {
        execId: record.execId,
        containerId: record.containerId,
        running: record.exit === undefined,
        args: record.args,
        ...(record.exit === undefined ? {} : { exit: record.exit }),
      };
    },
  };
}

async function openStream(
  engine: Engine,
  container: Container,
  execId: string,
  wish: { stdin: boolean; stdout: boolean; stderr: boolean },
): Promise<StreamAnswer> {
  const { keeper } = engine.sandboxOf(container).links;
  return { ...(await keeper.openStream({ containerId: container.id, execId, ...wish })), execId };
}

/**
 * A second attempt whose container runs no more has nothing left to do. Where it still runs its keeper knows whether the signal was
 * sent.
 */
async function killOnce(
  engine: Engine,
  reference: string,
  options: { signal: string; requestId: string | undefined },
  resumed: boolean,
): Promise<void> {
  try {
    await lifecycle.kill(engine, engine.containers.find(reference), options);
  } catch (error) {
    const isOver = error instanceof KataError && (error.code === 'NOT_RUNNING' || error.code === 'NOT_FOUND');
    if (!resumed || !isOver) throw error;
  }
}

async function removeAny(
  engine: Engine,
  reference: string,
  query: { force: boolean; volumes: boolean },
  resumed: boolean,
): Promise<void> {
  let found: ReturnType<typeof engine.containers.findAny>;
  try {
    found = engine.containers.findAny(reference);
  } catch (error) {
    // The first attempt removed it and did not live to say so.
    if (resumed && error instanceof KataError && error.code === 'NOT_FOUND') return;
    throw error;
  }
  if (found instanceof Container) await lifecycle.remove(engine, found, query);
  else await engine.discardCorrupt(found);
}

async function waitFor(
  container: Container,
  { query, signal }: Call<'waitContainer'>,
): Promise<{ exit?: ReturnType<typeof summaryOf>['exit']; error?: string }> {
  const { condition } = query;
  if (condition === 'removed') await container.when((one) => one.isRemoved, signal);
  else if (condition === 'healthy') await becomesHealthy(container, signal);
  else if (condition === 'not-running') await container.when((one) => one.isRemoved || !one.isLive, signal);
  else {
    let wasLive = container.isLive;
    await container.when((one) => {
      const ended = wasLive && !one.isLive;
      wasLive = one.isLive;
      return one.isRemoved || ended;
    }, signal);
  }
  const { exit } = summaryOf(container);
  const error = 'error' in container.state ? container.state.error : undefined;
  return { ...(exit === undefined ? {} : { exit }), ...(error === undefined ? {} : { error }) };
}

async function becomesHealthy(container: Container, signal: AbortSignal): Promise<void> {
  const { name } = container.record;
  if (checkOf(container) === undefined)
    throw new KataError('INVALID_ARGUMENT', `container ${name} has no health check`, {
      hint: 'give it one: --health-cmd',
    });
  const isWell = (one: Container): boolean => one.isLive && one.health?.status === 'healthy';
  await container.when((one) => one.isRemoved || !one.isLive || isWell(one), signal);
  if (!isWell(container))
    throw new KataError('NOT_RUNNING', `container ${name} does not run (${summaryOf(container).status})`);
}

async function exec(engine: Engine, container: Container, call: Call<'createExec'>): Promise<StreamAnswer> {
  const { body, requestId, resumed, signal } = call;
  if (container.state.status !== 'running')
    throw new KataError(
      container.state.status === 'paused' ? 'CONFLICT' : 'NOT_RUNNING',
      `container ${container.record.name} is ${container.state.status}`,
      { hint: container.state.status === 'paused' ? 'unpause it first' : 'start it first' },
    );
  const sandbox = engine.sandboxOf(container);
  const wish = { stdin: body.stdin, stdout: true, stderr: !body.tty };
  // The same request makes the same exec, so that the guest refuses a second one.
  const execId =
    requestId === undefined
      ? randomBytes(32).toString('hex')
      : createHash('sha256').update(`${container.id}\n${requestId}`).digest('hex');
  const known = resumed && (await sandbox.links.keeper.state()).processes.some((one) => one.execId === execId);
  let stream: { token: string; socket: string } | undefined;
  if (known) stream = body.attach ? await openStream(engine, container, execId, wish) : undefined;
  else {
    const process = engine.processOf(container);
    engine.emit('exec_create', container, { execID: execId, command: body.args.join(' ') }, { key: execId });
    stream = await sandbox.exec(
      {
        execId,
        containerId: container.id,
        args: body.args,
        terminal: body.tty,
        process: buildExecProcess(process, { ...body, env: [...body.env, ...secretEnvironment(body.secretValues)] }),
        stdin: body.stdin,
        attach: body.attach ? wish : undefined,
      },
      // The command goes on when its client does not wait: as docker's, it is ended by nobody.
      signal.aborted ? AbortSignal.abort(signal.reason) : new AbortController().signal,
    );
  }
  engine.tellExecStart(container, { execId, args: body.args });
  failpoint('exec.answer');
  return { socket: stream?.socket ?? '', token: stream?.token ?? '', execId };
}
