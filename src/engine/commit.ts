import { randomBytes } from 'node:crypto';
import type { CommitBody } from '../api/index.ts';
import { KataError } from '../base/index.ts';
import { applyInstruction, effectiveConfig, type ImageRuntimeConfig } from '../oci/index.ts';
import type { Container } from './container.ts';
import type { Engine } from './engine.ts';
import { layerArguments } from './files.ts';
import { pause, unpause } from './lifecycle.ts';
import { visit } from './visit.ts';

/** Makes an image of a container's own image and of its writable layer, which the guest packs and the keeper writes to a file. */
export async function commit(engine: Engine, container: Container, body: CommitBody): Promise<string> {
  const { name, author, message } = body;
  const args = layerArguments(container);
  const config = body.changes.reduce(applyInstruction, configOf(container));
  const id = await engine.images.commit({
    base: container.record.imageId,
    created: new Date().toISOString(),
    ...{ name, author, message, config },
    writeLayer: (path) => writeLayer(engine, container, { args, path, pause: body.pause }),
  });
  engine.emit('commit', container, { comment: message, imageID: id, imageRef: name ?? '' });
  return id;
}

/** The image's configuration with the container's options over it, as docker commits it. */
function configOf({ record }: Container): ImageRuntimeConfig {
  const { args, entrypoint, env, workdir, user, stopSignal } = record.config;
  const effective = effectiveConfig(record.imageConfig, {
    env,
    ...(args && { args }),
    ...(entrypoint && { entrypoint }),
    ...(workdir === undefined ? {} : { workdir }),
    ...(user === undefined ? {} : { user }),
    ...(stopSignal === undefined ? {} : { stopSignal }),
  });
  const set = <T>(name: string, value: T, isSet: boolean) => (isSet ? { [name]: value } : {});
  return {
    ...record.imageConfig.config,
    Env: effective.env,
    ...set('Cmd', effective.cmd, effective.cmd.length > 0),
    ...set('Entrypoint', effective.entrypoint, effective.entrypoint.length > 0),
    ...set('User', effective.user, effective.user !== ''),
    ...set('WorkingDir', effective.workdir, effective.workdir !== ''),
    ...set('StopSignal', effective.stopSignal, effective.stopSignal !== ''),
    Labels: record.labels,
  };
}

async function writeLayer(
  engine: Engine,
  container: Container,
  { args, path, pause: pauses }: { args: string[]; path: string; pause: boolean },
): Promise<void> {
  const there = await visit(engine, container, { writes: false });
  const paused = pauses && container.state.status === 'running';
  try {
    if (paused) await pause(engine, container);
    const { sandbox } = there;
    const execId = randomBytes(16).toString('hex');
    const ended = engine.tools.end(sandbox.uid, execId);
    const { id: containerId } = container;
    const stdio = { stdin: '', stdout: `file://${path}`, stderr: '', containerId, namespace: '' };
    const tool = { tool: 'layer', args, terminal: false, env: [] } as const;
    await sandbox.startTool({ containerId, execId, stdin: false, stdio }, tool, new AbortController().signal);
    const exit = await ended;
    if (exit.code !== 0)
      throw new KataError(
        'AGENT_ERROR',
        `the guest could not pack what the container changed: exit code ${exit.code}`,
        {
          phase: 'files',
          evidence: exit.evidence === '' ? [] : [exit.evidence],
          hint: `kata logs --agent ${container.record.name}`,
        },
      );
  } finally {
    // It may have been stopped meanwhile.
    if (paused) await unpause(engine, container).catch((error: Error) => engine.log(`commit: ${error.message}`));
    await there.leave();
  }
}
